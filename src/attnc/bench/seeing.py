"""What the heads of a work see, asked as other libraries ask it: one window, a mask function, a dense mask.

Legend: N tokens of a sequence; H query heads.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from attnc.bench.work import Work
from attnc.compiler.intervals import UNBOUNDED, Intervals


def uniform(work: Work) -> bool:
    """Whether all heads see the same keys."""
    return len({union for _, union in work.unions}) == 1


def is_full(work: Work) -> bool:
    """Whether every query sees every key that causality allows."""
    return window(work) == (None, None)


def window(work: Work) -> tuple[int | None, int | None] | None:
    """(keys back, keys ahead) of the one window that all heads have, None for no bound; None if they have something else."""
    unions = {union for _, union in work.unions}
    if len(unions) != 1:
        return None
    return window_of(unions.pop())


def window_of(union: Intervals) -> tuple[int | None, int | None] | None:
    """The same for one union."""
    if len(union.near) != 1 or union.strides or union.powers:
        return None
    (near,) = union.near
    back, ahead = near.back, (0 if union.causal else near.ahead)
    if near.back == UNBOUNDED and (union.causal or near.ahead == UNBOUNDED):
        return None, None
    if near.align != 1 or near.shift != 0 or union.sink:
        return None
    assert isinstance(back, int), "the numbers of a launch are resolved"
    assert isinstance(ahead, int), "the numbers of a launch are resolved"
    return back, ahead


def mask_of(work: Work) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """flex_attention's mask function (sequence, head, query, key) -> seen, from the formulas of reference.py."""
    groups, length, repeat = work.groups, work.length, work.launch.repeat
    if uniform(work):
        first = groups[0].visible
        return lambda _b, _h, i, j: first(i, j, length)

    def mixed(_b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        seen = (h < 0) & (i < 0)
        for group in groups:
            mine = (h >= group.first * repeat) & (h < (group.last + 1) * repeat)
            seen = seen | (mine & group.visible(i, j, length))
        return seen

    return mixed


def dense_mask(work: Work) -> Tensor:
    """[N, N], or [H, N, N] where heads differ; True where a key is seen."""
    positions = torch.arange(work.length, device=work.q.device)
    if uniform(work):
        return work.visible(work.groups[0], positions, positions)
    rows = [work.visible(group, positions, positions) for group in work.groups]
    counts = [(group.last - group.first + 1) * work.launch.repeat for group in work.groups]
    return torch.cat([mask.expand(count, -1, -1) for mask, count in zip(rows, counts, strict=True)])
