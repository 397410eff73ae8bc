"""Passkeys as text, for models that read text: filler sentences, what is to be remembered, the question."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from attnc.tasks.examples import TaskError

FILLER = ("The grass is green.", "The sky is blue.", "The sun is yellow.", "Here we go.", "There and back again.")
NAMES = (
    "anchor apple arrow basket bell blanket bottle bridge button candle carpet castle chair cherry circle "
    "cloud copper cotton curtain desert dragon eagle engine feather forest garden glass hammer harbor "
    "honey island jacket kettle ladder lantern lemon marble meadow mirror monkey"
)
"""Words that are no numbers; tokenizers have most of them as one token."""
SPARE = 2
"""Tokens that are decoded beyond the answer's own: a tokenizer may write it with another blank before it."""


class Tokenizer(Protocol):
    """What a prompt needs of one."""

    def encode(self, text: str) -> list[int]:
        """The tokens of a text, with those that the tokenizer puts before one."""
        ...

    def decode(self, tokens: list[int]) -> str:
        """The text of tokens."""
        ...


@dataclass(frozen=True)
class Prompt:
    """tokens to read, how many to decode then, and the text that these should begin with."""

    tokens: tuple[int, ...]
    decoded: int
    answer: str

    def answered(self, text: str) -> bool:
        """Whether a text says the answer: these digits and no more, after blanks at most."""
        said = text.lstrip()
        return said.startswith(self.answer) and not said[len(self.answer) :][:1].isdigit()


def passkey(tokenizer: Tokenizer, seed: int, trial: int, length: int, depth: float) -> Prompt:
    """A number of five digits in filler; prompt and answer are at most `length` tokens, less one sentence at least.

    Source: the prompt of Mohtashami & Jaggi, "Landmark attention" (2023). Raises TaskError if it does not fit.
    """
    answer = str(_draw("passkey", seed, trial, length, depth).randint(10000, 99999))
    told = f"The pass key is {answer}. Remember it. {answer} is the pass key."
    task = (
        "There is an important info hidden inside a lot of irrelevant text. Find it and memorize it. I will quiz you about the "
        "important information there."
    )
    question = "What is the pass key? The pass key is"

    def text(sentences: int) -> str:
        before = round(depth * sentences)
        lines = (task, _filler(0, before), told, _filler(before, sentences), question)
        return "\n".join(line for line in lines if line)

    return _longest(tokenizer, text, answer, length)


def multikey(tokenizer: Tokenizer, seed: int, trial: int, length: int, depth: float, keys: int = 4) -> Prompt:
    """`keys` names with a number of seven digits each, anywhere; the one that is asked stands at `depth`.

    Source: the prompt of the multi-key task of RULER (Hsieh et al., 2024). Raises TaskError.
    """
    if not 1 <= keys <= len(NAMES.split()):
        raise TaskError("keys", f"keys = {keys}: there are 1 to {len(NAMES.split())} names", "give fewer")
    draw = _draw("multikey", seed, trial, length, depth, keys)
    names = draw.sample(NAMES.split(), keys)
    answers = [str(draw.randint(1000000, 9999999)) for _ in names]
    depths = [depth, *(draw.random() for _ in names[1:])]
    told = [f"One of the special magic numbers for {name} is: {answer}." for name, answer in zip(names, answers, strict=True)]
    task = "Some special magic numbers are hidden within the following text. Make sure to memorize them. I will ask for one."
    asked = f"the special magic number for {names[0]} mentioned in the provided text"

    def text(sentences: int) -> str:
        at, lines = 0, [task]
        for where, line in sorted((round(one * sentences), line) for one, line in zip(depths, told, strict=True)):
            lines += [_filler(at, where), line]
            at = where
        return "\n".join(line for line in (*lines, _filler(at, sentences), f"What is {asked}? {asked.capitalize()} is") if line)

    return _longest(tokenizer, text, answers[0], length)


PROMPTS: dict[str, Callable[..., Prompt]] = {"passkey": passkey, "multikey": multikey}
"""Tasks as text, by their words."""


def _draw(*numbers: object) -> random.Random:
    return random.Random(repr(numbers))  # noqa: S311  # seeded by the text's SHA-512, alike everywhere


def _filler(start: int, stop: int) -> str:
    """Sentences `start` to `stop` of those that go round and round."""
    return " ".join(FILLER[number % len(FILLER)] for number in range(start, stop))


def _longest(tokenizer: Tokenizer, text: Callable[[int], str], answer: str, length: int) -> Prompt:
    """The prompt with as many filler sentences as fit."""
    decoded = len(tokenizer.encode(f" {answer}")) + SPARE
    least = len(tokenizer.encode(text(0))) + decoded
    if least > length:
        raise TaskError("length", f"length = {length} is too short: the prompt takes {least} tokens", f"give {least} or more")
    each = len(tokenizer.encode(_filler(0, len(FILLER)))) / len(FILLER)

    def tried(sentences: int) -> tuple[list[int], int]:
        tokens = tokenizer.encode(text(sentences))
        return tokens, len(tokens) + decoded - length

    sentences = int((length - least) / each)  # encoding is what takes time, and this is nearly right
    tokens, excess = tried(sentences)
    while excess > 0:
        sentences = max(0, sentences - max(1, int(excess / (2 * each))))
        tokens, excess = tried(sentences)
    while (more := tried(sentences + 1))[1] <= 0:
        tokens, sentences = more[0], sentences + 1
    return Prompt(tuple(tokens), decoded, answer)
