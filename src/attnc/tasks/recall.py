"""Multi-query associative recall: pairs of keys and values, then some of the keys again, far and near."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from attnc.tasks.examples import Examples, TaskError, at_least, distinct, draws, integers, nothing_asked, room, words


@dataclass(frozen=True)
class Mqar:
    """`pairs` keys, each followed by its value; later each key once more, and there its value is asked.

    Tokens 1 .. V/2 - 1 are keys, V/2 .. V - 1 values, each at most once in an example. Keys come again at even distances from
    the end of the pairs, drawn without replacement with probability ~ (n + 1)^(power - 1) of the n-th: a power law, as gaps
    between repeated words of a language have. Every other token is drawn from the whole vocabulary (`noise`), or is 0.

    Source: Arora, Eyuboglu et al., "Zoology: Measuring and improving recall in efficient language models" (2023), and its
    code's defaults: 8 pairs, power 0.01, noise.
    """

    pairs: int = 8
    power: float = 0.01
    noise: bool = True

    def __post_init__(self) -> None:
        at_least("pairs", self.pairs, 1)
        if not 0 < self.power <= 1:
            raise TaskError("power", f"power = {self.power}: it lies in 0..1, without 0", "0.01 is usual, 1 is uniform")

    def batch(self, seed: int, step: int, size: int, length: int, vocabulary: int) -> Examples:
        """As `Task.batch`."""
        room(length, 4 * self.pairs, f"{self.pairs} pairs, and each key again with a place for its value,")
        words(vocabulary, 2 * self.pairs + 2, f"{self.pairs} keys and {self.pairs} values")
        draw = draws(self, seed, step, size, length, vocabulary)
        half = vocabulary // 2
        keys = distinct(size, self.pairs, 1, half, draw)
        values = distinct(size, self.pairs, half, vocabulary, draw)
        asked = 2 * self.pairs + 2 * self._gaps(size, (length - 2 * self.pairs) // 2, draw)
        shape = (size, length)
        tokens = integers(0, vocabulary, shape, draw) if self.noise else torch.zeros(shape, dtype=torch.int64)
        tokens[:, 0 : 2 * self.pairs : 2] = keys
        tokens[:, 1 : 2 * self.pairs : 2] = values
        tokens.scatter_(1, asked, keys)
        return Examples(tokens, nothing_asked(tokens).scatter_(1, asked, values))

    def chance(self, vocabulary: int) -> float:
        """As `Task.chance`."""
        return 1 / (vocabulary - vocabulary // 2)

    def _gaps(self, size: int, space: int, draw: torch.Generator) -> Tensor:
        """[size, pairs] of 0 .. space - 1. The largest of log p + Gumbel noise are a draw by p without replacement."""
        uniform = torch.rand(size, space, generator=draw, dtype=torch.float64).clamp_min(torch.finfo(torch.float64).tiny)
        weights = (self.power - 1) * torch.arange(1, space + 1, dtype=torch.float64).log()
        return (weights - (-uniform.log()).log()).topk(self.pairs, dim=1).indices
