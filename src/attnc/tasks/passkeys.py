"""Something said once, at some depth of a long text, and asked at its end.

Tokens: 0 is not used; 1 goes before what is to be remembered, 2 before the question; names and filler are 3 .. V/2 - 1, what
is asked for V/2 .. V - 1. The answer is the end of the tokens, but for its last one, so it can also be decoded.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from attnc.tasks.examples import Examples, TaskError, at_least, distinct, draws, integers, nothing_asked, room, words

REMEMBER, QUESTION, FIRST_WORD = 1, 2, 3


@dataclass(frozen=True)
class Needle:
    """A pair of tokens among random ones; at the end its first token again, which is nowhere else, and the second is asked.

    depth  where the pair stands: 0 at the beginning, 1 at the end; None: drawn uniformly

    Source: "needle in a haystack" (Kamradt, 2023) with one token for the fact.
    """

    depth: float | None = None

    def __post_init__(self) -> None:
        _check(self.depth)

    def batch(self, seed: int, step: int, size: int, length: int, vocabulary: int) -> Examples:
        """As `Task.batch`."""
        room(length, 3, "the pair and the question")
        words(vocabulary, 2 * (FIRST_WORD + 2), "the question, a word and an answer")
        draw = draws(self, seed, step, size, length, vocabulary)
        half = vocabulary // 2
        key, value = integers(FIRST_WORD, half, (size, 1), draw), integers(half, vocabulary, (size, 1), draw)
        tokens = integers(FIRST_WORD, half - 1, (size, length), draw)
        tokens += tokens >= key  # every word but the key
        at = _offset(self.depth, length - 3, size, draw)[:, None]
        tokens.scatter_(1, torch.cat((at, at + 1), dim=1), torch.cat((key, value), dim=1))
        tokens[:, -1:] = key
        targets = nothing_asked(tokens)
        targets[:, -1:] = value
        return Examples(tokens, targets)

    def chance(self, vocabulary: int) -> float:
        """As `Task.chance`."""
        return 1 / (vocabulary - vocabulary // 2)


@dataclass(frozen=True)
class Multikey:
    """`keys` names, each with an answer of `digits` tokens, at places of their own; one is asked at the end by its name.

    The filler is one sentence of `sentence` random tokens, again and again.
    depth  where the one that is asked stands, as of Needle; the others are anywhere

    Source: the multi-key task of Hsieh et al., "RULER: What's the real context size of your long-context language models?"
    (2024): four keys.
    """

    keys: int = 4
    digits: int = 5
    depth: float | None = None
    sentence: int = 24

    def __post_init__(self) -> None:
        at_least("keys", self.keys, 1)
        at_least("digits", self.digits, 1)
        at_least("sentence", self.sentence, 1)
        _check(self.depth)

    def batch(self, seed: int, step: int, size: int, length: int, vocabulary: int) -> Examples:
        """As `Task.batch`."""
        width = 2 + self.digits
        room(length, (self.keys + 1) * width - 1, f"{self.keys} keys and the question")
        words(vocabulary, 2 * (FIRST_WORD + self.keys), f"{self.keys} names, marks and answers")
        draw = draws(self, seed, step, size, length, vocabulary)
        half = vocabulary // 2
        names = distinct(size, self.keys, FIRST_WORD, half, draw)
        answers = integers(half, vocabulary, (size, self.keys, self.digits), draw)
        tokens = _filler(size, length, self.sentence, half, draw)
        spare = length - (self.keys + 1) * width + 1
        offsets = integers(0, max(spare, 1), (size, self.keys), draw)  # the one at depth 1 is the last
        offsets[:, 0] = _offset(self.depth, spare, size, draw)
        _insert(tokens, offsets, torch.cat((torch.full_like(names, REMEMBER)[..., None], names[..., None], answers), dim=2))
        question = torch.cat((torch.full((size, 1), QUESTION), names[:, :1], answers[:, 0, :-1]), dim=1)
        return _asked(tokens, question, answers[:, 0])

    def chance(self, vocabulary: int) -> float:
        """As `Task.chance`."""
        return float((vocabulary - vocabulary // 2) ** -self.digits)


@dataclass(frozen=True)
class Passkey:
    """A key of `digits` tokens somewhere in a sentence that goes on and on; at the end it is asked.

    depth, sentence  as of Multikey, of which this is the form with one key and no names

    Source: Mohtashami & Jaggi, "Landmark attention: Random-access infinite context length for Transformers" (2023).
    """

    digits: int = 5
    depth: float | None = None
    sentence: int = 24

    def __post_init__(self) -> None:
        at_least("digits", self.digits, 1)
        at_least("sentence", self.sentence, 1)
        _check(self.depth)

    def batch(self, seed: int, step: int, size: int, length: int, vocabulary: int) -> Examples:
        """As `Task.batch`."""
        room(length, 2 * self.digits + 1, f"a key of {self.digits} tokens and the question")
        words(vocabulary, 2 * (FIRST_WORD + 1), "marks, filler and answers")
        draw = draws(self, seed, step, size, length, vocabulary)
        half = vocabulary // 2
        answer = integers(half, vocabulary, (size, self.digits), draw)
        tokens = _filler(size, length, self.sentence, half, draw)
        at = _offset(self.depth, length - 2 * self.digits - 1, size, draw)
        _insert(tokens, at[:, None], torch.cat((torch.full((size, 1), REMEMBER), answer), dim=1)[:, None])
        question = torch.cat((torch.full((size, 1), QUESTION), answer[:, :-1]), dim=1)
        return _asked(tokens, question, answer)

    def chance(self, vocabulary: int) -> float:
        """As `Task.chance`."""
        return float((vocabulary - vocabulary // 2) ** -self.digits)


def _check(depth: float | None) -> None:
    if depth is not None and not 0 <= depth <= 1:
        raise TaskError("depth", f"depth = {depth}: it lies in 0..1", "0 is the beginning, 1 the end")


def _offset(depth: float | None, spare: int, size: int, draw: torch.Generator) -> Tensor:
    """[size], how many of `spare` tokens of filler stand before."""
    drawn = integers(0, spare + 1, (size,), draw)
    return drawn if depth is None else torch.full_like(drawn, round(depth * spare))


def _filler(size: int, length: int, sentence: int, half: int, draw: torch.Generator) -> Tensor:
    """[size, length]: a sentence of each example, repeated."""
    return integers(FIRST_WORD, half, (size, sentence), draw)[:, torch.arange(length) % sentence]


def _insert(tokens: Tensor, offsets: Tensor, blocks: Tensor) -> None:
    """Writes blocks [B, K, W] into tokens, with `offsets` [B, K] tokens of filler before each."""
    size, count, width = blocks.shape
    order = offsets.argsort(dim=1, stable=True)
    begins = offsets.gather(1, order) + width * torch.arange(count)
    places = (begins[..., None] + torch.arange(width)).flatten(1)
    tokens.scatter_(1, places, blocks[torch.arange(size)[:, None], order].flatten(1))


def _asked(tokens: Tensor, question: Tensor, answer: Tensor) -> Examples:
    """The question [B, Q] at the end of the tokens, and the answer [B, D] as targets of the last D places."""
    tokens[:, -question.shape[1] :] = question
    targets = nothing_asked(tokens)
    targets[:, -answer.shape[1] :] = answer
    return Examples(tokens, targets)
