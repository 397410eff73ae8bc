"""Softmax attention of one layer: how cached and new keys are joined, and what a provider of kernels has to offer.

Legend: T new tokens of S sequences; H query heads, G KV heads: query head h reads KV head h // (H // G); D, E key, value width.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor

from .batch import Batch
from .intervals import EMPTY, FULL, Form, HeadGroup, Near, row, rows
from .keys import KeyPart, persistent_keys
from .sizes import DECODE_TOKENS, Share
from .storage import LayerCache

__all__ = ["EMPTY", "FULL", "Form", "HeadGroup", "Kernel", "KeyPart", "Near", "Provider", "Share", "attend", "begin", "finish"]
__all__ += ["head_scale", "merge", "per_part", "persistent_keys", "row", "rows"]


class Provider(Protocol):
    """Attention over one or more key parts under ONE softmax; a query that sees no key gets 0.

    q          [T, H, D], tokens of batch.offsets, at batch.positions
    parts      keys and values; no key is in two parts
    groups, form  what each KV head sees; kernels read `rows(groups, form, batch)`
    scale      factor of the logits: a number, or [H] float32
    cap        c in c * tanh(logit / c), after the scale, or None
    sink_logit [H], one more logit per head that has no value, or None
    returns    [T, H, E] in q's dtype
    """

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
        """See the class."""
        ...


class ListProvider(Protocol):
    """A `Provider` of groups in which content chooses keys; `cache` holds what stands for runs of keys."""

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
        cache: LayerCache | None = None,
    ) -> Tensor:
        """See the class."""
        ...


class Kernel(Protocol):
    """Attention over one part: (q, part, rows [S, G, R], form, batch, scale [H], cap, sink_logit [H] or None) -> (o, lse).

    o [T, H, E]; lse [T, H] float32, natural logarithm of the sum of exponentials (the sink's too); a row without key: 0, -inf.
    """

    def __call__(
        self,
        q: Tensor,
        part: KeyPart,
        rows: Tensor,
        form: Form,
        batch: Batch,
        scale: Tensor,
        cap: float | None,
        sink_logit: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """See the class."""
        ...


def per_part(kernel: Kernel) -> Provider:
    """A provider that runs `kernel` on each part and merges by log-sum-exp; the sink logit goes to the first part alone."""

    def attend_parts(
        q: Tensor,
        parts: tuple[KeyPart, ...],
        groups: tuple[HeadGroup, ...],
        form: Form,
        batch: Batch,
        scale: float | Tensor,
        cap: float | None = None,
        sink_logit: Tensor | None = None,
    ) -> Tensor:
        table = rows(groups, form, batch)
        factor = head_scale(scale, q.shape[1], q.device)
        o, lse = kernel(q, parts[0], table, form, batch, factor, cap, sink_logit)
        silent = None if sink_logit is None else torch.full_like(sink_logit, float("-inf"))
        for part in parts[1:]:
            o, lse = merge(o, lse, *kernel(q, part, table, form, batch, factor, cap, silent))
        return o

    return attend_parts


def head_scale(scale: float | Tensor, heads: int, device: torch.device) -> Tensor:
    """`scale` as one float32 number per head, [H]."""
    if isinstance(scale, Tensor):
        return scale.to(device=device, dtype=torch.float32).expand(heads)
    constant = _constant if torch.compiler.is_compiling() else _kept
    return constant(scale, heads, device)


def _constant(number: float, heads: int, device: torch.device) -> Tensor:
    return torch.full((heads,), number, dtype=torch.float32, device=device)


_kept = lru_cache(maxsize=256)(torch.inference_mode(False)(_constant))
"""`_constant`, made once; a later call may train."""


def merge(o1: Tensor, lse1: Tensor, o2: Tensor, lse2: Tensor) -> tuple[Tensor, Tensor]:
    """Join softmaxes over two disjoint key sets exactly: o [T, H, E], lse [T, H]; -inf marks a set without keys."""
    top = torch.maximum(lse1, lse2)
    finite = torch.where(torch.isneginf(top), 0.0, top)  # both sets empty: weights 0, not exp(-inf + inf)
    w1, w2 = torch.exp(lse1 - finite), torch.exp(lse2 - finite)
    total = w1 + w2
    part1, part2 = ((w / torch.where(total > 0, total, 1.0)).unsqueeze(-1) for w in (w1, w2))
    o = o1.to(part1.dtype) * part1 + o2.to(part2.dtype) * part2
    some = total > 0  # log of 0 would have a gradient without bounds
    return o.to(o1.dtype), torch.where(some, torch.log(torch.where(some, total, 1.0)) + finite, float("-inf"))


def begin(k: Tensor, v: Tensor, batch: Batch, cache: LayerCache | None) -> tuple[KeyPart, ...]:
    """The key parts that this call's queries read, given its new keys k [T, G, D] and values v [T, G, E].

    No cache, or nothing in it: the new keys. A few new tokens after a past: they are written first, and the cache holds all.
    More: a ring would lose keys that the first of them still see, so cache and new keys are read apart, and `finish` writes.
    """
    if cache is None:
        return (batch.keys(k, v),)
    if batch.max_past == 0:
        return (batch.keys(k, v),)
    if batch.max_new <= DECODE_TOKENS:
        cache.write(k, v, batch)
        return (cache.part(batch, written=True),)
    return (cache.part(batch, written=False), batch.keys(k, v))


def finish(k: Tensor, v: Tensor, batch: Batch, cache: LayerCache | None) -> None:
    """Store the new keys and values that `begin` has not stored."""
    if cache is not None and (batch.max_past == 0 or batch.max_new > DECODE_TOKENS):
        cache.write_after(k, v, batch)


def attend(
    provider: Provider,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    batch: Batch,
    cache: LayerCache | None,
    groups: tuple[HeadGroup, ...],
    form: Form,
    scale: float | Tensor,
    cap: float | None = None,
    sink_logit: Tensor | None = None,
    persistent: KeyPart | None = None,
) -> Tensor:
    """One attention layer's key sets: q [T, H, D], k [T, G, D], v [T, G, E] -> [T, H, E]; reads and fills the layer's cache.

    `persistent`: learned keys beside the text's, from `persistent_keys`.
    """
    parts = begin(k, v, batch, cache)
    if persistent is not None:
        parts = (*parts, persistent)
    o = provider(q, parts, groups, form, batch, scale, cap, sink_logit)
    finish(k, v, batch, cache)
    return o
