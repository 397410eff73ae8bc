"""Tensors below names of their own, and the short convolution before q, k and v, whose last inputs lie in the cache."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .call import Call
from .layers import ShortConv


class Weight(nn.Module):
    """One learned tensor below a name of its own, `NAME.weight`."""

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(*shape))


def convolve(layer: ShortConv, x: Tensor, call: Call, slot: int, name: str) -> Tensor:
    """x [T, channels] through a short convolution whose state lies in the cache of `slot` under `name`."""
    storage = call.slot(slot)
    before = None if storage is None or call.batch.max_past == 0 else storage.state(name, call.batch)
    y, state = layer(x, call.batch, before, storage is not None)
    if storage is not None:
        storage.set_state(name, state, call.batch)
    out: Tensor = y
    return out
