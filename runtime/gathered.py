"""Queries and keys as libraries' attention functions want them: [B, heads, tokens, width], whatever parts the keys lie in.

Legend: T new tokens of S sequences; H query heads, G KV heads; D key width; E value width; N queries and L keys a row.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from .autocast import cast
from .batch import Batch
from .block_lists import Stretch
from .keys import KeyPart
from .spans import even


@dataclass(frozen=True, eq=False)
class Gathered:
    """q [B, H, N, D], k [B, G, L, D], v [B, G, L, E], and what lies where: B = S where all sequences are alike, and then
    `queries` and `keys` tell of one of them; else B = 1 and they tell of all, one after another.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    queries: tuple[Stretch, ...]
    keys: tuple[Stretch, ...]

    def flat(self, o: Tensor) -> Tensor:
        """[B, H, N, ...] -> [T, H, ...]."""
        return o.transpose(1, 2).flatten(0, 1)


def head_ranges(parts: tuple[KeyPart, ...]) -> list[tuple[int, int]]:
    """Neighbouring KV heads that lie in one band of every part: (first, last)."""
    starts = sorted({band.first for part in parts for band in part.bands})
    heads = max(band.last for band in parts[0].bands) + 1
    return [(first, after - 1) for first, after in pairwise([*starts, heads])]


def gather(q: Tensor, parts: tuple[KeyPart, ...], first: int, last: int, batch: Batch) -> Gathered:
    """KV heads first..last of the parts, which lie in one band of each, and the query heads that read them. q [T, H, D].

    Under `torch.autocast` they are in its dtype. Else nothing is copied if the keys are one part of new keys, or one run of a
    cache whose sequences are alike.
    """
    repeat = q.shape[1] // (max(band.last for band in parts[0].bands) + 1)
    q = q[:, first * repeat : (last + 1) * repeat]
    if even(batch, parts):
        rows = q.reshape(batch.sequences, batch.max_new, *q.shape[1:]).transpose(1, 2)
        queries: tuple[Stretch, ...] = (Stretch(0, batch.pasts[0], batch.max_new),)
        found = list(_runs(parts, first, last, 0, None))
    else:
        rows = q.transpose(0, 1).unsqueeze(0)
        sequences = [s for s, size in enumerate(batch.sizes) if size]
        queries = tuple(Stretch(s, batch.pasts[s], batch.sizes[s]) for s in sequences)
        alone = len(parts) == 1 and all(size or not count for size, count in zip(batch.sizes, parts[0].counts, strict=True))
        whole = packed(parts[0], first, last) if alone else None
        if whole is not None:
            keys = zip(parts[0].bases, parts[0].counts, strict=True)
            rows, k, v = cast(rows, *whole)
            return Gathered(rows, k, v, queries, tuple(Stretch(s, base, n) for s, (base, n) in enumerate(keys) if n))
        found = [run for s in sequences for run in _runs(parts, first, last, s, s)]
    heads = (rows.shape[0], last - first + 1)
    k, v = (
        torch.cat(pieces, dim=2) if len(pieces) > 1 else pieces[0] if pieces else q.new_zeros(*heads, 0, width)
        for pieces, width in (
            ([k for _, k, _ in found], parts[0].k_width),
            ([v for _, _, v in found], parts[0].v_width),
        )
    )
    rows, k, v = cast(rows, k, v)
    return Gathered(rows, k, v, queries, tuple(stretch for stretch, _, _ in found))


def _runs(
    parts: tuple[KeyPart, ...], first: int, last: int, which: int, sequence: int | None
) -> Iterator[tuple[Stretch, Tensor, Tensor]]:
    """The keys of all parts in rising order of position: of sequence `which`, or of all of them as of that one."""
    ordered = sorted((part for part in parts if part.counts[which]), key=lambda part: part.bases[which])
    for part in ordered:
        for run in part.read(first, last, sequence):
            yield Stretch(which, run.start, run.k.shape[2]), run.k, run.v


def packed(part: KeyPart, first: int, last: int) -> tuple[Tensor, Tensor] | None:
    """k [1, G, L, D] and v [1, G, L, E] of KV heads first..last of all sequences as one view each, where they follow each other
    slot by slot; else None.
    """
    band = next(band for band in part.bands if band.first <= first and last <= band.last)
    ends = [place + count for place, count in zip(part.places, part.counts, strict=True)]
    if band.k.place != band.k.slot or any(end != place for end, place in zip(ends, part.places[1:], strict=False)):
        return None
    views = []
    for flat, steps in ((part.k, band.k), (part.v, band.v)):
        begin = steps.offset + part.places[0] * steps.place + (first - band.first) * steps.head
        size = (1, last - first + 1, sum(part.counts), steps.width)
        views.append(flat.as_strided(size, (flat.numel(), steps.head, steps.slot, 1), flat.storage_offset() + begin))
    return views[0], views[1]
