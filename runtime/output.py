"""What a model's forward returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from .cache import Cache


@dataclass(frozen=True, eq=False)
class Output:
    """logits [B, N, vocabulary] as the inputs lay (zeros at padding), or [P, vocabulary] of the places that were asked for; the
    cache that was given; extra losses by name.
    """

    logits: Tensor
    cache: Cache | None = None
    losses: Mapping[str, Tensor] = field(default_factory=dict)
