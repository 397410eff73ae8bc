"""Choosing units by generated kernels, for all sequences of a call at once: what asks, what is scored, and where it lies.

Legend: T new tokens of S sequences; H query heads, G KV heads; C choosers; r rows that ask; M runs; D key width.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from types import ModuleType
from typing import Literal

import torch
from torch import Tensor

from .asking import asking, earlier_of
from .batch import Batch
from .intervals import Form, HeadGroup, HeadGroups, rows
from .keys import KeyPart
from .list_launch import LaunchLists, asked_by, row_begins
from .operators import device_of
from .pooled import chunk_keys, pool_runs, text_keys
from .selector import Selector
from .sizes import largest
from .softmax import head_scale
from .storage import LayerCache

Runs = tuple[Tensor, Tensor, int]
"""A flat storage, where the first run of each sequence and KV head begins [S, G] int64, elements between runs."""


def chosen_by_kernels(
    module: ModuleType,
    selector: Selector,
    q: Tensor,
    parts: tuple[KeyPart, ...],
    group: HeadGroup,
    form: Form,
    batch: Batch,
    scale: float | Tensor,
    cap: float | None,
    cache: LayerCache | None,
    heads: slice = slice(None),
    anew: Tensor | None = None,
) -> LaunchLists:
    """What the queries q [T, H, D] keep of the texts in `parts`, which hold the KV heads of `group` alone.

    heads: which query heads of the launch these are. anew [S]: which sequences choose; nothing is scored for the others.
    """
    if selector.previous and selector.source is not None:
        key = ("lists", selector, group, anew is None)
        if key not in selector.source.made:
            one, source = replace(selector, previous=False), selector.source
            own = _own_heads(source.parts, group)
            source.made[key] = chosen_by_kernels(
                module, one, source.q[:, heads], own, group, form, batch, scale, cap, source.cache, heads, anew
            )
        found: LaunchLists = selector.source.made[key]
        return found
    stepwise = batch.phase == "decode"
    many = asked_by(selector, stepwise)
    asks = _asking(selector, q, batch, stepwise, cache, heads)
    begins, most_rows = row_begins(batch, many)
    text = largest([past + size for past, size in zip(batch.pasts, batch.sizes, strict=True)])
    longest = text if cache is None else max(text, _room(parts))
    span = selector.span, selector.step
    if selector.keys == "own":
        runs, upper = _own(parts, batch), None
    elif selector.keys == "mean":
        runs, upper = _pooled(selector, "mean", span, parts, group, batch, cache), None
    elif selector.keys == "summary":
        runs, upper = _chunks(selector, group, batch), None
    else:
        runs = _pooled(selector, "min", span, parts, group, batch, cache)
        upper = _pooled(selector, "max", span, parts, group, batch, cache)
    coarse = None if selector.lse is None else _pooled(selector, "lse", selector.lse, parts, group, batch, cache)
    units = -(-longest // selector.unit)
    wanted = _wanted(tuple(_amount(selector, length) for length in batch.totals), q.device)
    wanted = wanted if anew is None else torch.where(anew, wanted, -1)
    most = min(units, largest([_amount(selector, length) for length in batch.totals]))
    table = rows(alone(group), form, batch)
    if asks.dtype != runs[0].dtype:
        asks = asks.float()
    with device_of(q):
        index, count = module.choose(
            asks, runs, upper, coarse, table, batch, head_scale(scale, q.shape[1], q.device), cap, wanted,
            (begins, many, most_rows), units, max(1, most),
        )  # fmt: skip
    return LaunchLists(index, count, begins, many, most_rows)


@lru_cache(maxsize=64)
def alone(group: HeadGroup) -> HeadGroups:
    """The group by itself, which keeps its numbers."""
    return HeadGroups((replace(group, first=0, last=group.last - group.first),))


def _amount(selector: Selector, length: int) -> int:
    wanted = selector.wanted(length)
    assert wanted is not None, "kernels keep so many of the best"
    wanted = max(wanted, selector.at_least)
    return wanted if selector.at_most is None else min(wanted, selector.at_most)


@lru_cache(maxsize=64)
def _wanted(amounts: tuple[int, ...], device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.tensor(amounts, dtype=torch.int32, device=device)


def _room(parts: tuple[KeyPart, ...]) -> int:
    """Tokens that a cache has room for: a captured graph goes on while it fills."""
    return largest([band.k.place // band.k.slot for band in parts[0].bands])


def _asking(selector: Selector, q: Tensor, batch: Batch, stepwise: bool, cache: LayerCache | None, heads: slice) -> Tensor:
    """Who asks, [r, H, D]: the queries themselves in their dtype, or means of them in fp32."""
    if selector.asks == "each":
        return q if q.stride(-1) == 1 else q.contiguous()
    earlier = earlier_of(selector, cache, batch, heads)
    found = []
    for s, tokens in enumerate(torch.split(q, list(batch.sizes))):
        past, many = batch.pasts[s], selector.many
        if not len(tokens):
            continue
        if stepwise or past % many:
            before = None if earlier is None else earlier[s]
            found.append(asking(selector, tokens.transpose(0, 1), past, stepwise, before).q[:, :, 0].transpose(0, 1))
            continue
        whole = len(tokens) // many * many  # the queries are read once, where they lie
        parts = [tokens[:whole].reshape(-1, many, *tokens.shape[1:])] if whole else []
        parts += [tokens[None, whole:]] if whole < len(tokens) else []
        found += [part[:, :: selector.every].mean(1, dtype=torch.float32) for part in parts]
    return torch.cat(found) if found else q.new_zeros(0, *q.shape[1:])


def _own(parts: tuple[KeyPart, ...], batch: Batch) -> Runs:
    """Every key by itself, where one part holds the whole text; else copied side by side."""
    if len(parts) == 1 and not parts[0].rings and not any(parts[0].bases):
        return parts[0].k, parts[0].k_begin, parts[0].k_stride
    return _side_by_side([_text(parts, s) for s in range(batch.sequences)])


def _text(parts: tuple[KeyPart, ...], s: int) -> Tensor:
    """The keys [G, L, D] of sequence s, without learned ones."""
    heads = sum(band.last - band.first + 1 for band in parts[0].bands)
    k, _, learned = text_keys(parts, 0, heads - 1, s)
    return k[:, learned:]


def _pooled(
    selector: Selector,
    name: Literal["mean", "min", "max", "lse"],
    runs: tuple[int, int],
    parts: tuple[KeyPart, ...],
    group: HeadGroup,
    batch: Batch,
    cache: LayerCache | None,
) -> Runs:
    """Pooled keys of runs of (span, step): those that the cache holds, else made from the text."""
    if cache is not None and selector.held:
        plan = next(
            one
            for one in cache.plan.pooled
            if one.name.startswith(f"{selector.held}.{name}") and one.first <= group.first <= one.last
        )
        flat, begin = cache.pooled_places(plan.name, batch)
        first = group.first - plan.first
        return flat, begin[:, first : first + group.last - group.first + 1], plan.width
    pool: Literal["mean", "min", "max"] = "mean" if name == "lse" else name
    return _side_by_side([pool_runs(_text(parts, s), *runs, pool) for s in range(batch.sequences)])


def _own_heads(parts: tuple[KeyPart, ...], group: HeadGroup) -> tuple[KeyPart, ...]:
    return tuple(part.heads(group.first, group.last) for part in parts)


def _chunks(selector: Selector, group: HeadGroup, batch: Batch) -> Runs:
    """The keys of another branch's chunks: where its cache holds them, else made anew."""
    source = selector.source
    assert source is not None, "another branch lends its summary"
    if source.cache is None or not source.held:
        return _side_by_side([chunk_keys(source, group.first, group.last, s, batch) for s in range(batch.sequences)])
    name = f"{source.held}.k."
    plan = next(one for one in source.cache.plan.pooled if one.name.startswith(name) and one.first <= group.first <= one.last)
    flat, begin = source.cache.pooled_places(plan.name, batch)
    return flat, begin[:, group.first - plan.first : group.last - plan.first + 1], plan.width


def _side_by_side(found: list[Tensor]) -> Runs:
    """Keys [G, M, D] of each sequence in one storage, which is their own where there is one sequence."""
    heads, width = found[0].shape[0], found[0].shape[2]
    starts, total = [], 0
    for one in found:
        starts.append([total + head * one.shape[1] * width for head in range(heads)])
        total += one.numel()
    flat = found[0].reshape(-1) if len(found) == 1 else torch.cat([one.reshape(-1) for one in found])
    return flat, torch.tensor(starts, dtype=torch.int64, device=flat.device), width
