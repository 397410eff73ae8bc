"""Which blocks of 128 keys each block of 128 queries reads: lists made from the numbers of a launch, never from a mask.

Legend: S sequences; P patterns, one for each set of heads that see alike; R numbers of a row (intervals.py); NQ, NK blocks of
queries and of keys; W the room of a list.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .sizes import UNBOUNDED

BLOCK = 128

WHOLE = 2**20
"""Lists are as long as there are columns while they hold no more numbers than this: PyTorch expects it, on a CPU it insists."""


class Stretch(NamedTuple):
    """`size` queries or keys of one sequence at positions `position`, `position + 1`, ..."""

    sequence: int
    position: int
    size: int


class Lists(NamedTuple):
    """For each row of blocks how many columns it has, counts [P, rows], and which, members [P, rows, W], both int32."""

    counts: Tensor
    members: Tensor


class BlockLists(NamedTuple):
    """Blocks that some query and key of theirs are visible in (`partial`), and those that are visible as a whole (`full`).

    `by_query`: rows are blocks of queries, columns blocks of keys; `by_key`: the same the other way round.
    """

    partial_by_query: Lists
    full_by_query: Lists
    partial_by_key: Lists
    full_by_key: Lists


class _Segments(NamedTuple):
    """Queries that lie in one block and belong to one sequence: its number, their block, first and last position."""

    ordinal: Tensor
    block: Tensor
    first: Tensor
    last: Tensor
    whole: Tensor
    """Whether they are all queries of the block."""


class _Range(NamedTuple):
    """Positions [low, high) a segment, seen by some of its queries or (`full`) by all of them."""

    low: Tensor
    high: Tensor
    full: bool


def block_lists(
    patterns: Sequence[Tensor], nears: int, strides: int, causal: bool, queries: Sequence[Stretch], keys: Sequence[Stretch]
) -> BlockLists:
    """The lists of every pattern. `patterns`: its rows, [S, R], or [1, R] where all sequences have the same numbers; a row has
    `nears` intervals and `strides` strides, and powers after them. `queries` and `keys` lie in this order, one after another;
    each sequence has one stretch of queries and any number of stretches of keys. O(blocks listed).
    """
    segments = _segments(queries)
    runs = _runs(queries, keys)
    rows, columns = (-(-sum(one.size for one in side) // BLOCK) for side in (queries, keys))
    sequence = torch.tensor([one.sequence for one in queries])[segments.ordinal]
    furthest = max((one.position + one.size for one in keys), default=0)
    partial, full = [], []
    for table in patterns:
        numbers = table[sequence if len(table) > 1 else torch.zeros_like(sequence)]
        some = [segments.block.new_zeros(0)]
        whole = [segments.block.new_zeros(0)]
        for seen in _ranges(numbers, nears, strides, causal, segments, furthest):
            for run in runs:
                found = _blocks(seen, segments, [number[segments.ordinal] for number in run], columns)
                (whole if seen.full else some).append(found)
        complete = _distinct(torch.cat(whole))
        visible = _distinct(torch.cat([*some, complete]))
        full.append(complete)
        partial.append(visible[~torch.isin(visible, complete)])
    turned = [[(code % columns * rows + code // columns).sort().values for code in codes] for codes in (partial, full)]
    return BlockLists(
        _lists(partial, rows, columns),
        _lists(full, rows, columns),
        _lists(turned[0], columns, rows),
        _lists(turned[1], columns, rows),
    )


def _distinct(numbers: Tensor) -> Tensor:
    found: Tensor = torch.unique(numbers)  # sorted
    return found


def _segments(queries: Sequence[Stretch]) -> _Segments:
    counts = torch.tensor([one.size for one in queries])
    ends = counts.cumsum(0)
    total = int(ends[-1])
    begin = _distinct(torch.cat((torch.arange(0, total, BLOCK), ends - counts)))
    end = torch.cat((begin[1:], torch.tensor([total])))
    ordinal = torch.searchsorted(ends, begin, right=True)
    first = torch.tensor([one.position for one in queries])[ordinal] + begin - (ends - counts)[ordinal]
    whole = (begin % BLOCK == 0) & ((end - begin == BLOCK) | (end == total))
    return _Segments(ordinal, begin // BLOCK, first, first + end - begin - 1, whole)


def _runs(queries: Sequence[Stretch], keys: Sequence[Stretch]) -> list[tuple[Tensor, Tensor, Tensor]]:
    """(position, index, count) of the first stretch of keys of every sequence of queries, of the second, and so on."""
    found: dict[int, list[tuple[int, int, int]]] = {one.sequence: [] for one in queries}
    index = 0
    for one in keys:
        if one.sequence in found:  # a sequence without queries may have keys
            found[one.sequence].append((one.position, index, one.size))
        index += one.size
    most = max((len(runs) for runs in found.values()), default=0)
    table = torch.tensor([runs + [(0, 0, 0)] * (most - len(runs)) for runs in found.values()], dtype=torch.int64)
    return [tuple(table[:, at].unbind(1)) for at in range(most)]  # type: ignore[misc]


def _ranges(numbers: Tensor, nears: int, strides: int, causal: bool, segments: _Segments, furthest: int) -> list[_Range]:
    """What rows [segments, R] let each segment see; keys before position 0 are seen by every query."""
    i, last = segments.first, segments.last
    everywhere = torch.full_like(i, -2 * UNBOUNDED)
    sink = numbers[:, 0].clamp(min=0)
    found = [_Range(everywhere, sink, False), _Range(everywhere, sink, True)]
    for at in range(1, 1 + 4 * nears, 4):
        near = numbers[:, at : at + 4]
        found.append(_Range(_lower(near, i), _upper(near, last, causal), False))
        found.append(_Range(_lower(near, last), _upper(near, i, causal), True))
    for at in range(1 + 4 * nears, 1 + 4 * nears + strides):
        found.append(_Range(torch.zeros_like(i), (numbers[:, at] > 0) * (2 * UNBOUNDED), False))
    for at in range(1 + 4 * nears + strides, numbers.shape[1]):
        found += _powers(numbers[:, at], segments, causal, furthest)
    if not causal:
        return found
    return [one._replace(high=torch.minimum(one.high, (i if one.full else last) + 1)) for one in found]


def _lower(near: Tensor, i: Tensor) -> Tensor:
    align, shift, back, _ = near.unbind(1)
    return (i + shift) // align * align - shift - back


def _upper(near: Tensor, i: Tensor, causal: bool) -> Tensor:
    align, shift, _, ahead = near.unbind(1)
    return i + 1 if causal else ((i + shift) // align + 1) * align - shift + ahead


def _powers(numbers: Tensor, segments: _Segments, causal: bool, furthest: int) -> list[_Range]:
    """Blocks of n tokens at distances 0, 1, 2, 4, ... from the query's; n <= 0: none."""
    n, there = numbers.clamp(min=1), numbers > 0
    first, last = segments.first // n, segments.last // n
    alone = there & (first == last)
    found = []
    distance, most = 0, max(int((last * there).max()), int((furthest // n * there).max()))
    while distance <= most:
        for step in (distance,) if causal or distance == 0 else (distance, -distance):
            low, high = (first - step) * n, (last - step + 1) * n
            found.append(_Range(low, torch.where(there, high, low), False))
            found.append(_Range(low, torch.where(alone, high, low), True))
        distance = 2 * distance or 1
    return found


def _blocks(seen: _Range, segments: _Segments, run: Sequence[Tensor], columns: int) -> Tensor:
    """row * columns + column of the blocks that the range touches (`full`: that it covers) among the keys of one run."""
    position, index, count = run
    low, high = (torch.clamp(bound - position, min=torch.zeros_like(count), max=count) for bound in (seen.low, seen.high))
    if seen.full:
        first, end = -(-(low + index) // BLOCK), (high + index) // BLOCK
        length = (end - first).clamp(min=0) * segments.whole
    else:
        first, end = (low + index) // BLOCK, -(-(high + index) // BLOCK)
        length = (end - first) * (high > low)
    start = length.cumsum(0) - length
    column = torch.arange(int(length.sum())) + (first - start).repeat_interleave(length)
    return segments.block.repeat_interleave(length) * columns + column


def _lists(codes: Sequence[Tensor], rows: int, columns: int) -> Lists:
    """Sorted codes row * columns + column of every pattern as lists of equal width."""
    counts = torch.stack([torch.bincount(code // max(columns, 1), minlength=rows) for code in codes])
    width = columns if len(codes) * rows * columns <= WHOLE else max(1, int(counts.max()))
    index = torch.zeros(len(codes), rows, width, dtype=torch.int32)
    for pattern, code in enumerate(codes):
        row = code // max(columns, 1)
        place = torch.arange(len(code)) - (counts[pattern].cumsum(0) - counts[pattern])[row]
        index[pattern, row, place] = (code % max(columns, 1)).to(torch.int32)
    return Lists(counts.to(torch.int32), index)
