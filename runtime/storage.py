"""One layer's storage while decoding: slots for keys and values that grow or turn, and states of a fixed size.

Legend: S sequences; G KV heads; D key width; E value width. Keys of a layer lie in one flat storage, head-major: for each band
of heads with like slots [heads][S][slots][D] (values likewise), so one launch serves heads with different numbers of slots.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .batch import Batch
from .keys import Band, KeyPart, Steps
from .pooled import Pooled, runs
from .sizes import DECODE_TOKENS, UNBOUNDED, Number, largest, resolve

SPARE = DECODE_TOKENS - 1
"""Slots of a ring beyond `recent`: the first of 16 tokens written together still sees its whole window."""


@dataclass(frozen=True)
class Growing:
    """Every token up to the cache's max_length."""


@dataclass(frozen=True)
class Ring:
    """The first `pinned` tokens and the last `recent` (their own number: a window of n needs n). Shares are of max_length."""

    pinned: Number
    recent: Number


@dataclass(frozen=True)
class Slots:
    """KV heads first..last (both included) that keep the same tokens."""

    first: int
    last: int
    keep: Growing | Ring


@dataclass(frozen=True)
class State:
    """A tensor per sequence, [S, *shape], zeros at the start of a sequence; dtype: the least that it has in any cache, or
    integers.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype | None = None

    def kept_as(self, dtype: torch.dtype) -> torch.dtype:
        """The number format in a cache of `dtype`; that of whole numbers is their own."""
        own = self.dtype or dtype
        return torch.promote_types(dtype, own) if own.is_floating_point else own


@dataclass(frozen=True)
class LayerPlan:
    """What one layer keeps. `slots` cover the KV heads in order, or are empty. `keys_from`: an earlier layer whose keys this
    layer reads (it keeps values alone); that layer has the same slots. `pooled`: what it keeps of runs of keys. `value_dtype`:
    the least that values have in any cache.
    """

    slots: tuple[Slots, ...] = ()
    key_width: int = 0
    value_width: int = 0
    keys_from: int | None = None
    states: tuple[State, ...] = ()
    pooled: tuple[Pooled, ...] = ()
    value_dtype: torch.dtype | None = None


@dataclass(frozen=True)
class _Ring:
    """One band's storage as numbers: `size` slots of `heads` heads; a growing band has no pinned slots and an endless ring."""

    first: int
    last: int
    pinned: int
    ring: int
    size: int

    @property
    def heads(self) -> int:
        return self.last - self.first + 1


class LayerCache:
    """One layer's storage. Made by `Cache`; layers write and read their own. `direct`: its states lie here."""

    direct = True

    def __init__(
        self, plan: LayerPlan, rows: int, max_length: int, dtype: torch.dtype, device: torch.device, keys: LayerCache | None
    ) -> None:
        self.plan = plan
        self._bands = tuple(_band(slots, max_length) for slots in plan.slots)
        self._rows = rows
        places = sum(band.heads * band.size for band in self._bands) * rows
        assert keys is None or keys._bands == self._bands, "a layer keeps the same slots as the layer whose keys it reads"
        self.owns_keys = keys is None
        self.lends_keys = False
        self._waiting: list[tuple[Tensor, Tensor, Batch]] = []
        self._after: list[tuple[str, Tensor | slice, Tensor]] = []
        self._later: list[Callable[[], object]] = []
        if keys is not None:
            keys.lends_keys = True
        self.k_width: int = plan.key_width if keys is None else keys.k_width
        self.k: Tensor = torch.empty(places * plan.key_width, dtype=dtype, device=device) if keys is None else keys.k
        exact = torch.promote_types(dtype, plan.value_dtype or dtype)
        self.v = torch.empty(places * plan.value_width, dtype=exact, device=device)
        self.states = {
            state.name: torch.zeros(rows, *state.shape, dtype=state.kept_as(dtype), device=device) for state in plan.states
        }
        self._pooled = {
            one.name: torch.empty(rows, one.heads, runs(max_length, one.span, one.step), one.width, dtype=dtype, device=device)
            for one in plan.pooled
        }
        self.bands = self._layout()
        heads = sum(band.heads for band in self._bands)
        begin = torch.tensor(self._slot_zero(), dtype=torch.int64, device=device).view(rows, heads)
        self._k_begin, self._v_begin = begin * self.k_width, begin * plan.value_width
        per_head = [(band.pinned, band.ring) for band in self._bands for _ in range(band.heads)]
        numbers = torch.tensor(per_head, dtype=torch.int32, device=device).view(heads, 2)
        self._pinned, self._ring = numbers[:, 0].contiguous(), numbers[:, 1].contiguous()

    def _layout(self) -> tuple[Band, ...]:
        bands, start = [], 0
        for band in self._bands:
            k, v = (self._steps(start, band, width) for width in (self.k_width, self.plan.value_width))
            bands.append(Band(band.first, band.last, k, v, band.pinned, band.ring))
            start += band.heads * self._rows * band.size
        return tuple(bands)

    def _steps(self, start: int, band: _Ring, width: int) -> Steps:
        return Steps(start * width, band.size * width, self._rows * band.size * width, width, width)

    def _slot_zero(self) -> list[list[int]]:
        """[S][G], the number of slots before slot 0 of each sequence and head."""
        table: list[list[int]] = [[] for _ in range(self._rows)]
        start = 0
        for band in self._bands:
            for _ in range(band.heads):
                for row in table:
                    row.append(start)
                    start += band.size
        return table

    def write(self, k: Tensor, v: Tensor, batch: Batch) -> None:
        """Store new keys k [T, G, D] (unused where an earlier layer keeps them) and values v [T, G, E] at their positions.

        Of a call longer than a ring only the tokens that stay are written.
        """
        assert not (torch.is_grad_enabled() and v.requires_grad), "a model with a cache runs without gradients"
        for band, layout in zip(self._bands, self.bands, strict=True):
            spots, places, slots = self._targets(batch, band)
            pairs = ((self.k, k, layout.k), (self.v, v, layout.v)) if self.owns_keys else ((self.v, v, layout.v),)
            for flat, new, steps in pairs:
                chosen = new[:, band.first : band.last + 1] if spots is None else new[spots, band.first : band.last + 1]
                self._view(flat, band, steps)[:, places, slots] = chosen.transpose(0, 1).to(flat.dtype)

    def _targets(self, batch: Batch, band: _Ring) -> tuple[Tensor | None, Tensor, Tensor]:
        """Which tokens of the batch a band keeps (None: all), and the row and slot of each."""

        def make() -> tuple[Tensor | None, Tensor, Tensor]:
            rows = batch.sequence if batch.rows is None else self._chosen(batch)[batch.sequence]
            spots = _staying(batch, band)
            positions, places = (batch.positions, rows) if spots is None else (batch.positions[spots], rows[spots])
            wrapped = band.pinned + torch.remainder(positions - band.pinned, band.ring)
            return spots, places, torch.where(positions < band.pinned, positions, wrapped)

        return batch.once(("slots", band.pinned, band.ring), make)

    def write_after(self, k: Tensor, v: Tensor, batch: Batch) -> None:
        """As `write`, for a call whose past has been read: at once, or at the call's end where later layers read these keys."""
        if self.lends_keys:
            self._waiting.append((k, v, batch))  # a ring would lose keys that those layers' queries still see
        else:
            self.write(k, v, batch)

    def settle(self, keep: bool) -> None:
        """Write what waits, or (`keep` false) forget it, as it comes from a call that failed."""
        for k, v, batch in self._waiting if keep else []:
            self.write(k, v, batch)
        for name, rows, value in self._after if keep else []:
            if value is not self.states[name]:
                self.states[name][rows] = value.to(self.states[name].dtype)
        for change in self._later if keep else []:
            change()
        self._waiting.clear()
        self._after.clear()
        self._later.clear()

    def part(self, batch: Batch, written: bool) -> KeyPart:
        """The stored keys as a key part: up to the batch's past, or with its own tokens if they are `written` already."""
        sizes = batch.sizes if written else (0,) * batch.sequences
        counts = tuple(past + size for past, size in zip(batch.pasts, sizes, strict=True))
        k_begin, v_begin = self._k_begin, self._v_begin
        if batch.rows is not None:
            k_begin, v_begin = k_begin[self._chosen(batch)], v_begin[self._chosen(batch)]
        return KeyPart(
            k=self.k,
            v=self.v,
            k_begin=k_begin,
            v_begin=v_begin,
            k_stride=self.k_width,
            v_stride=self.plan.value_width,
            stored=batch.stored(written),
            base=batch.zeros(),
            pinned=self._pinned,
            ring=self._ring,
            max_stored=largest(counts),
            k_width=self.k_width,
            v_width=self.plan.value_width,
            bands=self.bands,
            counts=counts,
            bases=(0,) * batch.sequences,
            places=batch.rows or tuple(range(batch.sequences)),
        )

    def slots(self, batch: Batch, most: int) -> Tensor:
        """The keys in the first slots of the batch's sequences, at most so many, of a layer of one head: [S, slots, D]."""
        (band,), (layout,) = self._bands, self.bands
        assert band.heads == 1, "asked only of one head"
        count, rows = min(most, band.size), slice(None) if batch.rows is None else self._chosen(batch)
        return self._view(self.k, band, layout.k)[0, rows, :count]

    def filled(self, batch: Batch, most: int) -> tuple[Tensor, Tensor]:
        """The first slots of the batch's sequences, at most so many, where all heads keep alike: k [S, G, slots, D] and v."""
        (band,), (layout,) = self._bands, self.bands
        count, rows = min(most, band.size), slice(None) if batch.rows is None else self._chosen(batch)
        k, v = (
            self._view(x, band, steps)[:, rows, :count].transpose(0, 1) for x, steps in ((self.k, layout.k), (self.v, layout.v))
        )
        return k, v

    def state(self, name: str, batch: Batch) -> Tensor:
        """[S, *shape], the state of the batch's sequences; read-only."""
        state = self.states[name]
        return state if batch.rows is None else state[self._chosen(batch)]

    def set_state(self, name: str, value: Tensor, batch: Batch) -> None:
        """Replace the state of the batch's sequences by value [S, *shape] at the end of the call: one that fails leaves it."""
        rows = slice(None) if batch.rows is None else self._chosen(batch)
        self._after.append((name, rows, value))

    def later(self, change: Callable[[], object]) -> None:
        """States are changed where they lie at the end of the call: one that fails leaves them."""
        self._later.append(change)

    def places(self, batch: Batch) -> Tensor:
        """[S] int64, the row of each of the batch's sequences."""
        if batch.rows is not None:
            return self._chosen(batch)
        return batch.once(("places",), lambda: torch.arange(batch.sequences, device=self.v.device))

    def put_state(self, name: str, s: int, value: Tensor, batch: Batch) -> None:
        """Replace the state of sequence s of the batch by value [*shape] at the end of the call."""
        row = s if batch.rows is None else batch.rows[s]
        self._after.append((name, slice(row, row + 1), value.unsqueeze(0)))

    def pooled(self, name: str, batch: Batch) -> list[Tensor]:
        """[heads, runs, width] of each of the batch's sequences, to read and to write."""
        kept = self._pooled[name]
        return [kept[row] for row in batch.rows or range(batch.sequences)]

    def pooled_places(self, name: str, batch: Batch) -> tuple[Tensor, Tensor]:
        """The flat storage of pooled keys, and where the first run of each of the batch's sequences and heads lies in it."""
        kept = self._pooled[name]
        rows = torch.arange(len(kept), device=kept.device) if batch.rows is None else self._chosen(batch)
        heads = torch.arange(kept.shape[1], device=kept.device)
        return kept.view(-1), rows[:, None] * kept.stride(0) + heads * kept.stride(1)

    def used(self, longest: int) -> list[Tensor]:
        """Views of all that is kept of sequences of up to `longest` tokens, in a fixed order."""
        views = list(self.states.values())
        for band, layout in zip(self._bands, self.bands, strict=True):
            length = min(longest, band.size)
            if self.owns_keys:
                views.append(self._view(self.k, band, layout.k)[:, :, :length])
            views.append(self._view(self.v, band, layout.v)[:, :, :length])
        views += [self._pooled[one.name][:, :, : runs(longest, one.span, one.step)] for one in self.plan.pooled]
        return views

    def can_crop(self, before: int, after: int) -> bool:
        """Whether a sequence of `before` tokens can go back to its first `after` and decode as if it had never seen more."""
        if after in (before, 0):
            return True
        kept = all(before <= band.pinned + band.ring or before - after <= DECODE_TOKENS for band in self._bands)
        return kept and not self.states

    def bytes(self) -> int:
        """Bytes of the layer's own storage."""
        tensors = [self.v, *self.states.values(), *self._pooled.values(), *([self.k] if self.owns_keys else [])]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def _chosen(self, batch: Batch) -> Tensor:
        return batch.once(("rows",), lambda: torch.tensor(batch.rows, dtype=torch.int64, device=self.v.device))

    def _view(self, flat: Tensor, band: _Ring, steps: Steps) -> Tensor:
        """[heads, S, slots, width]"""
        length = band.heads * self._rows * band.size * steps.width
        return flat[steps.offset : steps.offset + length].view(band.heads, self._rows, band.size, steps.width)


def _band(slots: Slots, max_length: int) -> _Ring:
    if isinstance(slots.keep, Growing):
        return _Ring(slots.first, slots.last, 0, UNBOUNDED, max_length)
    pinned, recent = resolve(slots.keep.pinned, max_length), resolve(slots.keep.recent, max_length)
    return _Ring(slots.first, slots.last, pinned, recent + SPARE, pinned + recent + SPARE)


def _staying(batch: Batch, band: _Ring) -> Tensor | None:
    """The tokens of the batch that are still there after all are written, [T'], or None for all of them."""
    if batch.max_new <= band.ring:
        return None
    spots, start = [], 0
    for past, size in zip(batch.pasts, batch.sizes, strict=True):
        oldest = past + size - band.ring
        spots += [start + i for i in range(size) if past + i < band.pinned or past + i >= oldest]
        start += size
    return torch.tensor(spots, dtype=torch.int64, device=batch.positions.device)
