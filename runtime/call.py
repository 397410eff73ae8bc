"""One call of a model: where its sequences lie, what decoding keeps, and what layers hand to later ones."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from .batch import Batch
from .cache import Cache
from .rotary import Rope, angles
from .sources import Source
from .storage import LayerCache


@dataclass(frozen=True)
class Call:
    """What all layers of one call share.

    handed  tensors that one layer computes and a later one reads, such as q and k
    sources what the nearest earlier layers lend to choices of later ones
    turns   cosines and sines of the call's positions, for each Rope once
    losses  what layers add to the training loss, by name
    alarms  what must be finite at the end of the call: a launch, its outputs, its weights (learning.py)
    """

    batch: Batch
    cache: Cache | None = None
    handed: dict[str, Tensor] = field(default_factory=dict)
    sources: dict[str, Source] = field(default_factory=dict)
    turns: dict[tuple[Rope, int], tuple[Tensor, Tensor]] = field(default_factory=dict)
    losses: dict[str, Tensor] = field(default_factory=dict)
    alarms: list[tuple[object, Tensor, list[Tensor]]] = field(default_factory=list)

    def slot(self, index: int) -> LayerCache | None:
        """The storage of launch `index`, or None without a cache. ValueError for the cache of a smaller model."""
        if self.cache is None:
            return None
        try:
            return self.cache.layer(index)
        except IndexError:
            raise ValueError(f"the cache is of another model: it has no storage for launch {index}") from None

    def angles(self, rope: Rope, every: int = 1) -> tuple[Tensor, Tensor]:
        """Cosines and sines [T, rotated / 2] at the call's positions; `every` > 1: at the numbers of their chunks instead."""
        positions = self.batch.positions
        if torch.compiler.is_compiling():  # a compiler sees that layers compute the same, and layers may be checkpointed apart
            return angles(rope, positions // every)
        key = (rope, every)
        if key not in self.turns:
            self.turns[key] = angles(rope, positions // every)
        return self.turns[key]
