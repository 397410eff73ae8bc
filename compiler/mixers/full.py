"""`full`: every visible key, all earlier ones and the own; with `causal = false` all."""

from __future__ import annotations

from typing import Any, Literal

from attnc.compiler.intervals import UNBOUNDED, Intervals, Near
from attnc.compiler.mixer import Kind, Mixer


class Full(Kind):
    """`full`: every visible key."""

    kind: Literal["full"] = "full"


def full_mask(i: Any, j: Any, *, causal: bool) -> Any:
    """Query i sees key j: every key up to its own, or all."""
    import torch

    return j <= i if causal else torch.ones_like(i - j, dtype=torch.bool)


def _intervals(_kind: Full, causal: bool) -> Intervals:
    return Intervals(near=(Near(back=UNBOUNDED, ahead=0 if causal else UNBOUNDED),), causal=causal)


MIXER = Mixer(
    name="full",
    type="keys",
    parameters=Full,
    make_examples=lambda: (Full(),),
    mask=full_mask,
    intervals=_intervals,
)
