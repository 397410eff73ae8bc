"""What flash kernels can see: one window around each query, or everything."""

from __future__ import annotations

from .batch import Batch
from .intervals import HeadGroup, has_shares
from .sizes import UNBOUNDED, Number, Share, alike, resolve


def no_window(group: HeadGroup, causal: bool) -> str | None:
    """Why what the group sees is no window, if it is none."""
    near = group.near[0] if len(group.near) == 1 else None
    least = 0 if near is None else min(_least(near.back), 0 if causal else _least(near.ahead))
    if near is None or group.sink != 0 or group.strides or group.powers or (near.align, near.shift) != (1, 0) or least < 0:
        return "flash kernels see one window around the query, or everything"
    return None


def _least(number: Number) -> int:
    return 0 if isinstance(number, Share) else number


def window_of(group: HeadGroup, batch: Batch, causal: bool) -> tuple[int | None, int | None]:
    """(tokens back, tokens ahead) that every query of the group sees besides itself, None where there is no end."""
    if (reason := no_window(group, causal)) is not None:
        raise ValueError(reason)
    if has_shares((group,)) and not alike(batch.totals):
        raise ValueError("flash kernels take one window for all sequences, not a share of each one's length")
    back, ahead = (resolve(number, batch.totals[0]) for number in (group.near[0].back, group.near[0].ahead))
    ahead = 0 if causal else ahead
    return None if back >= UNBOUNDED else back, None if ahead >= UNBOUNDED else ahead
