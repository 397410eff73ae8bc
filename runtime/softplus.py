"""Generated kernels of attention with re-weighted softplus masses in place of a softmax (LSSAR, arXiv 2501.13428).

    a = softplus(logit log N),  x = relu(a N / sum(a) - O),  weight = x^p / sum(x^p);  O = 1 where N > 3, else 0

N counts the keys that a query sees, and sum(a) goes over all of them: neither follows from a part of the keys, so results of
parts cannot be merged as those of a softmax. Both are found first, over all parts: counts are arithmetic on positions, sums of
masses add up. Then the weights of a part are known but for their sum, and parts merge by their largest x and their sums.

Legend: T new tokens of S sequences; H query heads, G KV heads; D, E key, value width; R numbers of a row.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from .batch import Batch
from .keys import KeyPart
from .launch import Kernels
from .sizes import UNBOUNDED
from .softmax import Form, HeadGroup, head_scale, rows

Counts = tuple[Tensor, Tensor, Tensor]
"""How many keys each query sees, the logarithm of that, and zeros; [T, H] float32 each."""


@dataclass(frozen=True)
class SoftplusKernels:
    """A `Provider` (softmax.py) of two launches: one sums masses, one re-weighs them.

    Both take a `scale` [T, H, 3]: factor of the logits, log N, N / sum(a). In place of a log-sum-exp they return [T, H, 2]: the
    largest a, or x, and the sum of all beside it, the x each to the power p. The first has no gradient: with the other it says
    what both do.
    """

    masses: Kernels
    weights: Kernels

    @classmethod
    def of(cls, files: Sequence[ModuleType]) -> SoftplusKernels:
        """The launches of eight kernel files, those that sum masses first."""
        return cls(Kernels.of(*files[:4]), Kernels.of(*files[4:]))

    def __call__(
        self,
        q: Tensor,
        parts: tuple[KeyPart, ...],
        groups: tuple[HeadGroup, ...],
        form: Form,
        batch: Batch,
        scale: float | Tensor,
        cap: float | None = None,
        sink_logit: Tensor | None = None,
    ) -> Tensor:
        """q [T, H, D] -> [T, H, E]."""
        assert sink_logit is None, "a sink logit has no meaning among softplus masses"
        factor = head_scale(scale, q.shape[1], q.device).expand(q.shape[:2])
        call = (rows(groups, form, batch), form, batch, cap)
        known = batch.once(("softplus", groups, form, lengths_of(parts)), lambda: self.counts(q, parts, factor, call))
        return self.attend(q, parts, factor, call, known)

    def attend(
        self, q: Tensor, parts: tuple[KeyPart, ...], factor: Tensor, call: tuple[Any, ...], known: Counts | None = None
    ) -> Tensor:
        """The same with a factor of the logits for each query, [T, H] float32, and (rows [S, G, R], form, batch, cap)."""
        count, logs, zeros = known or self.counts(q, parts, factor, call)
        total = self.sums(q, parts, torch.stack((factor, logs, zeros), dim=-1), call)
        share = count / total.clamp(min=torch.finfo(total.dtype).tiny)
        scales = torch.stack((factor, logs, share), dim=-1)
        table, form, batch, cap = call
        o, sums = self.weights(q, parts[0], table, form, batch, scales, cap)
        for part in parts[1:]:
            more = self.weights(q, part, table, form, batch, scales, cap)
            o, sums = merge(o, sums, *more, self.weights.exponent or 1.0)
        return o

    def counts(self, q: Tensor, parts: tuple[KeyPart, ...], factor: Tensor, call: tuple[Any, ...]) -> Counts:
        """How many keys each query sees: by arithmetic, or where that is hard as the sum of masses log 2."""
        table, form, batch, _ = call
        zeros = torch.zeros_like(factor)
        if not form.strides and not form.powers:
            heads = sum(count_near(part, table, form, batch) for part in parts)
            assert isinstance(heads, Tensor), "there is a part"
            count = heads.repeat_interleave(q.shape[1] // heads.shape[1], dim=1).to(torch.float32)
        else:
            with torch.no_grad():
                masses = self.sums(q, parts, torch.stack((factor, zeros, zeros), dim=-1), call)
            count = torch.round(masses / math.log(2))
        return count, count.clamp(min=1).log(), zeros

    def sums(self, q: Tensor, parts: tuple[KeyPart, ...], scales: Tensor, call: tuple[Any, ...]) -> Tensor:
        """The sum of each query's masses over all parts, [T, H] float32."""
        table, form, batch, cap = call
        found = []
        for part in parts:
            peak, norm = self.masses(q, keys_alone(part), table, form, batch, scales, cap)[1].unbind(-1)
            found.append(peak.detach() * norm)
        return reduce(torch.add, found)


def lengths_of(parts: tuple[KeyPart, ...]) -> tuple[object, ...]:
    """What counts depend on of the parts, as the host knows it: layers where it is the same count once a call."""
    return tuple(
        (part.counts, part.bases, tuple((band.first, band.last, band.pinned, band.ring) for band in part.bands))
        for part in parts
    )


def keys_alone(part: KeyPart) -> KeyPart:
    """The part for a launch that sums masses, which reads no values."""
    return replace(part, v=part.k, v_begin=part.k_begin, v_stride=part.k_stride, v_width=1)


def merge(o1: Tensor, sums1: Tensor, o2: Tensor, sums2: Tensor, exponent: float) -> tuple[Tensor, Tensor]:
    """Join re-weighted results of two disjoint key sets exactly: o [T, H, E], largest x and sum [T, H, 2]."""
    (peak1, norm1), (peak2, norm2) = sums1.unbind(-1), sums2.unbind(-1)
    peak1, peak2 = peak1.detach(), peak2.detach()  # one with its norm says what both do
    top = torch.maximum(peak1, peak2)
    w1, w2 = (norm * (peak / top) ** exponent for peak, norm in ((peak1, norm1), (peak2, norm2)))
    total = w1 + w2
    part1, part2 = ((w / torch.where(total > 0, total, 1.0)).unsqueeze(-1) for w in (w1, w2))
    o = o1.to(part1.dtype) * part1 + o2.to(part2.dtype) * part2
    return o.to(o1.dtype), torch.stack((top, total), dim=-1)


def count_near(part: KeyPart, table: Tensor, form: Form, batch: Batch) -> Tensor:
    """How many keys of a part each query sees, [T, G] int64, of rows [S, G, R] without strides and powers.

    The near intervals of a query all hold it, so together they are one; it may overlap the first `sink` keys.
    """
    i = batch.positions.unsqueeze(1)
    sink, *near = (column[batch.sequence].long() for column in table.unbind(-1))
    lower, upper = i + UNBOUNDED, i - UNBOUNDED
    for align, shift, back, ahead in zip(*(near[at::4] for at in range(4)), strict=True):
        start = torch.div(i + shift, align, rounding_mode="floor") * align - shift
        lower = torch.minimum(lower, start - back)
        upper = torch.maximum(upper, i + 1 if form.causal else start + align + ahead)
    base, stored = (x.long()[batch.sequence].unsqueeze(1) for x in (part.base, part.stored))
    end = torch.minimum(base + stored, i + 1) if form.causal else base + stored
    pinned, ring = part.pinned.long(), part.ring.long()
    oldest = base + torch.maximum(torch.minimum(pinned, stored), stored - ring)

    def between(first: Tensor, last: Tensor) -> Tensor:
        """Of the keys at first..last - 1."""
        last = torch.minimum(last, end)
        both = torch.minimum(torch.minimum(last, sink), upper) - torch.maximum(first, lower)
        each = (torch.minimum(last, sink) - first).clamp(min=0) + (
            torch.minimum(last, upper) - torch.maximum(first, lower)
        ).clamp(min=0)
        return each - both.clamp(min=0)

    return between(base, base + torch.minimum(pinned, stored)) + between(oldest, base + stored)
