"""Queries of a launch that see everything, whatever is chosen for the others: attention over all keys by a kernel over lists.

Legend: S sequences; N tokens of such queries; G KV heads; R numbers of a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate

import torch
from torch import Tensor

from .batch import Batch, lay_out
from .intervals import FULL, Form, HeadGroup, rows
from .list_choice import alone
from .list_launch import LaunchLists
from .selector import Selector
from .sizes import UNBOUNDED


def seeing_all(choices: Sequence[Selector], batch: Batch) -> tuple[Batch, Tensor | None] | None:
    """The queries that see everything, and where they stand among the batch's, [N], None for all; None where none does."""
    seen = next((one.all_seen for one in choices if one.all_seen is not None), None)
    if seen is None:
        return None
    word, n = seen
    begins, ends = [], []
    for size, past, total in zip(batch.sizes, batch.pasts, batch.totals, strict=True):
        begins.append(0 if word == "first" else min(size, max(0, total - n - past)))
        ends.append(min(size, max(0, n - past)) if word == "first" else size)
    sizes = tuple(end - begin for begin, end in zip(begins, ends, strict=True))
    if sizes == batch.sizes:
        return batch, None
    if not any(sizes):
        return None
    starts = (0, *accumulate(batch.sizes))
    spots = [start + at for start, begin, end in zip(starts, begins, ends, strict=False) for at in range(begin, end)]
    device = batch.offsets.device
    places = batch.past + torch.tensor(begins, dtype=torch.int64, device=device)
    pasts = tuple(past + begin for past, begin in zip(batch.pasts, begins, strict=True))
    sub = lay_out(sizes, pasts, batch.totals, batch.phase, (1, len(spots)), device, places)
    return replace(sub, rows=batch.rows), torch.tensor(spots, dtype=torch.int64, device=device)


def everything(group: HeadGroup, form: Form, batch: Batch) -> tuple[Tensor, LaunchLists]:
    """Rows [S, G, R] that show all earlier keys, and one list for all queries of each sequence, which lists nothing."""
    every = replace(group, sink=0, near=(FULL,), strides=(), powers=(), choices=())
    row = torch.arange(batch.sequences, device=batch.offsets.device)
    nothing = torch.zeros(1, batch.sequences, 1, dtype=torch.int32, device=row.device)
    return rows(alone(every), form, batch), LaunchLists(nothing, nothing[..., 0], row, UNBOUNDED, 1)
