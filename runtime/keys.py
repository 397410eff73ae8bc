"""Where the keys and values of one attention call lie: packed new tokens or cache storage, described by numbers alone.

Legend: S sequences; G KV heads; D key width; E value width; slots: the places of one head of one sequence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from .sizes import UNBOUNDED, alike, largest


@dataclass(frozen=True)
class Steps:
    """A band inside a flat storage, in elements: where place 0's first head begins, the distance to the next of each."""

    offset: int
    place: int
    head: int
    slot: int
    width: int

    def heads_on(self, count: int) -> Steps:
        """The same without the first `count` heads."""
        return replace(self, offset=self.offset + count * self.head)


@dataclass(frozen=True)
class Band:
    """KV heads first..last (both included) whose slots are laid out alike: `pinned` fixed ones, then a ring of `ring`."""

    first: int
    last: int
    k: Steps
    v: Steps
    pinned: int = 0
    ring: int = UNBOUNDED


@dataclass(frozen=True)
class Run:
    """Keys at consecutive positions start, start + 1, ...: views k [S, heads, L, D] and v [S, heads, L, E] of the storage."""

    start: int
    k: Tensor
    v: Tensor


@dataclass(frozen=True, eq=False)
class KeyPart:
    """Keys and values of S sequences and G heads in flat storages; kernels read the tensors, slow providers call `read`.

    Slot r of head g of sequence s is the D elements from k_begin[s, g] + r * k_stride on (values likewise), and holds the
    token at position

        base + r                                                         r < pinned, if r < stored
        base + q,  q = last - ((last - r) mod ring),  last = stored - 1  r >= pinned, if q >= pinned

    (non-negative mod); otherwise nothing is there. With pinned = 0 and ring = UNBOUNDED, as
    of packed keys and growing caches, that is base + r for r < stored. Empty slots hold anything, NaN too. Keys without a
    position (`persistent`) have base = -n: a negative position is below every `sink`, hence visible to every query.

    k, v        flat storages, any float dtype
    k_begin     [S, G] int64, element of slot 0; v_begin likewise
    k_stride    elements between slots; v_stride likewise
    stored      [S] int32, tokens stored so far (more than there are slots once a ring is full)
    base        [S] int32, position of the first token
    pinned, ring [G] int32
    max_stored  largest element of `stored`
    k_width, v_width  D and E
    bands, counts, bases  the same facts on the host: layout of the heads, `stored` and `base` of each sequence
    places      where each sequence begins, in units of its bands' `Steps.place` (a row of a cache, a token of packed keys)
    """

    k: Tensor
    v: Tensor
    k_begin: Tensor
    v_begin: Tensor
    k_stride: int
    v_stride: int
    stored: Tensor
    base: Tensor
    pinned: Tensor
    ring: Tensor
    max_stored: int
    k_width: int
    v_width: int
    bands: tuple[Band, ...]
    counts: tuple[int, ...]
    bases: tuple[int, ...]
    places: tuple[int, ...]

    def holding(self, k: Tensor, v: Tensor) -> KeyPart:
        """The same layout of other storages."""
        return replace(self, k=k, v=v)

    def select(self, sequences: Sequence[int]) -> KeyPart:
        """The same storage for some of its sequences only, in the order given."""
        index = torch.tensor(sequences, dtype=torch.int64, device=self.k_begin.device)
        counts = tuple(self.counts[s] for s in sequences)
        return replace(
            self,
            k_begin=self.k_begin[index],
            v_begin=self.v_begin[index],
            stored=self.stored[index],
            base=self.base[index],
            max_stored=largest(counts),
            counts=counts,
            bases=tuple(self.bases[s] for s in sequences),
            places=tuple(self.places[s] for s in sequences),
        )

    def heads(self, first: int, last: int) -> KeyPart:
        """KV heads first..last of the same storage, counted from 0."""
        bands = tuple(
            replace(
                band,
                first=max(band.first, first) - first,
                last=min(band.last, last) - first,
                k=band.k.heads_on(max(0, first - band.first)),
                v=band.v.heads_on(max(0, first - band.first)),
            )
            for band in self.bands
            if band.first <= last and first <= band.last
        )
        k_begin, v_begin = (begin[:, first : last + 1].contiguous() for begin in (self.k_begin, self.v_begin))
        pinned, ring = self.pinned[first : last + 1], self.ring[first : last + 1]
        return replace(self, k_begin=k_begin, v_begin=v_begin, pinned=pinned, ring=ring, bands=bands)

    @property
    def rings(self) -> bool:
        """Whether any head's slots turn."""
        return any(band.ring < UNBOUNDED for band in self.bands)

    @property
    def max_slots(self) -> int:
        """The most slots of a sequence that hold something, of any head."""
        return largest([min(self.max_stored, band.pinned + band.ring) for band in self.bands])

    @property
    def shared(self) -> bool:
        """Whether all sequences read the same keys."""
        return len(self.places) > 1 and alike(self.places)

    @property
    def even(self) -> bool:
        """Whether all sequences hold equally many keys from the same position on, at equal distances: one view serves all."""
        gaps = [after - before for before, after in pairwise(self.places)]
        return alike(self.counts) and alike(self.bases) and (not gaps or (alike(gaps) and gaps[0] >= 0))

    def read(self, first: int, last: int, sequence: int | None = None) -> tuple[Run, ...]:
        """The stored keys of heads first..last (of one band) in rising order of position, as views; slots that hold nothing are
        not touched. Of one sequence, or of all if the part is `even`. No device is waited for.
        """
        band = next(band for band in self.bands if band.first <= first and last <= band.last)
        which = (sequence,) if sequence is not None else tuple(range(len(self.counts)))
        stored, base = self.counts[which[0]], self.bases[which[0]]
        runs = []
        for slot, position, length in slot_runs(stored, band.pinned, band.ring):
            k, v = (
                self._view(x, band, steps, which, first, last, slot, length)
                for x, steps in ((self.k, band.k), (self.v, band.v))
            )
            runs.append(Run(base + position, k, v))
        return tuple(runs)

    def _view(
        self, flat: Tensor, band: Band, steps: Steps, which: tuple[int, ...], first: int, last: int, slot: int, length: int
    ) -> Tensor:
        gap = self.places[which[1]] - self.places[which[0]] if len(which) > 1 else 0
        begin = steps.offset + self.places[which[0]] * steps.place + (first - band.first) * steps.head + slot * steps.slot
        size = (len(which), last - first + 1, length, steps.width)
        return flat[begin:].as_strided(size, (gap * steps.place, steps.head, steps.slot, 1))


def slot_runs(stored: int, pinned: int, ring: int) -> tuple[tuple[int, int, int], ...]:
    """(slot, position, length) of the stretches of slots that hold consecutive positions, in rising order of position."""
    head = min(stored, pinned)
    oldest = max(head, stored - ring)
    start = pinned + (oldest - pinned) % ring
    before_wrap = min(stored - oldest, pinned + ring - start)
    runs = ((0, 0, head), (start, oldest, before_wrap), (pinned, oldest + before_wrap, stored - oldest - before_wrap))
    return tuple(run for run in runs if run[2] > 0)


def packed_keys(k: Tensor, v: Tensor, offsets: Tensor, sizes: Sequence[int], past: Tensor, pasts: Sequence[int]) -> KeyPart:
    """New keys k [T, G, D] and values v [T, G, E] of sequences that begin at offsets [S + 1] and position past [S]."""
    heads, k_width, v_width = k.shape[1], k.shape[2], v.shape[2]
    head = torch.arange(heads, device=k.device)
    begin = offsets[:-1, None] * heads + head
    band = Band(
        0,
        heads - 1,
        Steps(0, heads * k_width, k_width, heads * k_width, k_width),
        Steps(0, heads * v_width, v_width, heads * v_width, v_width),
    )
    return KeyPart(
        k=k.reshape(-1),
        v=v.reshape(-1),
        k_begin=begin * k_width,
        v_begin=begin * v_width,
        k_stride=heads * k_width,
        v_stride=heads * v_width,
        stored=(offsets[1:] - offsets[:-1]).to(torch.int32),
        base=past.to(torch.int32),
        pinned=torch.zeros(heads, dtype=torch.int32, device=k.device),
        ring=torch.full((heads,), UNBOUNDED, dtype=torch.int32, device=k.device),
        max_stored=largest(sizes),
        k_width=k_width,
        v_width=v_width,
        bands=(band,),
        counts=tuple(sizes),
        bases=tuple(pasts),
        places=(0, *accumulate(sizes))[:-1],
    )


def persistent_keys(k: Tensor, v: Tensor, sequences: int) -> KeyPart:
    """Learned keys k [n, G, D] and values v [n, G, E], the same for every sequence, at positions -n..-1: always seen."""
    n, heads = k.shape[0], k.shape[1]
    zeros = torch.zeros(sequences, dtype=torch.int64, device=k.device)
    one = packed_keys(k, v, torch.tensor([0, n], device=k.device), (n,), zeros[:1] - n, (-n,))
    return replace(
        one,
        k_begin=one.k_begin.expand(sequences, heads),
        v_begin=one.v_begin.expand(sequences, heads),
        stored=(zeros + n).to(torch.int32),
        base=(zeros - n).to(torch.int32),
        counts=(n,) * sequences,
        bases=(-n,) * sequences,
        places=(0,) * sequences,
    )
