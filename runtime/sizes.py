"""Counts of tokens that a built model knows only while running, and the few limits shared by all parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

UNBOUNDED = 2**30
"""More tokens than any sequence has."""

DECODE_TOKENS = 16
"""A call with at most this many new tokens on a non-empty cache is a decode step; a ring cache has room for them."""


@dataclass(frozen=True)
class Share:
    """`percent` of a sequence's length, rounded down, at least 1, plus a constant: a window of 25 % reaches back 25 % - 1."""

    percent: float
    plus: int = 0

    def of(self, length: int) -> int:
        """The number of tokens for a sequence of `length` tokens; never negative."""
        return max(0, max(1, int(length * self.percent / 100)) + self.plus)


Number = int | Share
"""A count of tokens: known at build time, or a share of the length."""


def resolve(number: Number, length: int) -> int:
    """`number` as a count of tokens, for a sequence of `length` tokens."""
    return number.of(length) if isinstance(number, Share) else number


def largest(counts: Sequence[int]) -> int:
    """The largest of some counts, 0 of none. (torch.compile cannot trace `default` of max, nor sets of lengths that vary.)"""
    return max([0, *counts])


def alike(counts: Sequence[int]) -> bool:
    """Whether there are counts, all of them equal."""
    return len(counts) > 0 and all(count == counts[0] for count in counts)
