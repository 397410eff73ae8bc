"""Key sets as arithmetic: the form in which the softmax family's kernels understand every static union of key sets.

A union is `sink` (the first keys), some `Near` intervals that hold the query itself, and some far patterns. Whatever the
union, a kernel walks key blocks and asks one predicate; nothing here or there is ever of size T x T.

    lower(i) = floor((i + shift) / align) * align - shift - back
    upper(i) = i + 1                                                       causal
             = (floor((i + shift) / align) + 1) * align - shift + ahead    otherwise
    visible(i, j) = j in [lower(i), upper(i))  for any Near
                  or j < sink
                  or (i - j) % n == 0          for any stride n
                  or |floor(i / n) - floor(j / n)| in {0, 1, 2, 4, ...}    for any power_of_two n
    and j <= i if causal
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from attnc.compiler.value import Share, Tokens, Value, tokens_of

UNBOUNDED = 2**30
"""More tokens than any sequence has; a Near interval with this `back` reaches the first key."""

COUNTED_ROWS = 2048
"""Rows whose far keys are counted one by one; of longer calls so many are, spread evenly."""


class Near(Value):
    """An interval of keys around the query: its block of `align` (begun `shift` earlier), `back` more before, `ahead` after.

    `align`, `back` and `ahead` count tokens or are shares of the length; a share in `back` or `ahead` counts the own block too.
    `shift` counts tokens or is a share of `align`, rounded up. `resolve` turns shares into tokens.
    """

    align: Tokens = 1
    shift: Tokens = 0
    back: Tokens = 0
    ahead: Tokens = 0


class Intervals(Value):
    """One union of static key sets, in normal form: no part is contained in another, parts are sorted."""

    sink: Tokens = 0
    near: tuple[Near, ...] = ()
    strides: tuple[int, ...] = ()
    powers: tuple[int, ...] = ()
    causal: bool = True


def resolve(intervals: Intervals, length: int) -> Intervals:
    """The same union for sequences of `length` tokens: every share a number of tokens, in normal form."""
    if not has_shares(intervals):
        return intervals
    near = []
    for part in intervals.near:
        align = tokens_of(part.align, length)
        shift = align - int(align * (100 - part.shift.percent) / 100) if isinstance(part.shift, Share) else part.shift
        back, ahead = (max(0, s.of(length) - align) if isinstance(s, Share) else s for s in (part.back, part.ahead))
        near.append(Near(align=align, shift=shift % align, back=back, ahead=ahead))
    return union([replace(intervals, near=tuple(near), sink=tokens_of(intervals.sink, length))])


def has_shares(intervals: Intervals) -> bool:
    """Whether a size depends on the length of the sequence."""
    for near in intervals.near:
        for size in (near.align, near.shift, near.back, near.ahead):
            if isinstance(size, Share):
                return True
    return isinstance(intervals.sink, Share)


def is_full(intervals: Intervals) -> bool:
    """Whether every key that causality allows is seen, at any length."""
    return any(_is_everything(part, intervals.causal) for part in intervals.near)


def visible(i: Any, j: Any, intervals: Intervals) -> Any:
    """The predicate for resolved intervals, on numbers or on integer tensors of positions (not negative)."""
    seen = (j < intervals.sink) & (i >= 0)
    for part in intervals.near:
        start = (i + part.shift) // part.align * part.align - part.shift
        end = i + 1 if intervals.causal else start + part.align + part.ahead
        seen = seen | ((j >= start - part.back) & (j < end))
    for n in intervals.strides:
        seen = seen | ((i - j) % n == 0)
    for n in intervals.powers:
        distance = abs(i // n - j // n)
        seen = seen | (distance & (distance - 1) == 0)
    return seen & (j <= i) if intervals.causal else seen


def union(parts: Iterable[Intervals]) -> Intervals:
    """All keys of all `parts`, in normal form: a part is dropped if another provably holds it for every query and length."""
    found = list(parts)
    assert found, "a union of nothing"
    causal = found[0].causal
    assert all(part.causal == causal for part in found), "one union looks in one direction"
    near = _without_contained({one for part in found for one in part.near}, causal)
    if any(_is_everything(one, causal) for one in near):
        return Intervals(near=near, causal=causal)
    strides = {n for part in found for n in part.strides}
    powers = {n for part in found for n in part.powers}
    near = tuple(one for one in near if not any(_in_power(one, n, causal) for n in powers))
    if strides or powers:
        near = tuple(one for one in near if one != Near())
    return Intervals(
        sink=_largest([part.sink for part in found]),
        near=near,
        strides=tuple(sorted(n for n in strides if not any(n != m and n % m == 0 for m in strides))),
        powers=tuple(sorted(n for n in powers if not any(n != m and m % n == 0 and (m // n).bit_count() == 1 for m in powers))),
        causal=causal,
    )


def contains(outer: Near, inner: Near, causal: bool) -> bool:
    """Whether `outer` provably holds every key of `inner`, for every query and every length."""
    if outer == inner or _is_everything(outer, causal):
        return True
    if outer.align != inner.align or outer.shift != inner.shift:
        numbers = (outer.align, outer.shift, outer.back, outer.ahead, inner.align, inner.shift, inner.back, inner.ahead)
        return all(isinstance(number, int) for number in numbers) and _contains_blocks(outer, inner, causal)
    return _at_least(outer.back, inner.back) and (causal or _at_least(outer.ahead, inner.ahead))


def _contains_blocks(outer: Near, inner: Near, causal: bool) -> bool:
    """Containment of different blockings, all in tokens: how much more the outer interval must reach in the worst row."""
    assert isinstance(outer.align, int)
    assert isinstance(inner.align, int)
    assert isinstance(outer.shift, int)
    assert isinstance(inner.shift, int)
    larger, smaller = max(outer.align, inner.align), min(outer.align, inner.align)
    nested = larger % smaller == 0 and (outer.shift - inner.shift) % smaller == 0
    # nested: nothing more if the inner blocks lie within the outer ones; else as if the inner were a window of its reach
    more = inner.align - (smaller if nested else 1)
    sides = [(outer.back, inner.back)] if causal else [(outer.back, inner.back), (outer.ahead, inner.ahead)]
    return all(isinstance(o, int) and isinstance(i, int) and o >= i + more for o, i in sides)


def _is_everything(near: Near, causal: bool) -> bool:
    return near.back == UNBOUNDED and (causal or near.ahead == UNBOUNDED)


def _in_power(near: Near, n: int, causal: bool) -> bool:
    """Blocks at distance 0, 1 and 2 touch, so power_of_two(n) holds an interval of two blocks around the own one."""
    return contains(Near(align=n, back=2 * n, ahead=0 if causal else 2 * n), near, causal)


def _without_contained(near: set[Near], causal: bool) -> tuple[Near, ...]:
    ordered = sorted(near, key=_order)
    kept: list[Near] = []
    for place, one in enumerate(ordered):
        rivals = kept + ordered[place + 1 :]
        if not any(contains(rival, one, causal) for rival in rivals):
            kept.append(one)
    return tuple(kept)


def _order(near: Near) -> tuple[tuple[bool, float], ...]:
    """Tokens before shares, small before large."""
    return tuple(_key(size) for size in (near.back, near.ahead, near.align, near.shift))


def _key(size: Tokens) -> tuple[bool, float]:
    return (True, size.percent) if isinstance(size, Share) else (False, size)


def _at_least(larger: Tokens, smaller: Tokens) -> bool:
    """Provably larger >= smaller: both in tokens, or both shares, or compared with nothing."""
    return smaller == 0 or (isinstance(larger, Share) == isinstance(smaller, Share) and _key(larger) >= _key(smaller))


def _largest(sinks: list[Tokens]) -> int:
    assert all(isinstance(sink, int) for sink in sinks), "sinks count tokens"
    return max(int(sink) for sink in sinks if not isinstance(sink, Share))


@functools.lru_cache(maxsize=4096)
def pairs(intervals: Intervals, n_query: int, n_key: int) -> float:
    """How many (query, key) pairs are visible to the last `n_query` of `n_key` positions.

    Exact for sinks and near intervals, in O(blocks). Far patterns are exact up to COUNTED_ROWS queries, sampled beyond.
    """
    numbers = resolve(intervals, n_key)
    first = n_key - n_query
    cuts = sorted({first, n_key, *(cut for cut in _kinks(numbers, first, n_key) if first < cut < n_key)})
    total = 0.0
    for start, end in itertools.pairwise(cuts):  # between two kinks the count is linear in the row
        total += (_near_keys(numbers, start, n_key) + _near_keys(numbers, end - 1, n_key)) * (end - start) / 2
    if numbers.strides or numbers.powers:
        rows = min(n_query, COUNTED_ROWS)
        step = n_query / rows
        # the golden ratio moves each sample within its part, so that no period of the pattern is in step with the samples
        picked = [first + int((k + (k * 0.618033988749895) % 1.0 * (step > 1)) * step) for k in range(rows)]
        total += step * sum(_far_keys(numbers, row, n_key) for row in picked)
    return total


def _bounds(numbers: Intervals, i: int, n_key: int) -> tuple[int, int, int]:
    """Row i sees [0, sink) and [low, high), the latter empty without near intervals."""
    high_limit = i + 1 if numbers.causal else n_key
    sink = min(int(numbers.sink), high_limit)  # type: ignore[arg-type]
    low, high = high_limit, 0
    for align, shift, back, ahead in map(_sizes, numbers.near):
        start = (i + shift) // align * align - shift
        low = min(low, max(0, start - back))
        high = max(high, min(high_limit, start + align + ahead))
    return sink, low, max(low, high)


def _near_keys(numbers: Intervals, i: int, n_key: int) -> int:
    sink, low, high = _bounds(numbers, i, n_key)
    return sink + max(0, high - max(low, sink))


def _kinks(numbers: Intervals, first: int, n_key: int) -> Iterable[int]:
    """Rows at which the number of near keys may stop being linear in the row."""
    sizes = [_sizes(near) for near in numbers.near]
    slopes = [(back, ahead) for align, _, back, ahead in sizes if align == 1]
    sink = int(numbers.sink)  # type: ignore[arg-type]
    levels = {0, sink, n_key}
    yield sink
    for align, shift, back, ahead in sizes:
        if align > 1:
            for start in range((first + shift) // align * align - shift, n_key, align):
                yield start
                for level in (start - back, start + align + ahead):
                    yield from _crossings(level, slopes)
    for level in levels:
        yield from _crossings(level, slopes)


def _crossings(level: int, slopes: list[tuple[int, int]]) -> Iterable[int]:
    """Rows at which a window's first or last key passes `level`."""
    for back, ahead in slopes:
        yield level + back
        yield level - 1 - ahead


def _far_keys(numbers: Intervals, i: int, n_key: int) -> int:
    """Keys of row i that only strides and powers of two show."""
    sink, low, high = _bounds(numbers, i, n_key)
    end = i + 1 if numbers.causal else n_key
    holes = [(sink, max(low, sink)), (max(high, sink), end)] if high > low else [(sink, end)]
    count = 0
    for n in numbers.powers:
        block, last = i // n, (end - 1) // n
        hops = [0, *(1 << k for k in range(max(block, last - block, 1).bit_length()))]
        for key_block in {block + sign * hop for hop in hops for sign in (-1, 1)}:
            count += sum(max(0, min(b, key_block * n + n) - max(a, key_block * n)) for a, b in holes if key_block >= 0)
            holes = [part for a, b in holes for part in _minus(a, b, key_block * n, key_block * n + n)]
    for size in range(1, len(numbers.strides) + 1):
        for chosen in itertools.combinations(numbers.strides, size):
            n = math.lcm(*chosen)
            count += (-1) ** (size + 1) * sum((b - 1 - i) // n - (a - 1 - i) // n for a, b in holes if a < b)
    return count


def _minus(a: int, b: int, low: int, high: int) -> list[tuple[int, int]]:
    """[a, b) without [low, high)."""
    return [part for part in ((a, min(b, low)), (max(a, high), b)) if part[0] < part[1]]


def _sizes(near: Near) -> tuple[int, int, int, int]:
    """align, shift, back, ahead of a resolved interval."""
    sizes = (near.align, near.shift, near.back, near.ahead)
    align, shift, back, ahead = (size for size in sizes if not isinstance(size, Share))
    return align, shift, back, ahead
