"""What content adds to the keys of a reference: formulas of reference.py, in plain tensors over all keys.

Legend: N queries of a sequence; H query heads; L keys of its text; D width; C choosers; U units.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from .asking import earlier_of
from .choices import Asker, all_seen, held_lists, holds
from .chunks_pooled import ChunkPool
from .intervals import HeadGroup
from .keys import KeyPart
from .pooled import chunk_keys, chunks, indexer_keys, text_keys
from .rotary import rotate, undo
from .scorers import Indexed, LearnedPool
from .selector import Lists, Selector

Logit = tuple[float | Tensor, float | None]
"""Scale, and soft cap or None."""


def chosen_by_formula(one: Selector, asker: Asker, logit: Logit) -> tuple[Tensor, Tensor]:
    """(which keys of its text each query keeps [H, N, L], where a score is NaN, so that nobody knows [H, N]).

    The asker's keys are repeated for its query heads.
    """
    heads, tokens, length = len(asker.q), asker.q.shape[1], asker.k.shape[1]
    if one.source is not None:
        asker = _lent(one, asker)
    i = torch.arange(tokens, device=asker.q.device) + asker.past
    if holds(one, asker):
        lists = held_lists(one, asker, lambda begin, end: _as_lists(one, asker, logit, begin, end))
        kept, broken = _as_mask(lists, i, heads, length), (lists.count < 0).repeat_interleave(heads // len(lists.count), dim=0)
        since = lists.since
    else:
        kept, broken = _formula(one, asker, logit, 0, tokens)
        since = None
    if one.all_seen is not None:
        since = all_seen(one, asker, since)
    if since is not None:
        j = torch.arange(length, device=i.device)
        kept = kept | ((j > since.unsqueeze(1)) & (j <= i.unsqueeze(1)))
    return kept, broken


def _lent(one: Selector, asker: Asker) -> Asker:
    """The queries and keys of the layer that lends its choice."""
    source = one.source
    assert source is not None, "asked only where a layer lends its choice"
    if one.keys == "summary":  # which alone is another's
        return asker
    q = torch.split(source.q[:, asker.heads], list(asker.batch.sizes))[asker.s].transpose(0, 1)
    k, _, learned = text_keys(source.parts, asker.first, asker.last, asker.s)
    k = k[:, learned:].repeat_interleave(len(q) // len(k), dim=0)
    return replace(asker, q=q.to(asker.q.dtype), k=k.to(asker.k.dtype), cache=source.cache)


def _formula(one: Selector, asker: Asker, logit: Logit, begin: int, end: int) -> tuple[Tensor, Tensor]:
    """The formula, of some of the queries."""
    assert one.reference is not None, "a selector that runs on the reference has a formula"
    i = torch.arange(begin, end, device=asker.q.device) + asker.past
    earlier = earlier_of(one, asker.cache, asker.batch, asker.heads)
    net: tuple[object, ...] | None = None
    if isinstance(one.net, LearnedPool):
        net = _maps(one.net, asker)
    elif one.keys == "summary":
        assert one.source is not None, "another branch lends its summary"
        found = chunk_keys(one.source, asker.first, asker.last, asker.s, asker.batch)
        net = (found.to(asker.q.dtype).repeat_interleave(len(asker.q) // len(found), dim=0),)
    elif isinstance(one.net, Indexed):
        own, wide = one.net.split(asker.batch.sizes)[asker.s], asker.q.dtype
        k = indexer_keys(one, asker.past + asker.q.shape[1], asker.s, asker.batch, asker.cache)[0]
        net = own.q[begin:end].transpose(0, 1).to(wide), k.to(wide), own.weights[begin:end].t().to(wide)
    call = asker.decodes, None if earlier is None else earlier[asker.s], net
    kept, broken = one.reference(asker.q[:, begin:end], asker.k, i, asker.batch.totals[asker.s], logit, call)
    return kept, broken


def chunk_part(one: Selector, parts: tuple[KeyPart, ...], asker: Asker, group: HeadGroup) -> tuple[Tensor, Tensor, Tensor]:
    """A key [H, M, D] and a value [H, M, E] for each chunk, and which queries see them [N, M]: by the formula, or what a cache
    holds of them.
    """
    net, wide = one.net, asker.q.dtype
    assert isinstance(net, ChunkPool), "chunks have pools"
    assert group.visible is not None, "a group that runs on the reference has a mask"
    i = torch.arange(asker.q.shape[1], device=asker.q.device) + asker.past
    repeat = len(asker.q) // (asker.last - asker.first + 1)
    if asker.cache is not None and one.held:
        k, v = chunks(parts, net, asker.cache, one.held, asker.first, asker.last, asker.s, asker.batch)
    else:
        k, v, learned = text_keys(parts, asker.first, asker.last, asker.s)
        at = torch.arange(k.shape[1] - learned, device=i.device)
        plain = undo(k[:, learned:].to(wide).transpose(0, 1), at, net.rope).transpose(0, 1)

        def turn(x: Tensor, positions: Tensor) -> Tensor:
            return rotate(x.transpose(0, 1), positions, net.rope).transpose(0, 1)

        maps = [
            tuple(x.to(wide) for x in (one_map.place, one_map.up.weight, one_map.down.weight)) if one_map is not None else None
            for one_map in (getattr(net, "k", None), getattr(net, "v", None))
        ]
        assert one.reference is not None, "a selector that runs on the reference has a formula"
        k, v, _ = one.reference(plain, v[:, learned:].to(wide), i, (net.pools, maps, turn))
    m = torch.arange(k.shape[1], device=i.device)
    tokens = torch.arange(asker.past + len(i), device=i.device)
    shown = group.visible(i[:, None], tokens[None, :], asker.batch.totals[asker.s])
    inside = (tokens >= (m * one.step).unsqueeze(1)) & (tokens < (m * one.step + one.span).unsqueeze(1))  # [M, L]
    seen = (m * one.step + one.span <= i.unsqueeze(1) + 1) & ~(shown.float() @ inside.t().float() > 0)
    return k.to(wide).repeat_interleave(repeat, dim=0), v.to(wide).repeat_interleave(repeat, dim=0), seen


def _maps(net: LearnedPool, asker: Asker) -> tuple[object, ...]:
    """(maps of queries and of keys for each query head, pools, how q and k are turned back, how what is mapped is turned)."""
    heads = asker.last - asker.first + 1
    maps = (
        one.weight[asker.first : asker.last + 1].to(asker.q.dtype).repeat_interleave(len(asker.q) // heads, dim=0)
        for one in (net.q_proj, net.k_proj)
    )

    def back(x: Tensor, positions: Tensor) -> Tensor:
        return undo(x.transpose(0, 1), positions, net.rope).transpose(0, 1)

    def turn(x: Tensor, positions: Tensor) -> Tensor:
        return rotate(x.transpose(0, 1), positions, net.turned).transpose(0, 1)

    return (*maps, net.pools, back, turn)


def _as_lists(one: Selector, asker: Asker, logit: Logit, begin: int, end: int) -> Lists:
    """The choice of one query as lists: of each chooser the units of which it keeps the first token."""
    kept, broken = _formula(one, asker, logit, begin, end)
    assert asker.cache is not None, "a choice is kept in a cache"
    choosers = asker.cache.states[f"{one.held}.chosen"].shape[1]
    first = kept[:: len(kept) // choosers, :, :: one.unit]  # [C, 1, U]
    count = first.sum(dim=-1, dtype=torch.int32)
    index = torch.where(first, torch.arange(first.shape[2], device=kept.device), first.shape[2]).sort(dim=-1).values
    return Lists(one, index.to(torch.int32), count.masked_fill(broken[:: len(kept) // choosers], -1))


def _as_mask(lists: Lists, i: Tensor, heads: int, length: int) -> Tensor:
    """Lists [C, N, K] as keys [heads, N, L]."""
    unit = lists.selector.unit
    table = torch.zeros(*lists.index.shape[:2], -(-length // unit) + 1, dtype=torch.bool, device=i.device)
    table.scatter_(2, torch.where(lists.index >= 0, lists.index, -(-length // unit)).long(), True)
    kept = table[..., :-1].repeat_interleave(unit, dim=2)[..., :length]
    return kept.repeat_interleave(heads // len(kept), dim=0) & (torch.arange(length, device=i.device) <= i.unsqueeze(1))
