"""Layers that carry a state from call to call: the short convolution before q, k, v, and kinds that are mixers by themselves.

Legend: T tokens of S sequences, packed; W width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

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


def run_stateful(
    formula: Callable[..., tuple[Tensor, Tensor]], x: Tensor, call: Call, slot: int, names: tuple[str, ...], *weights: Weight
) -> Tensor:
    """x [T, W] through a kind's formula, (x [1, N, W], weights ..., state) -> (y [1, N, W], state), one sequence at a time."""
    assert len(names) == 1, "kinds with one state tensor so far"
    (name,) = names
    storage = call.slot(slot)
    before = None if storage is None else storage.state(name, call.batch)
    outputs, states = [], []
    for s, tokens in enumerate(torch.split(x, list(call.batch.sizes))):
        state = None if before is None else before[s : s + 1].to(x.dtype)
        y, after = formula(tokens.unsqueeze(0), *(weight.weight for weight in weights), state)
        outputs.append(y.squeeze(0))
        states.append(after)
    if storage is not None and states:
        storage.set_state(name, torch.cat(states), call.batch)
    return torch.cat(outputs) if outputs else x
