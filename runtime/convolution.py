"""Gated causal depthwise convolutions: y = C * taps(B * u), whose last inputs lie in the cache.

Legend: T new tokens of S sequences; I inner width; n taps.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .batch import Batch
from .call import Call
from .layers import depthwise
from .plain import PlainLaunch, check_cache

Formula = Callable[..., tuple[Tensor, Tensor]]
"""A reference: B, C, u [N, 3 I] of one sequence, taps [I, n], state [n - 1, I] -> (y [N, I], state)."""


class GatedConvolution(PlainLaunch):
    """B, C, u [T, 3 I] -> y [T, I]; all sequences of a call at once, or by the formula one after another."""

    def __init__(self, name: str, *, formula: Formula) -> None:
        super().__init__(name, {"torch": _shifted, "reference": self._reference})
        self.formula = formula

    def __call__(self, x: Tensor, call: Call, slot: int, mapped: Tensor, taps: Tensor) -> Tensor:
        """x [T, W], the layer's input, is read in `mapped` alone; taps [I, n], the last column weighs the newest token."""
        del x
        batch, cache, (inner, n) = call.batch, call.slot(slot), taps.shape
        if not batch.tokens:
            return mapped[:, :inner]
        before = None
        if cache is not None:
            check_cache(cache, {"conv": (n - 1, inner)})
            before = cache.state("conv", batch).to(mapped.dtype) if batch.max_past else None
        y, after = self.providers[batch.phase](mapped, taps, batch, before, cache is not None)
        if cache is not None:
            cache.set_state("conv", after, batch)
        out: Tensor = y.to(mapped.dtype)
        return out

    def _reference(
        self, mapped: Tensor, taps: Tensor, batch: Batch, before: Tensor | None, _keep: bool
    ) -> tuple[Tensor, Tensor | None]:
        outputs, states = [], []
        for s, tokens in enumerate(torch.split(mapped, list(batch.sizes))):
            y, after = self.formula(tokens, taps, None if before is None else before[s])
            outputs.append(y)
            states.append(after)
        return torch.cat(outputs), torch.stack(states)


def _shifted(mapped: Tensor, taps: Tensor, batch: Batch, before: Tensor | None, keep: bool) -> tuple[Tensor, Tensor | None]:
    gate, leave, u = mapped.chunk(3, dim=-1)
    mixed, after = depthwise(gate * u, taps, batch, before, keep)
    return leave * mixed, after
