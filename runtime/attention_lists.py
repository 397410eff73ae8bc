"""The provider `torch` where content chooses keys: units are chosen, then each query reads its own beside its intervals.

A query reads its own keys, gathered by its lists, beside the intervals' stretch, under one softmax. Where lists are long
beside the text, or nobody knows how long, a block of queries reads all keys under a mask; never T x T. Differentiable but for
the choice, which has no gradient.

Legend: T new tokens of S sequences, N of one; H query heads, G KV heads, R = H // G; C choosers; L keys; D, E key, value width;
m units of a list, K = m x unit of its keys.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from .attention_torch import torch_attention
from .batch import Batch
from .choices import Asker, lists_of
from .chunks_pooled import seen_chunks
from .intervals import Form, HeadGroup
from .keys import KeyPart
from .pooled import chunks, text_keys
from .selecting import Asked
from .selector import Lists
from .sizes import DECODE_TOKENS
from .spans import Numbers, exact, head_spans, joined, reach, visible
from .storage import LayerCache

QUERIES = 64
"""Queries of a block that read gathered keys."""

MASKED = 256
"""Queries of a block that read all keys under a mask, as far as that has at most so many numbers:"""

MASK = 2**25

NUMBERS = 2**22
"""Gathered numbers of a block."""

HIDDEN = -1e30
"""The logit of a key that is not seen: beside any other its weight is 0, and alone it is no NaN."""

PREFILL_RATIO = 16
"""How many times longer than its lists the text of one of many queries is, where these are gathered."""


def lists_attention(
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
    """q [T, H, D] -> [T, H, E], as a `Provider` (softmax.py); `cache` holds what stands for runs of keys.

    Heads for which nothing is chosen run as `torch_attention`.
    """
    batch, parts = exact(batch, parts)
    repeat = q.shape[1] // sum(band.last - band.first + 1 for band in parts[0].bands)
    outputs = []
    for first, last, group in head_spans(groups, parts):
        heads = slice(first * repeat, (last + 1) * repeat)
        factor = scale[heads] if isinstance(scale, Tensor) else scale
        sink = None if sink_logit is None else sink_logit[heads]
        if group.choices:
            span = OneSpan(first, last, group, form, factor, cap, sink)
            outputs.append(attend_span(q[:, heads], parts, span, batch, cache, heads))
        else:
            own, some = replace(group, first=0, last=last - first), tuple(part.heads(first, last) for part in parts)
            outputs.append(torch_attention(q[:, heads], some, (own,), form, batch, factor, cap, sink))
    return torch.cat(outputs, dim=1)


@dataclass(frozen=True, eq=False)
class OneSpan:
    """KV heads first..last that choose alike; `scale` and `sink` are of their query heads."""

    first: int
    last: int
    group: HeadGroup
    form: Form
    scale: float | Tensor
    cap: float | None
    sink: Tensor | None


def attend_span(
    q: Tensor, parts: tuple[KeyPart, ...], span: OneSpan, batch: Batch, cache: LayerCache | None, heads: slice
) -> Tensor:
    """q [T, H, D] of a span, which is `heads` of the launch's -> [T, H, E]."""
    wide, rows = torch.promote_types(q.dtype, torch.float32), []
    for s, tokens in enumerate(torch.split(q, list(batch.sizes))):
        k, v, learned = text_keys(parts, span.first, span.last, s)
        queries, past = tokens.transpose(0, 1), batch.pasts[s]
        numbers = Numbers.of(span.group, batch.totals[s], span.form.causal)
        scale = span.scale.to(wide) if isinstance(span.scale, Tensor) else span.scale
        asked = Asked(past, past + batch.sizes[s], batch.totals[s], numbers, scale, span.cap)
        asker = Asker(queries, k[:, learned:], span.first, span.last, heads, s, batch, cache)
        choices = [one for one in span.group.choices if one.keys != "chunks"]
        with torch.no_grad():
            lists = [lists_of(one, asker, asked) for one in choices]
        pooled = [
            _Chunks(*chunks(parts, one.net, cache, one.held, span.first, span.last, s, batch), one.span, one.step)
            for one in span.group.choices
            if one.keys == "chunks"
        ]
        sink = None if span.sink is None else span.sink.to(wide)
        rows.append(_attend(queries.to(wide), k, v, learned, lists, pooled, asked, sink).transpose(0, 1))
    return torch.cat(rows).to(q.dtype) if rows else q.new_zeros(0, q.shape[1], parts[0].v_width)


@dataclass(frozen=True, eq=False)
class _Chunks:
    """A key and a value for each chunk: k [G, M, D], v [G, M, E]."""

    k: Tensor
    v: Tensor
    span: int
    step: int


def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    learned: int,
    lists: list[Lists],
    pooled: list[_Chunks],
    asked: Asked,
    sink: Tensor | None,
) -> Tensor:
    """q [H, N, D] of one sequence, k [G, L, D], v [G, L, E], the first of them `learned` -> [H, N, E]."""
    bounded = all(one.selector.top_k is not None and (one.since is None or q.device.type == "cpu") for one in lists)
    listed = sum(one.index.shape[2] * one.selector.unit for one in lists)
    ratio = 1 if q.shape[1] <= DECODE_TOKENS else PREFILL_RATIO
    few = max(1, min(QUERIES, NUMBERS // max(1, listed * q.shape[2] * len(q))))
    choosers = max([1, *(len(one.index) for one in lists)])
    outputs, begin = [], 0
    while begin < q.shape[1]:
        gathers = bounded and listed * ratio < asked.past + begin  # content decides nothing here, nor how sums are rounded
        most = max(QUERIES // 4, min(MASKED, MASK // (choosers * (asked.past + begin + MASKED))))
        end = min(q.shape[1], begin + (few if gathers else most))
        first, last = asked.past + begin, asked.past + end - 1
        i = torch.arange(first, last + 1, device=q.device)
        here = [_part(one, begin, end) for one in lists]
        stretches = [*reach(asked.numbers, first, last), *_newer(here, last)]
        j = _positions(joined(stretches) if gathers else [(-learned, last + 1)], learned, last, q.device)
        near = _shown(asked.numbers, here, i[:, None], j[None, :]).unsqueeze(0)
        keys = [_Keys(k[:, j + learned], v[:, j + learned], near if gathers else _with_lists(near, here, i, j, last + 1))]
        if gathers:
            keys += _gathered(k[:, learned:], v[:, learned:], here, i, asked.numbers)
        keys += [
            _Keys(one.k, one.v, seen_chunks(asked.numbers, i, one.k.shape[1], one.span, one.step).unsqueeze(0))
            for one in pooled
        ]
        o = _softmax(q[:, begin:end], keys, asked, sink)
        for one in here:
            o = o.masked_fill(_for_heads(one.count < 0, len(q)).unsqueeze(-1), float("nan"))
        outputs.append(o)
        begin = end
    return torch.cat(outputs, dim=1) if outputs else q.new_zeros(q.shape[0], 0, v.shape[2])


def _part(one: Lists, begin: int, end: int) -> Lists:
    """The lists of some of the queries, a row each; one row for all where all share it."""
    if one.index.shape[1] != 1 or one.since is not None:
        return one.of(begin, end)
    return Lists(one.selector, one.index, one.count)


def _newer(lists: list[Lists], last: int) -> list[tuple[int, int]]:
    """Stretches of tokens that some lists show because they came later."""
    found = [one.since for one in lists if one.since is not None]
    return [(int(since.min()) + 1, last + 1) for since in found if len(since) and since.device.type == "cpu"]


def _shown(numbers: Numbers, lists: list[Lists], i: Tensor, j: Tensor) -> Tensor:
    """Which keys at positions j [..., n or 1, L] the queries at i [n, 1] see but for what content chooses."""
    seen = visible(numbers, i, j)
    for one in lists:
        if one.since is not None:
            seen = seen | ((j > one.since.unsqueeze(1)) & (j <= i) & (j >= 0))
    return seen


def _positions(stretches: list[tuple[int, int]], learned: int, last: int, device: torch.device) -> Tensor:
    """The positions of some stretches, of those that there are: -learned..last."""
    cut = [(max(low, -learned), min(high, last + 1)) for low, high in stretches]
    found = [torch.arange(low, high, device=device) for low, high in cut if low < high]
    return torch.cat(found) if found else torch.zeros(0, dtype=torch.int64, device=device)


@dataclass(frozen=True, eq=False)
class _Keys:
    """Keys that queries read: k [G, L, D], v [G, L, E] by all, or [C, n, K, D], [C, n, K, E] each its own; seen [C, n, L]."""

    k: Tensor
    v: Tensor
    seen: Tensor


def _for_heads(x: Tensor, heads: int) -> Tensor:
    """[C, ...] -> [heads, ...]: each chooser's row for the heads that share it."""
    return x.repeat_interleave(heads // len(x), dim=0)


def kept_table(one: Lists, units: int) -> Tensor:
    """[C, n, units], which units each query keeps."""
    inside = torch.arange(one.index.shape[2], device=one.index.device) < one.count.unsqueeze(-1)
    table = torch.zeros(*one.index.shape[:2], units + 1, dtype=torch.bool, device=one.index.device)
    return table.scatter(2, torch.where(inside, one.index.long().clamp(max=units), units), True)[..., :units]


def _with_lists(near: Tensor, lists: list[Lists], i: Tensor, j: Tensor, text: int) -> Tensor:
    """near [1, n, L] and the keys of the lists: [C, n, L], C of those who share the least. `text`: tokens read so far."""
    seen = near
    for one in lists:
        table = kept_table(one, -(-text // one.selector.unit))
        if one.selector.diagonals:
            spread = table.expand(-1, len(i), -1)
            kept = spread.gather(2, _unit(one, i, j[None, :]).expand(len(table), -1, -1)) & (j >= 0)
        else:
            spread = table.unsqueeze(-1).expand(-1, -1, -1, one.selector.unit).flatten(2)
            kept = F.pad(spread[..., :text], (len(j) - text, 0))
        kept = kept & (j <= i[:, None])
        finest = max(len(seen), len(kept))
        seen = _for_heads(seen, finest) | _for_heads(kept, finest)
    return seen


def _unit(one: Lists, i: Tensor, j: Tensor) -> Tensor:
    """The number of the unit that holds the keys at j [..., n, L] for queries at positions i [n]; any for what is in none."""
    if one.selector.diagonals:
        return (i.unsqueeze(1) - j.clamp(min=0)).clamp(min=0)
    return torch.div(j.clamp(min=0), one.selector.unit, rounding_mode="floor").expand(*j.shape[:-2], len(i), -1)


def _gathered(k: Tensor, v: Tensor, lists: list[Lists], i: Tensor, numbers: Numbers) -> list[_Keys]:
    """The keys that each of the queries at positions i keeps, and no interval shows: each key in the first list that has it."""
    found: list[_Keys] = []
    choosers = max([len(k), *(len(one.index) for one in lists)])
    head = torch.arange(choosers, device=k.device) // (choosers // len(k))
    units = -(-k.shape[1] // min(one.selector.unit for one in lists)) if lists else 0
    before: list[tuple[Lists, Tensor]] = []
    for one in lists:
        unit, index = one.selector.unit, _for_heads(one.index, choosers).long().expand(-1, len(i), -1)
        inside = torch.arange(index.shape[2], device=k.device) < _for_heads(one.count, choosers).unsqueeze(-1)
        j = (index.unsqueeze(-1) * unit + torch.arange(unit, device=k.device)).flatten(2)  # [C, n, K]
        j = i[:, None] - index if one.selector.diagonals else j
        seen = inside.repeat_interleave(unit, dim=-1) & (j <= i[:, None]) & (j >= 0) & (j < k.shape[1])
        j = j.clamp(0, k.shape[1] - 1)
        seen = seen & ~_shown(numbers, lists, i[:, None], j)
        for other, table in before:
            seen = seen & ~table.expand(-1, len(i), -1).gather(2, _unit(other, i, j))
        if len(lists) > 1:
            before.append((one, _for_heads(kept_table(one, units), choosers)))
        place, j = head[:, None, None], torch.where(seen, j, i[:, None])  # 0 * NaN is NaN; a query's own NaN is in it anyway
        found.append(_Keys(k[place, j], v[place, j], seen))
    return found


def _softmax(q: Tensor, keys: list[_Keys], asked: Asked, sink: Tensor | None) -> Tensor:
    """q [H, n, D] -> [H, n, E], one softmax over all keys that are seen; 0 where none is."""
    heads = len(q)
    if len(keys) == 1 and sink is None and asked.cap is None and not isinstance(asked.scale, Tensor):
        return _masked(q, keys[0], asked.scale)
    logits = torch.cat([_products(q, one.k) for one in keys], dim=-1)
    logits = logits * (asked.scale.view(-1, 1, 1) if isinstance(asked.scale, Tensor) else asked.scale)
    logits = logits if asked.cap is None else asked.cap * torch.tanh(logits / asked.cap)
    seen = torch.cat([_for_heads(one.seen, heads) for one in keys], dim=-1)
    logits = logits.masked_fill(~seen, float("-inf"))
    if sink is not None:
        logits = torch.cat((logits, sink.view(-1, 1, 1).expand(*logits.shape[:2], 1)), dim=-1)
    empty = ~seen.any(dim=-1, keepdim=True)
    if sink is None:
        logits = logits.masked_fill(empty, 0.0)  # a softmax over nothing is NaN, in the gradient too
    weights = torch.softmax(logits, dim=-1).masked_fill(empty, 0.0)
    o, start = q.new_zeros(()), 0
    for one in keys:
        width = one.seen.shape[-1]
        o = o + _read(weights[..., start : start + width], one)
        start += width
    return o


def _masked(q: Tensor, keys: _Keys, scale: float) -> Tensor:
    """The same by PyTorch's kernel, of keys that all heads of a KV head read."""
    groups, (heads, n, width) = len(keys.k), q.shape
    k, v = (x.to(q.dtype).unsqueeze(1).expand(-1, heads // groups, -1, -1) for x in (keys.k, keys.v))
    if scale == 0.0:  # a plain mean; 0 * -inf is NaN
        q, scale = torch.zeros_like(q), 1.0
    hidden = keys.seen.logical_not().to(q.dtype) * HIDDEN  # numbers: PyTorch makes them of bools, in more time
    shape = (groups, -1) if len(keys.seen) > 1 else (1, 1)
    o = F.scaled_dot_product_attention(
        q.reshape(groups, -1, n, width), k, v, hidden.reshape(*shape, *hidden.shape[1:]), scale=scale
    )
    return o.reshape(heads, n, -1).masked_fill(~_for_heads(keys.seen.any(dim=-1), heads).unsqueeze(-1), 0.0)


def _products(q: Tensor, k: Tensor) -> Tensor:
    """q [H, n, D] with keys of all or of each query -> [H, n, L]."""
    grouped = q.reshape(len(k), len(q) // len(k), *q.shape[1:])
    k = k.to(q.dtype)
    if k.dim() == 3:
        return (grouped @ k.unsqueeze(1).transpose(2, 3)).flatten(0, 1)
    products: Tensor = torch.einsum("crnd,cnkd->crnk", grouped, k)
    return products.flatten(0, 1)


def _read(weights: Tensor, keys: _Keys) -> Tensor:
    """Weights [H, n, L] of the values: [H, n, E]."""
    v = keys.v.to(weights.dtype)
    grouped = weights.reshape(len(v), len(weights) // len(v), *weights.shape[1:])
    if v.dim() == 3:
        unseen = ~keys.seen.flatten(0, 1).any(dim=0).view(1, -1, 1)  # 0 * NaN is NaN
        return (grouped @ v.masked_fill(unseen, 0.0).unsqueeze(1)).flatten(0, 1)
    sums: Tensor = torch.einsum("crnk,cnke->crne", grouped, v)
    return sums.flatten(0, 1)
