"""What a task gives, how its random numbers are drawn, and what is wrong with a question that cannot be asked.

Legend: B examples; N tokens of each; V tokens of the vocabulary.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

NOT_ASKED = -100
"""The target where nothing is asked; what `torch.nn.functional.cross_entropy` leaves out."""

SPARE = 8
"""Numbers drawn beyond twice those that are needed, so that hardly ever too few of them differ."""

UNSEEN = 2**32
"""The first step that training never reaches: what is drawn from here on is for evaluation."""


class TaskError(ValueError):
    """A question that cannot be asked: `argument` is what does not fit."""

    code = "A560"

    def __init__(self, argument: str, message: str, help: str) -> None:  # noqa: A002
        super().__init__(f"{self.code}: {message}")
        self.argument, self.help = argument, help


@dataclass(frozen=True, eq=False)
class Examples:
    """tokens [B, N] int64; targets [B, N] int64: what a model says at that place, reading up to it, NOT_ASKED elsewhere.

    Targets are shifted already: the logits of place n are compared with `targets[:, n]`.
    """

    tokens: Tensor
    targets: Tensor


class Task(Protocol):
    """A frozen dataclass whose fields are what can be chosen; every field has a default."""

    def batch(self, seed: int, step: int, size: int, length: int, vocabulary: int) -> Examples:
        """`size` examples of `length` tokens below `vocabulary`. The same arguments give the same examples, everywhere.

        Steps from UNSEEN on are for evaluation, so that no model was trained on what it is asked. Raises TaskError.
        """
        ...

    def chance(self, vocabulary: int) -> float:
        """The share of questions that a guess gets right which knows the possible answers, and not the text."""
        ...


def draws(task: object, *numbers: int) -> torch.Generator:
    """Random numbers (of the CPU) for a task and these numbers; others for each task, and for each of its settings."""
    digest = hashlib.sha256(f"{task!r} {numbers}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def integers(low: int, high: int, shape: tuple[int, ...], draw: torch.Generator) -> Tensor:
    """Uniform in [low, high)."""
    return torch.randint(low, high, shape, generator=draw)


def distinct(rows: int, count: int, low: int, high: int, draw: torch.Generator) -> Tensor:
    """[rows, count] of [low, high), no two alike in a row, in random order."""
    space = high - low
    if 4 * count > space:
        return low + torch.rand(rows, space, generator=draw).topk(count, dim=1).indices
    drawn = integers(low, high, (rows, 2 * count + SPARE), draw)
    while True:  # draw on until every row has enough that are new; a row keeps its first ones
        ranked, order = drawn.sort(dim=1, stable=True)
        old = torch.zeros_like(drawn, dtype=torch.bool).scatter_(1, order[:, 1:], ranked[:, 1:] == ranked[:, :-1])
        if int(old.sum(1).max()) <= drawn.shape[1] - count:
            return drawn.gather(1, old.to(torch.int8).argsort(dim=1, stable=True)[:, :count])
        drawn = torch.cat((drawn, integers(low, high, (rows, count), draw)), dim=1)


def at_least(argument: str, value: int, least: int) -> None:
    """Raises TaskError for a number that is too small."""
    if value < least:
        raise TaskError(argument, f"{argument} = {value}: it is at least {least}", f"give {least} or more")


def room(length: int, needed: int, why: str) -> None:
    """Raises TaskError where the tokens that a task cannot do without do not fit."""
    if length < needed:
        raise TaskError("length", f"length = {length} is too short: {why} take {needed} tokens", f"give {needed} or more")


def words(vocabulary: int, needed: int, why: str) -> None:
    """Raises TaskError where the vocabulary is too small."""
    if vocabulary < needed:
        help_line = f"take a model with {needed} or more"
        raise TaskError("vocabulary", f"a vocabulary of {vocabulary} is too small: {why} take {needed} tokens", help_line)


def nothing_asked(tokens: Tensor) -> Tensor:
    """Targets, before anything is asked."""
    return torch.full_like(tokens, NOT_ASKED)
