"""Inputs for the softmax kernels and what must come out: dense attention in float64, written from the formula.

Used in Triton's interpreter and on a GPU alike. The storage around the keys is poisoned with NaN.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from types import SimpleNamespace

import torch
from torch import Tensor

from attnc.compiler.families import Softmax
from attnc.runtime.keys import Band, KeyPart, Steps
from attnc.runtime.softmax import Form

UNBOUNDED = 2**30
FULL = (1, 0, UNBOUNDED, UNBOUNDED)
EMPTY = (1, 0, -1, -1)


KERNELS = {
    "full": Softmax(1, head_width=64, value_width=64, group=4),
    "mixed": Softmax(1, head_width=128, value_width=128, group=4),
    "sink_logit": Softmax(1, head_width=64, value_width=64, group=8, sink_logit=True),
    "cap": Softmax(1, head_width=256, value_width=256, group=2, cap=True),
    "far": Softmax(1, 1, 1, head_width=64, value_width=64, group=1),
    "strides": Softmax(2, 2, head_width=128, value_width=128, group=3),
    "powers": Softmax(0, 0, 1, head_width=32, value_width=64, group=7),
    "both_ways": Softmax(2, causal=False, head_width=64, value_width=64, group=1),
    "far_both_ways": Softmax(1, 1, 1, causal=False, head_width=80, value_width=80, group=2),
    "wide": Softmax(1, head_width=129, value_width=65, group=3),
    "narrow": Softmax(1, head_width=16, value_width=16, group=16, cap=True, sink_logit=True),
}
"""Kernels that between them have every hole; a GPU runs each."""


@dataclass(frozen=True)
class Union:
    """What the queries of one KV head see; nears are (align, shift, back, ahead)."""

    sink: int = 0
    nears: tuple[tuple[int, int, int, int], ...] = ()
    strides: tuple[int, ...] = ()
    powers: tuple[int, ...] = ()

    def row(self, kernel: Softmax) -> tuple[int, ...]:
        nears = self.nears + (EMPTY,) * (kernel.nears - len(self.nears))
        strides = self.strides + (0,) * (kernel.strides - len(self.strides))
        powers = self.powers + (0,) * (kernel.powers - len(self.powers))
        return (self.sink, *(number for near in nears for number in near), *strides, *powers)

    def sees(self, i: Tensor, j: Tensor, causal: bool) -> Tensor:
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


@dataclass(frozen=True)
class Case:
    """A call: one union and one way of keeping (None: all; else pinned, ring) for each KV head; new and stored tokens of each
    sequence; whether the keys are the new tokens' own or a cache's, which holds `stored` tokens.
    """

    kernel: Softmax
    unions: tuple[Union, ...]
    sizes: tuple[int, ...]
    pasts: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    keeps: tuple[tuple[int, int] | None, ...] | None = None
    cache: bool = False
    written: bool = True
    magnitude: float = 1.0
    integers: bool = False
    seed: int = 0
    device: str = "cpu"


@dataclass(frozen=True)
class Inputs:
    """What `attend` takes, and the same keys in rising order for the reference: keys[s], values[s] are [tokens, G, width]."""

    case: Case
    q: Tensor
    part: KeyPart
    rows: Tensor
    form: Form
    batch: SimpleNamespace
    scale: Tensor
    cap: float | None
    sink_logit: Tensor | None
    keys: list[Tensor] = field(repr=False)
    values: list[Tensor] = field(repr=False)
    begins: list[int] = field(repr=False)  # position of keys[s][0]

    @property
    def arguments(self) -> tuple[object, ...]:
        return (self.q, self.part, self.rows, self.form, self.batch, self.scale, self.cap, self.sink_logit)


def numbers(case: Case, generator: torch.Generator, *shape: int) -> Tensor:
    if case.integers:
        return torch.randint(-2, 3, shape, generator=generator).to(case.dtype)
    return torch.randn(shape, generator=generator).to(case.dtype)


def build(case: Case, given: tuple[list[Tensor], list[Tensor]] | None = None) -> Inputs:
    """Everything on the case's device; q times `magnitude`. `given`: keys and values instead of drawn ones."""
    kernel, heads = case.kernel, len(case.unions)
    generator = torch.Generator().manual_seed(case.seed)
    counts = [past * case.cache + size * case.written for size, past in zip(case.sizes, case.pasts, strict=True)]
    begins = [0 if case.cache else past for past in case.pasts]
    keys = [numbers(case, generator, count, heads, kernel.head_width) for count in counts]
    values = [numbers(case, generator, count, heads, kernel.value_width) for count in counts]
    keys, values = given or (keys, values)
    tokens, query_heads = sum(case.sizes), heads * kernel.group
    q = numbers(case, generator, tokens, query_heads, kernel.head_width) * case.magnitude
    offsets = torch.tensor([0, *torch.tensor(case.sizes).cumsum(0).tolist()], dtype=torch.int64)
    table = torch.tensor([union.row(kernel) for union in case.unions], dtype=torch.int32)
    scale = torch.full((query_heads,), 1 / 8 if case.integers else kernel.head_width**-0.5)
    device = torch.device(case.device)
    return Inputs(
        case=case,
        q=q.to(device),
        part=store(case, keys, values, counts, begins, device),
        rows=table[None].to(device).expand(len(counts), -1, -1),
        form=Form(kernel.nears, kernel.strides, kernel.powers, kernel.causal),
        batch=SimpleNamespace(
            offsets=offsets.to(device),
            past=torch.tensor(case.pasts, dtype=torch.int64, device=device),
            max_new=max(case.sizes, default=0),
        ),
        scale=scale.to(device),
        cap=5.0 if kernel.cap else None,
        sink_logit=torch.linspace(-2, 3, query_heads).to(device) if kernel.sink_logit else None,
        keys=[key.to(device) for key in keys],
        values=[value.to(device) for value in values],
        begins=begins,
    )


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
    """Memory from torch.empty is NaN instead of whatever lay there."""
    empty = torch.empty
    torch.empty = lambda *shape, **rest: empty(*shape, **rest).fill_(math.nan)
    try:
        yield
    finally:
        torch.empty = empty


def visible(inputs: Inputs, sequence: int, head: int, first: int, last: int) -> Tensor:
    """[queries first..last of a sequence, its keys] for a KV head: what the union shows of what the storage still holds."""
    case = inputs.case
    count = len(inputs.keys[sequence])
    i = case.pasts[sequence] + torch.arange(first, last, device=inputs.q.device)
    j = inputs.begins[sequence] + torch.arange(count, device=inputs.q.device)
    seen = case.unions[head].sees(i, j, case.kernel.causal)
    keep = (case.keeps or (None,) * len(case.unions))[head]
    if keep is not None:
        seen = seen & ((j < keep[0]) | (j >= count - keep[1]))[None, :]
    return seen


def logits(inputs: Inputs, q: Tensor, key: Tensor, head: int, seen: Tensor) -> Tensor:
    """In the dtype of q and key, with the cap; what is not seen is -inf."""
    score = (q @ key.T) * inputs.scale[head].to(q.dtype)
    if inputs.cap is not None:
        score = inputs.cap * torch.tanh(score / inputs.cap)
    return score.masked_fill(~seen, -math.inf)


def rows_of(inputs: Inputs, block: int) -> Iterator[tuple[int, int, int, slice, Tensor]]:
    """(sequence, query head, KV head, slice of tokens, its keys that the queries see) in blocks of queries."""
    offsets = inputs.batch.offsets.tolist()
    for s, size in enumerate(inputs.case.sizes):
        for first in range(0, size, block):
            last = min(size, first + block)
            for head in range(len(inputs.case.unions)):
                seen = visible(inputs, s, head, first, last)
                for member in range(inputs.case.kernel.group):
                    yield s, head * inputs.case.kernel.group + member, head, slice(offsets[s] + first, offsets[s] + last), seen


def reference(inputs: Inputs, block: int = 1024) -> tuple[Tensor, Tensor]:
    """o [T, H, E] and the natural log-sum-exp [T, H], in float64, a block of queries at a time."""
    tokens, heads, _ = inputs.q.shape
    o = torch.zeros(tokens, heads, inputs.case.kernel.value_width, dtype=torch.float64, device=inputs.q.device)
    lse = torch.full((tokens, heads), -math.inf, dtype=torch.float64, device=inputs.q.device)
    for s, head, group, place, seen in rows_of(inputs, block):
        score = logits(inputs, inputs.q[place, head].double(), inputs.keys[s][:, group].double(), head, seen)
        if inputs.sink_logit is not None:
            score = torch.cat([score, inputs.sink_logit[head].double().expand(len(score), 1)], 1)
        if score.shape[1] == 0:
            continue
        lse[place, head] = score.logsumexp(1)
        weight = torch.exp(score - torch.where(lse[place, head] == -math.inf, 0, lse[place, head])[:, None])
        o[place, head] = weight[:, : seen.shape[1]] @ inputs.values[s][:, group].double()
    return o, lse


def torch_own(inputs: Inputs, block: int = 1024) -> tuple[Tensor, Tensor]:
    """The same by torch in the inputs' dtype: its attention with a mask; with a cap or a sink logit, which that lacks, its
    matrix products and softmax. Rows without keys are 0.
    """
    o = torch.zeros(*inputs.q.shape[:2], inputs.case.kernel.value_width, dtype=inputs.q.dtype, device=inputs.q.device)
    lse = torch.full(inputs.q.shape[:2], -math.inf, dtype=torch.float32, device=inputs.q.device)
    for s, head, group, place, seen in rows_of(inputs, block):
        q, key, value = inputs.q[place, head], inputs.keys[s][:, group], inputs.values[s][:, group]
        score = logits(inputs, q, key, head, seen)
        if inputs.sink_logit is not None:
            score = torch.cat([score, inputs.sink_logit[head].to(q.dtype).expand(len(score), 1)], 1)
        if score.shape[1] == 0:
            continue
        lse[place, head] = score.logsumexp(1).float()
        if inputs.cap is None and inputs.sink_logit is None:
            q, key, value = (x[None, None].contiguous() for x in (q, key, value))
            scale = float(inputs.scale[head])
            some = torch.nn.functional.scaled_dot_product_attention(q, key, value, attn_mask=seen[None, None], scale=scale)[
                0, 0
            ]
        else:
            some = score.softmax(1)[:, : seen.shape[1]] @ value
        o[place, head] = torch.where(seen.any(1)[:, None], some, 0)
    return o, lse


def error(got: Tensor, want: Tensor) -> float:
    """The largest difference where `want` is finite; NaN wherever there is one."""
    there = torch.isfinite(want)
    return float((got.double() - want)[there].abs().max()) if there.any() else 0.0


def check(inputs: Inputs, o: Tensor, lse: Tensor, block: int = 1024) -> tuple[float, float]:
    """The error is at most 1.5 times torch's own in the same dtype; returns both.

    The kernels count in base 2: their log-sum-exp is rounded three times more than torch's, to the scale, and there and back.
    Torch's is the worst of so many draws of the case that 256 rows are counted: a call of two rows says little about either.
    """
    want, want_lse = reference(inputs, block)
    assert o.dtype == inputs.q.dtype
    assert lse.dtype == torch.float32
    assert torch.equal(torch.isneginf(lse), torch.isneginf(want_lse)), "rows without keys"
    if inputs.sink_logit is None:
        assert (o[torch.isneginf(want_lse)] == 0).all(), "rows without keys are 0"
    ours, ours_lse = error(o, want), error(lse, want_lse)
    torchs, torchs_lse = torch_error(inputs, want, want_lse, block)
    rows = max(1, want_lse.numel())
    for draw in range(1, min(16, -(-256 // rows))):
        other = build(replace(inputs.case, seed=inputs.case.seed + draw))
        more = torch_error(other, *reference(other, block), block)
        torchs, torchs_lse = max(torchs, more[0]), max(torchs_lse, more[1])
    assert ours <= 1.5 * torchs, f"{ours:.3g}, torch {torchs:.3g}"
    finite = want_lse[torch.isfinite(want_lse)].abs()
    based = 3 * 2.0**-24 * (float(finite.max()) if finite.numel() else 0.0)
    assert ours_lse <= 1.5 * torchs_lse + based, f"lse {ours_lse:.3g}, torch {torchs_lse:.3g}"
    return ours, torchs


def torch_error(inputs: Inputs, want: Tensor, want_lse: Tensor, block: int) -> tuple[float, float]:
    """Torch's errors, at least those of rounding the right results to the dtypes that they are asked for in."""
    own, own_lse = torch_own(inputs, block)
    rounded = error(want.to(inputs.q.dtype), want), error(want_lse.float(), want_lse)
    return max(error(own, want), rounded[0]), max(error(own_lse, want_lse), rounded[1])
