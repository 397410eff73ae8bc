"""What content chose for all sequences of a launch, as kernels read it.

Legend: S sequences; C choosers: query heads, KV heads, or one for all; r rows of all sequences, one after another; m units.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor

from .batch import Batch
from .selector import Lists, Selector
from .sizes import UNBOUNDED, largest


@dataclass(frozen=True, eq=False)
class LaunchLists:
    """A sequence's queries at positions n `many`, n `many` + 1, ... share row n - past // many of those from `row_begin` on.

    index      [C, r, m] int32, numbers of units in rising order; from count on anything
    count      [C, r] int32; -1 where a score was NaN
    row_begin  [S] int64
    many       UNBOUNDED: all queries of a sequence share a row
    rows       the most rows of a sequence
    """

    index: Tensor
    count: Tensor
    row_begin: Tensor
    many: int
    rows: int


def row_begins(batch: Batch, many: int) -> tuple[Tensor, int]:
    """The first row of each sequence [S], and the most rows of one."""
    if many == 1:  # a row for each query
        return batch.offsets[:-1], batch.max_new
    sizes = zip(batch.sizes, batch.pasts, strict=True)
    counts = [-(-(past + size) // many) - past // many if size else 0 for size, past in sizes]
    begins = [0, *accumulate(counts)][:-1]
    return torch.tensor(begins, dtype=torch.int64, device=batch.offsets.device), largest(counts)


def asked_by(selector: Selector, stepwise: bool) -> int:
    """How many neighbouring queries share a row of the lists of a call; `stepwise`: each decides by itself."""
    if stepwise or selector.asks == "each":
        return 1
    return UNBOUNDED if selector.asks == "last" and selector.keys != "joined" else selector.many


def together(lists: Sequence[Lists], many: int, batch: Batch) -> LaunchLists:
    """The lists of each sequence of a batch as one launch reads them."""
    most = max(one.index.shape[2] for one in lists)
    index = torch.cat([F.pad(one.index, (0, most - one.index.shape[2])) for one in lists], dim=1)
    count = torch.cat([one.count for one in lists], dim=1)
    begins, rows = row_begins(batch, many)
    return LaunchLists(index.contiguous(), count.contiguous(), begins, many, rows)
