"""Host arithmetic of the slow providers: which heads go together, and which stretches of keys a block of queries can see."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .batch import Batch
from .intervals import Form, HeadGroup, row
from .keys import KeyPart, Run
from .sizes import UNBOUNDED, alike

Stretch = tuple[int, int]
"""First position (or index) and the one after the last."""


@dataclass(frozen=True)
class Numbers:
    """One group's row for one length, by name; nears are (align, shift, back, ahead)."""

    sink: int
    nears: tuple[tuple[int, int, int, int], ...]
    strides: tuple[int, ...]
    powers: tuple[int, ...]
    causal: bool

    @classmethod
    def of(cls, group: HeadGroup, length: int, causal: bool) -> Numbers:
        """The numbers of `group` in a sequence of `length` tokens."""
        form = Form.of((group,), causal)
        flat = row(group, form, length)
        ends = 1 + 4 * form.nears, 1 + 4 * form.nears + form.strides
        nears = tuple((flat[p], flat[p + 1], flat[p + 2], flat[p + 3]) for p in range(1, ends[0], 4))
        return cls(flat[0], nears, flat[ends[0] : ends[1]], flat[ends[1] :], causal)

    def sees_all_before(self, first_key: int, last_query: int) -> bool:
        """Whether every query up to `last_query` sees all keys from `first_key` to itself."""
        return any(lower(near, last_query) <= first_key for near in self.nears)


def lower(near: tuple[int, int, int, int], i: int) -> int:
    """First position that query i sees through `near`."""
    align, shift, back, _ = near
    return (i + shift) // align * align - shift - back


def upper(near: tuple[int, int, int, int], i: int, causal: bool) -> int:
    """The position after the last that query i sees through `near`."""
    align, shift, _, ahead = near
    return i + 1 if causal else ((i + shift) // align + 1) * align - shift + ahead


def reach(numbers: Numbers, first: int, last: int) -> list[Stretch]:
    """Positions outside which no query first..last sees a key; of a single query without strides, exactly those it sees."""
    found = [(-UNBOUNDED, numbers.sink)]
    found += [(lower(near, first), upper(near, last, numbers.causal)) for near in numbers.nears]
    found += [(0, UNBOUNDED)] * len(numbers.strides)
    for n in numbers.powers:
        distance, blocks = 0, (first // n, last // n)
        while distance <= blocks[1]:
            found.append(((blocks[0] - distance) * n, (blocks[1] - distance + 1) * n))
            distance = 2 * distance or 1
        distance = 1
        while not numbers.causal and distance < UNBOUNDED // n:
            found.append(((blocks[0] + distance) * n, (blocks[1] + distance + 1) * n))
            distance *= 2
    end = last + 1 if numbers.causal else 2 * UNBOUNDED
    return joined([(low, min(high, end)) for low, high in found])


def joined(stretches: list[Stretch]) -> list[Stretch]:
    """The same positions in rising order, without overlaps or empty stretches."""
    result: list[Stretch] = []
    for low, high in sorted(stretches):
        if high <= low:
            continue
        if result and low <= result[-1][1]:
            result[-1] = (result[-1][0], max(result[-1][1], high))
        else:
            result.append((low, high))
    return result


def indices(stretches: list[Stretch], runs: Sequence[Run]) -> list[Stretch]:
    """Where keys at those positions stand among the concatenated keys of `runs`."""
    found, offset = [], 0
    for run in runs:
        length = run.k.shape[2]
        for low, high in stretches:
            first, end = max(low - run.start, 0), min(high - run.start, length)
            if first < end:
                found.append((offset + first, offset + end))
        offset += length
    return joined(found)


def visible(numbers: Numbers, i: Tensor, j: Tensor) -> Tensor:
    """The predicate of intervals.py on query positions i [n, 1] and key positions j [1, L] -> bool [n, L]."""
    seen = (j < numbers.sink) | (j < 0)
    for align, shift, back, ahead in numbers.nears:
        start = torch.div(i + shift, align, rounding_mode="floor") * align - shift
        end = i + 1 if numbers.causal else start + align + ahead
        seen = seen | ((j >= start - back) & (j < end))
    for n in numbers.strides:
        seen = seen | (torch.remainder(i - j, n) == 0)
    for n in numbers.powers:
        blocks = (torch.div(i, n, rounding_mode="floor") - torch.div(j, n, rounding_mode="floor")).abs()
        seen = seen | ((blocks & (blocks - 1)) == 0)  # 0 or a power of two
    return seen & (j <= i) if numbers.causal else seen


def head_spans(groups: Sequence[HeadGroup], parts: Sequence[KeyPart]) -> list[tuple[int, int, HeadGroup]]:
    """(first, last, group) of neighbouring KV heads that share a group and lie in one band of every part."""
    starts = {group.first for group in groups} | {band.first for part in parts for band in part.bands}
    ends = {group.last for group in groups} | {band.last for part in parts for band in part.bands}
    spans = []
    for group in groups:
        firsts = sorted(first for first in starts | {end + 1 for end in ends} if group.first <= first <= group.last)
        lasts = [first - 1 for first in firsts[1:]] + [group.last]
        spans += [(first, last, group) for first, last in zip(firsts, lasts, strict=True)]
    return spans


def exact(batch: Batch, parts: Sequence[KeyPart]) -> tuple[Batch, tuple[KeyPart, ...]]:
    """Both with counts that are plain numbers: while torch.compile traces, counts may be symbols, and host arithmetic
    that loops and sorts needs a graph for each length.
    """
    if not torch.compiler.is_compiling():
        return batch, tuple(parts)
    sizes, pasts, totals = _plain(batch.sizes), _plain(batch.pasts), _plain(batch.totals)
    kept = [replace(p, counts=_plain(p.counts), bases=_plain(p.bases), places=_plain(p.places)) for p in parts]
    return replace(batch, sizes=sizes, pasts=pasts, totals=totals), tuple(kept)


def _plain(counts: Sequence[int]) -> tuple[int, ...]:
    return tuple(len(range(n)) if n >= 0 else -len(range(-n)) for n in counts)


def even(batch: Batch, parts: Sequence[KeyPart]) -> bool:
    """Whether one view of q and of each part serves all sequences, with the same keys visible in each."""
    return batch.even and alike(batch.totals) and all(part.even for part in parts)
