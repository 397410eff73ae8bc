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
    distances  [C, S, n] uint8, by how far a key of a listed unit lies back whether it is read; None: all are
    taken      what another launch reads beside the intervals, and this one leaves out
    """

    index: Tensor
    count: Tensor
    row_begin: Tensor
    many: int
    rows: int
    distances: Tensor | None = None
    taken: Taken | None = None


@dataclass(frozen=True, eq=False)
class Taken:
    """Which units a list has: table [C, r, units] uint8, rows as `LaunchLists` has them."""

    table: Tensor
    row_begin: Tensor
    many: int

    @classmethod
    def of(cls, lists: LaunchLists, units: int) -> Taken:
        """What lists have of so many units."""
        inside = torch.arange(lists.index.shape[2], device=lists.index.device) < lists.count.unsqueeze(-1)
        table = torch.zeros(*lists.index.shape[:2], units + 1, dtype=torch.uint8, device=lists.index.device)
        table.scatter_(2, torch.where(inside, lists.index.long().clamp(max=units), units), 1)
        return cls(table[..., :units].contiguous(), lists.row_begin, lists.many)


def by_distance(lists: Sequence[Lists], unit: int, batch: Batch) -> LaunchLists:
    """Distances that are shared by all queries of a sequence, as lists of the units of keys that some query of a block sees.

    A block of as many queries as a unit has keys sees, at distance d, keys of the units ceil(d / unit) and floor(d / unit)
    before its own: the same for every block.
    """
    device, length = batch.offsets.device, largest([past + size for past, size in zip(batch.pasts, batch.sizes, strict=True)])
    blocks = -(-length // unit)
    kept = torch.zeros(len(lists[0].index), batch.sequences, length + 1, dtype=torch.uint8, device=device)
    most = min(blocks, 2 * max(one.index.shape[2] for one in lists))
    index, counts = [], []
    for s, one in enumerate(lists):
        inside = torch.arange(one.index.shape[2], device=device) < one.count[:, :1]
        far = torch.where(inside, one.index[:, 0].long().clamp(max=length), length)
        kept[:, s].scatter_(1, far, 1)
        back = torch.zeros(len(far), blocks + 2, dtype=torch.bool, device=device)
        for number in (far // unit, -(-far // unit)):
            back.scatter_(1, torch.where(far < length, number, blocks + 1), True)
        first, end = batch.pasts[s] // unit, -(-(batch.pasts[s] + batch.sizes[s]) // unit)
        own = torch.arange(first, end if batch.sizes[s] else first, device=device)
        ordered = torch.where(back[:, :blocks], torch.arange(blocks, device=device), blocks).sort(-1).values[:, :most]
        count = back.cumsum(-1)[:, own]  # of units that do not lie before the text
        place = (count.unsqueeze(-1) - 1 - torch.arange(most, device=device)).clamp(min=0)  # the furthest first
        at = own[:, None] - ordered.unsqueeze(1).expand(-1, len(own), -1).gather(2, place)
        index.append(at.to(torch.int32))
        counts.append(torch.where(one.count[:, :1] < 0, -1, count).to(torch.int32))
    begins, rows = row_begins(batch, unit)
    return LaunchLists(torch.cat(index, 1), torch.cat(counts, 1), begins, unit, rows, kept[..., :length].contiguous())


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
