"""Inputs for the softmax kernels, on any device and in Triton's interpreter alike.

The storage around the keys is poisoned with NaN, and so is memory that nobody wrote while `poisoned` holds.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from attnc.compiler.families import Softmax
from attnc.runtime.batch import Batch, lay_out
from attnc.runtime.keys import Band, KeyPart, Steps
from attnc.runtime.softmax import Form

UNBOUNDED = 2**30
FULL = (1, 0, UNBOUNDED, UNBOUNDED)
EMPTY = (1, 0, -1, -1)


class KeySet(Protocol):
    """What the queries of one KV head see in a sequence of `length` tokens."""

    def row(self, kernel: Softmax, length: int = 0) -> tuple[int, ...]:
        """The numbers that the kernel reads."""
        ...

    def sees(self, i: Tensor, j: Tensor, causal: bool, length: int = 0) -> Tensor:
        """[queries, keys] of positions i [queries], j [keys]."""
        ...

    def reach(self) -> int:
        """Tokens after which no number of it matters any more."""
        ...


@dataclass(frozen=True)
class Union:
    """A `KeySet` by its parts; nears are (align, shift, back, ahead)."""

    sink: int = 0
    nears: tuple[tuple[int, int, int, int], ...] = ()
    strides: tuple[int, ...] = ()
    powers: tuple[int, ...] = ()

    def row(self, kernel: Softmax, length: int = 0) -> tuple[int, ...]:  # noqa: ARG002 (these numbers are no shares)
        """The numbers that the kernel reads."""
        nears = self.nears + (EMPTY,) * (kernel.nears - len(self.nears))
        strides = self.strides + (0,) * (kernel.strides - len(self.strides))
        powers = self.powers + (0,) * (kernel.powers - len(self.powers))
        return (self.sink, *(number for near in nears for number in near), *strides, *powers)

    def sees(self, i: Tensor, j: Tensor, causal: bool, length: int = 0) -> Tensor:  # noqa: ARG002
        """[queries, keys] of positions i [queries], j [keys]."""
        i, j = i[:, None], j[None, :]
        seen = j < self.sink
        for align, shift, back, ahead in self.nears:
            block = (i + shift) // align
            end = i + 1 if causal else (block + 1) * align - shift + ahead
            seen = seen | ((j >= block * align - shift - back) & (j < end))
        for n in self.strides:
            seen = seen | ((i - j) % n == 0)
        for n in self.powers:
            apart = (i // n - j // n).abs()
            seen = seen | (apart == 0)
            for exponent in range(31):
                seen = seen | (apart == 2**exponent)
        return seen & (j <= i) if causal else seen

    def reach(self) -> int:
        """Tokens after which no number of it matters any more."""
        near = [number for part in self.nears for number in part if number < UNBOUNDED]
        return max([self.sink, *near, *self.strides, *self.powers])


@dataclass(frozen=True)
class Case:
    """A call: one union and one way of keeping (None: all; else pinned, ring) for each KV head; new and stored tokens of each
    sequence; whether the keys are the new tokens' own or a cache's, which holds the past, and with `written` the new ones too.

    magnitude  factor of the queries; with large ones softmaxes are sharp
    integers   small whole numbers instead of normal ones; with magnitude 0, means over 2^n keys are exact
    found      each query is many times one key that it sees: only that one has a weight, and results are exact
    own        what each query head sees, where those of a KV head differ; they have its union's numbers
    """

    kernel: Softmax
    unions: tuple[KeySet, ...]
    sizes: tuple[int, ...]
    pasts: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    keeps: tuple[tuple[int, int] | None, ...] | None = None
    cache: bool = False
    written: bool = True
    magnitude: float = 1.0
    integers: bool = False
    found: bool = False
    own: tuple[KeySet, ...] | None = None
    seed: int = 0
    device: str = "cpu"

    @property
    def totals(self) -> tuple[int, ...]:
        """The whole length of each sequence."""
        return tuple(size + past for size, past in zip(self.sizes, self.pasts, strict=True))


@dataclass(frozen=True)
class Inputs:
    """What `attend` takes, and the same keys in rising order for the reference: keys[s], values[s] are [tokens, G, width]."""

    case: Case
    q: Tensor
    part: KeyPart
    rows: Tensor
    form: Form
    batch: Batch
    scale: Tensor
    cap: float | None
    sink_logit: Tensor | None
    keys: list[Tensor] = field(repr=False)
    values: list[Tensor] = field(repr=False)
    begins: list[int] = field(repr=False)  # position of keys[s][0]

    @property
    def arguments(self) -> tuple[Any, ...]:
        """Of `attend`, in order."""
        return (self.q, self.part, self.rows, self.form, self.batch, self.scale, self.cap, self.sink_logit)


def build(case: Case, given: tuple[list[Tensor], list[Tensor]] | None = None) -> Inputs:
    """Everything on the case's device; q times `magnitude`. `given`: keys and values instead of drawn ones."""
    kernel, heads = case.kernel, len(case.unions)
    generator = torch.Generator().manual_seed(case.seed)
    counts = [past * case.cache + size * case.written for size, past in zip(case.sizes, case.pasts, strict=True)]
    begins = [0 if case.cache else past for past in case.pasts]
    make = signs if case.found else drawn
    keys = [make(case, generator, count, heads, kernel.head_width) for count in counts]
    values = [drawn(case, generator, count, heads, kernel.value_width) for count in counts]
    keys, values = given or (keys, values)
    tokens, query_heads = sum(case.sizes), heads * kernel.group
    q = drawn(case, generator, tokens, query_heads, kernel.head_width) * case.magnitude
    if case.found:
        q = seeking(case, generator, keys, begins)
    exact = case.integers or case.found
    scale = torch.full((query_heads,), 1.0 if exact else kernel.head_width**-0.5)
    sink_logit = torch.full((query_heads,), -1e4) if exact else torch.linspace(-2, 3, query_heads)
    device = torch.device(case.device)
    return Inputs(
        case=case,
        q=q.to(device),
        part=store(case, keys, values, counts, begins, device),
        rows=rows(case, device),
        form=Form(kernel.nears, kernel.strides, kernel.powers, kernel.causal),
        batch=batch(case, device),
        scale=scale.to(device),
        cap=(2.0**20 if exact else 5.0) if kernel.cap else None,
        sink_logit=sink_logit.to(device) if kernel.sink_logit else None,
        keys=[key.to(device) for key in keys],
        values=[value.to(device) for value in values],
        begins=begins,
    )


def drawn(case: Case, generator: torch.Generator, *shape: int) -> Tensor:
    """Normal numbers, or small integers."""
    if case.integers or case.found:
        return torch.randint(-2, 3, shape, generator=generator).to(case.dtype)
    return torch.randn(shape, generator=generator).to(case.dtype)


def signs(case: Case, generator: torch.Generator, count: int, heads: int, width: int) -> Tensor:
    """[count, heads, width] of +1 and -1, no two keys of a head alike: the first columns spell different numbers."""
    spelt = min(width, 16)
    assert count <= 2**spelt, f"{count} keys of width {width} cannot all differ"
    number = torch.stack([torch.randperm(2**spelt, generator=generator)[:count] for _ in range(heads)], 1)
    bits = number[..., None] >> torch.arange(spelt) & 1
    rest = torch.randint(0, 2, (count, heads, width - spelt), generator=generator)
    return (torch.cat([bits, rest], 2) * 2 - 1).to(case.dtype)


def seeking(case: Case, generator: torch.Generator, keys: list[Tensor], begins: list[int]) -> Tensor:
    """q [T, H, D]: 128 times a key that the query sees, 0 where it sees none; keys lie on the CPU."""
    chosen = []
    for s, size in enumerate(case.sizes):
        heads = []
        for head in range(len(case.unions)):
            places = range(begins[s], begins[s] + len(keys[s])), range(case.pasts[s], case.pasts[s] + size)
            for member in range(case.kernel.group):
                seen = kept(case, s, head, *places, member=member)
                none = seen.new_zeros(size, 1)
                rank = (torch.rand(seen.shape, generator=generator) * seen).argmax(1) if seen.shape[1] else none[:, 0].long()
                key = keys[s][rank, head] if seen.shape[1] else keys[s].new_zeros(size, case.kernel.head_width)
                heads.append(128 * key * seen.any(1, keepdim=True))
        chosen.append(torch.stack(heads, 1))
    return torch.cat(chosen)


def kept(
    case: Case, sequence: int, head: int, keys: range, queries: range, device: torch.device | None = None, member: int = 0
) -> Tensor:
    """[queries, keys] of a query head of a KV head: what it sees of what the storage still holds; both at these positions."""
    i = torch.arange(queries.start, queries.stop, device=device)
    j = torch.arange(keys.start, keys.stop, device=device)
    union = case.unions[head] if case.own is None else case.own[head * case.kernel.group + member]
    seen = union.sees(i, j, case.kernel.causal, case.totals[sequence])
    keep = (case.keeps or (None,) * len(case.unions))[head]
    if keep is not None:
        seen = seen & ((j < keep[0]) | (j >= keys.stop - keep[1]))[None, :]
    return seen


def rows(case: Case, device: torch.device) -> Tensor:
    """[S, G, R] int32; expanded over the sequences where all have the same numbers."""
    tables = [[union.row(case.kernel, length) for union in case.unions] for length in case.totals]
    if all(table == tables[0] for table in tables):
        return torch.tensor(tables[:1], dtype=torch.int32, device=device).expand(len(tables), -1, -1)
    return torch.tensor(tables, dtype=torch.int32, device=device)


def batch(case: Case, device: torch.device) -> Batch:
    """How the case's sequences lie."""
    past = torch.tensor(case.pasts, dtype=torch.int64, device=device)
    return lay_out(case.sizes, case.pasts, case.totals, "prefill", (1, sum(case.sizes)), device, past)


def store(
    case: Case, keys: list[Tensor], values: list[Tensor], counts: list[int], begins: list[int], device: torch.device
) -> KeyPart:
    """One storage for all heads, head-major, as a cache lays it out; what no token fills is NaN,
    and so are three slots at each end.
    """
    kernel, heads, sequences = case.kernel, len(case.unions), len(counts)
    keeps = case.keeps or (None,) * heads
    room = [max([*counts, 1]) + 2 if keep is None else sum(keep) for keep in keeps]
    zero = [3 + sum(room[:head]) * sequences for head in range(heads)]
    slots = 6 + sum(room) * sequences
    k = torch.full((slots, kernel.head_width), math.nan, dtype=case.dtype)
    v = torch.full((slots, kernel.value_width), math.nan, dtype=case.dtype)
    begin = torch.tensor([[zero[head] + s * room[head] for head in range(heads)] for s in range(sequences)]).view(
        sequences, heads
    )
    for s in range(sequences):
        for head, keep in enumerate(keeps):
            place = torch.arange(counts[s])
            if keep is not None:
                place = torch.where(place < keep[0], place, keep[0] + (place - keep[0]) % keep[1])
                last = torch.full((room[head],), -1).scatter_reduce(0, place, torch.arange(counts[s]), "amax")
                place, kept = (last >= 0).nonzero()[:, 0], last[last >= 0]
            else:
                kept = torch.arange(counts[s])
            k[begin[s, head] + place] = keys[s][kept, head]
            v[begin[s, head] + place] = values[s][kept, head]
    bands = tuple(
        Band(
            head,
            head,
            Steps(zero[head] * kernel.head_width, room[head] * kernel.head_width, 0, kernel.head_width, kernel.head_width),
            Steps(zero[head] * kernel.value_width, room[head] * kernel.value_width, 0, kernel.value_width, kernel.value_width),
            *(keep or (0, UNBOUNDED)),
        )
        for head, keep in enumerate(keeps)
    )
    return KeyPart(
        k=k.view(-1).to(device),
        v=v.view(-1).to(device),
        k_begin=(begin * kernel.head_width).to(device),
        v_begin=(begin * kernel.value_width).to(device),
        k_stride=kernel.head_width,
        v_stride=kernel.value_width,
        stored=torch.tensor(counts, dtype=torch.int32, device=device),
        base=torch.tensor(begins, dtype=torch.int32, device=device),
        pinned=torch.tensor([(keep or (0, 0))[0] for keep in keeps], dtype=torch.int32, device=device),
        ring=torch.tensor([(keep or (0, UNBOUNDED))[1] for keep in keeps], dtype=torch.int32, device=device),
        max_stored=max(counts, default=0),
        k_width=kernel.head_width,
        v_width=kernel.value_width,
        bands=bands,
        counts=tuple(counts),
        bases=tuple(begins),
        places=tuple(range(sequences)),
    )


@contextlib.contextmanager
def poisoned() -> Iterator[None]:
    """Memory from torch.empty and torch.empty_like is NaN, or the least whole number, instead of whatever lay there."""
    makers = {name: getattr(torch, name) for name in ("empty", "empty_like")}

    def poisoning(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def filled(*given: Any, **named: Any) -> Tensor:
            new = make(*given, **named)
            floats = new.is_floating_point() or new.is_complex() or new.dtype == torch.bool
            return new.fill_(math.nan if floats else torch.iinfo(new.dtype).min)

        return filled

    for name, make in makers.items():
        setattr(torch, name, poisoning(make))
    try:
        yield
    finally:
        for name, make in makers.items():
            setattr(torch, name, make)
