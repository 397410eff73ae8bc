"""How a call's sequences lie: all tokens of all sequences one after another, without padding, whatever the caller's layout was.

Legend: T new tokens of S sequences; B rows of N places given by the caller; W model width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from .keys import KeyPart, packed_keys
from .sizes import DECODE_TOKENS, alike, largest

if TYPE_CHECKING:
    from .cache import Cache

Made = TypeVar("Made")

PHASES = ("train", "prefill", "decode")


@dataclass(frozen=True, eq=False)
class Batch:
    """The sequences of one call. Tensors for kernels, the same counts as Python numbers for decisions on the host.

    offsets    [S + 1] int64, where each sequence's new tokens begin
    past       [S] int64, tokens already in the cache
    total      [S] int64, what `length` and shares of the length mean
    positions  [T] int64, place of each new token in its sequence
    sequence   [T] int64, sequence of each new token
    sizes, pasts, totals  new tokens, past and total of each sequence
    phase      train, prefill or decode
    rows       which row of the cache each sequence is; None: all, in order
    shape      [B, N] as the caller gave it; [1, T] if packed
    places     [T] int64, place of each token in the flattened [B * N]; None: tokens fill it in order
    """

    offsets: Tensor
    past: Tensor
    total: Tensor
    positions: Tensor
    sequence: Tensor
    sizes: tuple[int, ...]
    pasts: tuple[int, ...]
    totals: tuple[int, ...]
    phase: str
    shape: tuple[int, int]
    places: Tensor | None = None
    rows: tuple[int, ...] | None = None
    made: dict[tuple[object, ...], Any] = field(default_factory=dict, init=False, repr=False)

    def once(self, key: tuple[object, ...], make: Callable[[], Made]) -> Made:
        """What `make` gives, made once a call: layers that are alike ask for the same. (A compiler sees that by itself, and
        compiled layers may be checkpointed apart, so then nothing is kept.)
        """
        if torch.compiler.is_compiling():
            return make()
        if key not in self.made:
            self.made[key] = make()
        found: Made = self.made[key]
        return found

    @property
    def sequences(self) -> int:
        """S."""
        return len(self.sizes)

    @property
    def tokens(self) -> int:
        """T."""
        return sum(self.sizes)

    @property
    def max_new(self) -> int:
        """The most new tokens of a sequence."""
        return largest(self.sizes)

    @property
    def max_past(self) -> int:
        """The most tokens of a sequence in the cache."""
        return largest(self.pasts)

    @property
    def even(self) -> bool:
        """Whether all sequences have equally many new tokens and the same past, so that [T] is a plain [S, N]."""
        return alike(self.sizes) and alike(self.pasts)

    @classmethod
    def of(
        cls,
        inputs: Tensor,
        cache: Cache | None = None,
        lengths: Tensor | Sequence[int] | None = None,
        offsets: Tensor | Sequence[int] | None = None,
        phase: str | None = None,
        total_lengths: Tensor | Sequence[int] | int | None = None,
    ) -> tuple[Tensor, Batch]:
        """Pack tokens [B, N] (integers) or embeddings [B, N, W] (floats) into [T] or [T, W], and say how they lie.

        lengths [B]: each row's real tokens are its last ones (left padding). offsets [S + 1]: the only row holds S sequences
        one after another. total_lengths [S] or one number: length of the whole prompts of which this call is a chunk.
        ValueError where a shape or number does not fit, CacheError A508 where the cache is full. Numbers given as tensors on
        a device cost one wait for it; a plain [B, N] none.
        """
        shape = _checked_shape(inputs)
        if lengths is not None and offsets is not None:
            raise ValueError("give lengths (left-padded rows) or offsets (packed sequences), not both")
        if offsets is not None:
            sizes = _sizes_from_offsets(offsets, shape)
        elif lengths is not None:
            sizes = _sizes_from_lengths(lengths, shape)
        else:
            sizes = (shape[1],) * shape[0]
        pasts = _pasts(cache, sizes)
        seen = tuple(past + size for past, size in zip(pasts, sizes, strict=True))
        targets = seen if total_lengths is None else _counts(total_lengths, len(sizes), "total_lengths")
        totals = tuple(max(pair) for pair in zip(seen, targets, strict=True))
        unfinished = total_lengths is not None and any(past < target for past, target in zip(pasts, targets, strict=True))
        chosen = phase or decide_phase(cache is not None, largest(pasts), largest(sizes), unfinished)
        if chosen not in PHASES:
            raise ValueError(f"phase is one of {', '.join(PHASES)}, not {chosen!r}")
        flat = inputs.reshape(shape[0] * shape[1], *inputs.shape[2:])
        device = inputs.device
        batch = lay_out(sizes, pasts, totals, chosen, shape, device, None if cache is None else cache.lengths)
        if lengths is None or all(size == shape[1] for size in sizes):
            return flat, batch
        spots = [row * shape[1] + place for row, size in enumerate(sizes) for place in range(shape[1] - size, shape[1])]
        places = torch.tensor(spots, dtype=torch.int64, device=device)
        return flat[places], replace(batch, places=places)

    def unpack(self, y: Tensor) -> Tensor:
        """[T, ...] -> [B, N, ...] as the caller's inputs lay, zeros at padding; [1, T, ...] if they were packed."""
        if self.places is None:
            return y.reshape(*self.shape, *y.shape[1:])
        padded = y.new_zeros(self.shape[0] * self.shape[1], *y.shape[1:])
        return padded.index_copy(0, self.places, y).reshape(*self.shape, *y.shape[1:])

    def at(self, y: Tensor, places: Tensor) -> Tensor:
        """y [T, ...] -> [P, ...] at places [P] of the caller's B * N, row by row; zeros at padding."""
        if self.places is None:
            return y.index_select(0, places)
        token = self.places.new_full((self.shape[0] * self.shape[1],), -1)
        token = token.index_copy(0, self.places, torch.arange(len(y), device=y.device)).index_select(0, places)
        found = y.index_select(0, token.clamp(min=0)) if len(y) else y.new_zeros(len(token), *y.shape[1:])
        return torch.where((token >= 0).view(-1, *[1] * (y.dim() - 1)), found, 0)

    def keys(self, k: Tensor, v: Tensor) -> KeyPart:
        """The new keys k [T, G, D] and values v [T, G, E] as a key part."""
        return self.once(("keys", *k.shape[1:], *v.shape[1:]), lambda: self._keys(k, v)).holding(k.reshape(-1), v.reshape(-1))

    def _keys(self, k: Tensor, v: Tensor) -> KeyPart:
        none = k.new_empty(0)
        return packed_keys(k, v, self.offsets, self.sizes, self.past, self.pasts).holding(none, none)

    def stored(self, written: bool) -> Tensor:
        """[S] int32, how many tokens of each sequence a cache holds, with this call's or without."""
        past, offsets = self.past, self.offsets
        return self.once(
            ("stored", written), lambda: (past + (offsets[1:] - offsets[:-1]) if written else past).to(torch.int32)
        )

    def zeros(self) -> Tensor:
        """[S] int32."""
        return self.once(("zeros",), lambda: torch.zeros_like(self.past, dtype=torch.int32))

    def select(self, keep: Sequence[bool]) -> tuple[Batch, Tensor]:
        """The sequences for which `keep` holds, and the index [T'] of their tokens among this batch's; both without waiting.

        The sub-batch knows its rows of the cache: attention over q[index], k[index], v[index] reads and writes only those.
        """
        chosen = [s for s, kept in enumerate(keep) if kept]
        starts = [0, *accumulate(self.sizes)]
        spots = [token for s in chosen for token in range(starts[s], starts[s + 1])]
        device = self.offsets.device
        index = torch.tensor(spots, dtype=torch.int64, device=device)
        sizes, pasts, totals = (tuple(counts[s] for s in chosen) for counts in (self.sizes, self.pasts, self.totals))
        past = self.past[torch.tensor(chosen, dtype=torch.int64, device=device)]
        sub = lay_out(sizes, pasts, totals, self.phase, (1, len(spots)), device, past)
        own = self.rows or tuple(range(self.sequences))
        return replace(sub, rows=tuple(own[s] for s in chosen)), index


def lay_out(
    sizes: tuple[int, ...],
    pasts: tuple[int, ...],
    totals: tuple[int, ...],
    phase: str,
    shape: tuple[int, int],
    device: torch.device,
    past: Tensor | None,
) -> Batch:
    """The tensors of a batch from its counts; equal sizes are laid out by arithmetic on the device, nothing is copied there."""
    s, even = len(sizes), alike(sizes)
    if past is None:
        past = torch.zeros(s, dtype=torch.int64, device=device)
    if even:
        n = sizes[0]
        offsets = torch.arange(s + 1, device=device) * n
        sequence = torch.arange(s, device=device).repeat_interleave(n, output_size=s * n)
        total = past + n if totals == tuple(p + n for p in pasts) else torch.tensor(totals, dtype=torch.int64, device=device)
    else:
        offsets = torch.tensor([0, *accumulate(sizes)], dtype=torch.int64, device=device)
        sequence = torch.tensor([i for i, size in enumerate(sizes) for _ in range(size)], dtype=torch.int64, device=device)
        total = torch.tensor(totals, dtype=torch.int64, device=device)
    positions = torch.arange(sum(sizes), device=device) - offsets[sequence] + past[sequence]
    return Batch(offsets, past, total, positions, sequence, sizes, pasts, totals, phase, shape)


def decide_phase(cached: bool, max_past: int, max_new: int, unfinished: bool) -> str:
    """train: no cache, gradients on. decode: at most 16 new tokens on a cache that holds a whole prompt. Else prefill."""
    if not cached:
        return "train" if torch.is_grad_enabled() else "prefill"
    return "decode" if max_past > 0 and max_new <= DECODE_TOKENS and not unfinished else "prefill"


def _checked_shape(inputs: Tensor) -> tuple[int, int]:
    if inputs.dim() not in (2, 3):
        raise ValueError(f"expected tokens [B, N] or embeddings [B, N, dim], got shape {list(inputs.shape)}")
    if inputs.dim() == 2 and (inputs.is_floating_point() or inputs.is_complex() or inputs.dtype == torch.bool):
        raise ValueError(f"tokens [B, N] are integers, got {inputs.dtype}")
    if inputs.dim() == 3 and not inputs.is_floating_point():
        raise ValueError(f"embeddings [B, N, dim] are floating-point numbers, got {inputs.dtype}")
    return inputs.shape[0], inputs.shape[1]


def _counts(numbers: Tensor | Sequence[int] | int, expected: int, name: str) -> tuple[int, ...]:
    if isinstance(numbers, int):
        numbers = (numbers,) * expected
    if isinstance(numbers, Tensor):
        if numbers.dim() != 1 or numbers.is_floating_point() or numbers.dtype == torch.bool:
            raise ValueError(f"{name} is a list of integers, got {numbers.dtype} of shape {list(numbers.shape)}")
        numbers = numbers.tolist()
    counts = tuple(int(number) for number in numbers)
    if len(counts) != expected:
        raise ValueError(f"{name} has {len(counts)} numbers where {expected} are needed")
    if any(count < 0 for count in counts):
        raise ValueError(f"{name} holds a negative number: {list(counts)}")
    return counts


def _sizes_from_lengths(lengths: Tensor | Sequence[int], shape: tuple[int, int]) -> tuple[int, ...]:
    sizes = _counts(lengths, shape[0], "lengths")
    if any(size > shape[1] for size in sizes):
        raise ValueError(f"lengths {list(sizes)} exceed the {shape[1]} places of a row")
    return sizes


def _sizes_from_offsets(offsets: Tensor | Sequence[int], shape: tuple[int, int]) -> tuple[int, ...]:
    if shape[0] != 1:
        raise ValueError(f"packed sequences lie in one row, [1, T]; got {shape[0]} rows")
    bounds = _counts(offsets, len(offsets), "offsets")
    if not bounds or bounds[0] != 0 or bounds[-1] != shape[1] or list(bounds) != sorted(bounds):
        raise ValueError(f"offsets rise from 0 to the number of tokens, {shape[1]}; got {list(bounds)}")
    return tuple(after - before for before, after in pairwise(bounds))


def _pasts(cache: Cache | None, sizes: tuple[int, ...]) -> tuple[int, ...]:
    if cache is None:
        return (0,) * len(sizes)
    if cache.batch != len(sizes):
        raise ValueError(f"the cache holds {cache.batch} sequences, the call has {len(sizes)}")
    cache.reserve(sizes)
    return cache.counts
