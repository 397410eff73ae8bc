"""Where the keys and values of chunks lie, as generated kernels read them: a key part of which the chunks are the tokens.

Legend: G KV heads; M chunks of a sequence; D, E key and value width.
"""

from __future__ import annotations

from itertools import accumulate

import torch
from torch import Tensor

from .batch import Batch
from .intervals import HeadGroup
from .keys import Band, KeyPart, Steps, packed_keys
from .pooled import chunks, runs
from .selector import Selector
from .sizes import UNBOUNDED, largest
from .storage import LayerCache


def chunk_part(
    one: Selector, parts: tuple[KeyPart, ...], group: HeadGroup, batch: Batch, cache: LayerCache | None, dtype: torch.dtype
) -> KeyPart:
    """The complete chunks of every sequence, for the KV heads of `group`: as the cache holds them, else pooled anew."""
    counts = tuple(runs(past + size, one.span, one.step) for past, size in zip(batch.pasts, batch.sizes, strict=True))
    if cache is not None and one.held:
        return _cached(one, group, batch, cache, counts)
    ends = [0, *accumulate(counts)]
    found = [chunks(parts, one.net, cache, one.held, group.first, group.last, s, batch) for s in range(batch.sequences)]
    k, v = (torch.cat([each.transpose(0, 1) for each in both]).to(dtype) for both in zip(*found, strict=True))
    return packed_keys(k, v, torch.tensor(ends, device=k.device), counts, batch.past * 0, (0,) * batch.sequences)


def _cached(one: Selector, group: HeadGroup, batch: Batch, cache: LayerCache, counts: tuple[int, ...]) -> KeyPart:
    (k, k_begin, k_steps), (v, v_begin, v_steps) = (_kept(one, word, group, batch, cache) for word in "kv")
    heads = group.last - group.first + 1
    stored = torch.div(batch.stored(True) - one.span + one.step, one.step, rounding_mode="floor").clamp(min=0)
    return KeyPart(
        k=k,
        v=v,
        k_begin=k_begin,
        v_begin=v_begin,
        k_stride=k_steps.slot,
        v_stride=v_steps.slot,
        stored=stored.to(torch.int32),
        base=batch.zeros(),
        pinned=torch.zeros(heads, dtype=torch.int32, device=k.device),
        ring=torch.full((heads,), UNBOUNDED, dtype=torch.int32, device=k.device),
        max_stored=largest(counts),
        k_width=k_steps.width,
        v_width=v_steps.width,
        bands=(Band(0, heads - 1, k_steps, v_steps),),
        counts=counts,
        bases=(0,) * batch.sequences,
        places=batch.rows or tuple(range(batch.sequences)),
    )


def _kept(one: Selector, word: str, group: HeadGroup, batch: Batch, cache: LayerCache) -> tuple[Tensor, Tensor, Steps]:
    """The storage of the chunks' keys or values, where those of each sequence and head of the group begin, and its steps."""
    plan = next(
        kept
        for kept in cache.plan.pooled
        if kept.name.startswith(f"{one.held}.{word}.") and kept.first <= group.first and group.last <= kept.last
    )
    flat, begin = cache.pooled_places(plan.name, batch)
    head, slot, _ = cache.pooled(plan.name, batch)[0].stride()
    first = group.first - plan.first
    steps = Steps(first * head, plan.heads * head, head, slot, plan.width)
    return flat, begin[:, first : group.last - plan.first + 1], steps
