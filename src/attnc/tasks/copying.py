"""Selective copying: a few tokens scattered among blanks, then all of them in order."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from attnc.tasks.examples import Examples, at_least, distinct, draws, integers, nothing_asked, room, words

BLANK, SAY = 0, 1


@dataclass(frozen=True)
class Copy:
    """`items` tokens at random places among blanks (token 0); then `items` times token 1, where they are asked in order.

    The answers are never read, so a model has to count. Items are 2 .. V - 1, with repetition.

    Source: selective copying as in Gu & Dao, "Mamba: Linear-time sequence modeling with selective state spaces" (2023), part
    4.1.1: 16 tokens.
    """

    items: int = 16

    def __post_init__(self) -> None:
        at_least("items", self.items, 1)

    def batch(self, seed: int, step: int, size: int, length: int, vocabulary: int) -> Examples:
        """As `Task.batch`."""
        room(length, 2 * self.items, f"{self.items} items and their copies")
        words(vocabulary, 4, "a blank, a mark and two different items")
        draw = draws(self, seed, step, size, length, vocabulary)
        items = integers(2, vocabulary, (size, self.items), draw)
        places = distinct(size, self.items, 0, length - self.items, draw).sort(dim=1).values
        tokens = torch.full((size, length), BLANK).scatter_(1, places, items)
        tokens[:, -self.items :] = SAY
        targets = nothing_asked(tokens)
        targets[:, -self.items :] = items
        return Examples(tokens, targets)

    def chance(self, vocabulary: int) -> float:
        """As `Task.chance`."""
        return 1 / (vocabulary - 2)
