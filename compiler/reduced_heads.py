"""Fewer heads with the same structure: as many query heads on each KV head, and as many owners of KV groups."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from attnc.compiler.spec import Attention, Context, Heads, Mixer, Mixing
from attnc.compiler.walk import children, rebuilt

Leaf = Attention | Mixing
Cut = tuple[int, ...]
"""The first KV group of each segment that no case of `heads` crosses, and the number of groups."""


class HeadMap:
    """KV heads -> fewer KV heads. Segments of one size keep one size, different numbers of KV heads stay different."""

    def __init__(self, mixers: list[Mixer]) -> None:
        cuts: dict[int, set[Cut]] = {}
        for mixer in mixers:
            for kv_heads in _kv_heads(mixer):
                cuts.setdefault(kv_heads, set()).add(_cut(mixer, kv_heads))
        self._cuts: dict[Cut, Cut] = {}
        self._taken: dict[int, int] = {}
        for kv_heads, found in sorted(cuts.items()):
            small = {cut: _small(cut) for cut in found}
            times = next(n for n in range(1, kv_heads + 2) if not {n * cut[-1] for cut in small.values()} & {*self._taken})
            for cut, reduced in small.items():
                self._cuts[cut] = tuple(times * start for start in reduced)
                self._taken[times * reduced[-1]] = kv_heads

    def changes(self) -> list[tuple[int, int]]:
        """(old, new) numbers of KV heads."""
        return sorted((old, new) for new, old in self._taken.items())

    def of(self, mixer: Mixer, change: Callable[[Leaf], Leaf]) -> Mixer:
        """The mixer with fewer heads, and `change` applied to its leaves."""
        return self._of(mixer, mixer, change)

    def _of(self, mixer: Mixer, layer: Mixer, change: Callable[[Leaf], Leaf]) -> Mixer:
        if isinstance(mixer, Attention | Mixing):
            a = mixer.attributes
            kv_heads = self._cuts[_cut(layer, a.kv_heads)][-1]
            heads = a.heads // a.kv_heads * kv_heads
            fewer = replace(a, kv_heads=kv_heads, heads=heads, qk_heads=max(1, heads * a.qk_heads // a.heads))
            return change(replace(mixer, attributes=fewer))
        if isinstance(mixer, Context):
            softmax = self._of(Attention(keys=(), attributes=mixer.attributes, origin=mixer.origin), layer, change)
            assert isinstance(softmax, Attention), "a leaf stays what it is"
            mixer = replace(mixer, attributes=softmax.attributes)
        if isinstance(mixer, Heads):
            cut = _cut(layer, next(_kv_heads(mixer)))
            starts = dict(zip(cut, self._cuts[cut], strict=True))
            cases = tuple(
                replace(
                    case,
                    first=starts[case.first],
                    last=starts[case.last + 1] - 1,
                    mixer=self._of(case.mixer, layer, change),
                )
                for case in mixer.cases
            )
            return replace(mixer, cases=cases)
        return rebuilt(mixer, lambda inner: self._of(inner, layer, change))


def _kv_heads(mixer: Mixer) -> Iterator[int]:
    if isinstance(mixer, Attention | Mixing | Context):
        yield mixer.attributes.kv_heads
    for inner in children(mixer):
        yield from _kv_heads(inner)


def _cut(mixer: Mixer, kv_heads: int) -> Cut:
    """Where the cases of all `heads` of a layer with so many KV heads begin, and the end."""

    def starts(inner: Mixer) -> Iterator[int]:
        if isinstance(inner, Heads) and next(_kv_heads(inner)) == kv_heads:
            yield from (case.first for case in inner.cases)
        for one in children(inner):
            yield from starts(one)

    return (*sorted({0, *starts(mixer)}), kv_heads)


def _small(cut: Cut) -> Cut:
    """Segments of 1, 2, ... groups by the rank of their size; a layer that is not split keeps two groups, or its only one."""
    sizes = [end - start for start, end in itertools.pairwise(cut)]
    if len(sizes) == 1:
        return (0, min(2, sizes[0]))
    ranks = {size: rank + 1 for rank, size in enumerate(sorted(set(sizes)))}
    reduced: list[Any] = [0]
    for size in sizes:
        reduced.append(reduced[-1] + ranks[size])
    return tuple(reduced)
