"""The lists of one sequence: who scores for a choice, how long it holds, and which queries see everything anyway.

Legend: N queries of a sequence in a call; H query heads, G KV heads; L keys; D width; C choosers; K the most units of a choice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from .asking import Rows, asking, earlier_of
from .batch import Batch
from .pooled import run_keys, text_keys
from .scorers import Indexed, LearnedPool
from .selecting import Asked, choose
from .selector import Lists, Selector

if TYPE_CHECKING:
    from .storage import LayerCache

MISSING, BROKEN = -1, -2
"""In a choice that is kept: no unit; nobody knows, since a score was NaN."""


@dataclass(frozen=True, eq=False)
class Asker:
    """Sequence s of a call: queries q [H, N, D] of `heads`, keys k [G, L, D] of KV heads first..last, learned ones left out."""

    q: Tensor
    k: Tensor
    first: int
    last: int
    heads: slice
    s: int
    batch: Batch
    cache: LayerCache | None

    @property
    def past(self) -> int:
        """Tokens before the call."""
        return self.batch.pasts[self.s]

    @property
    def decodes(self) -> bool:
        """Whether queries choose one by one."""
        return self.batch.phase == "decode"


def lists_of(one: Selector, asker: Asker, asked: Asked) -> Lists:
    """What a selector keeps for the queries of a sequence."""
    if one.source is not None and one.previous:
        key = (one, asker.s, asker.first, asker.last, asked.numbers)
        if key not in one.source.made:
            one.source.made[key] = _made(one, lent(one, asker), asked)
        found: Lists = one.source.made[key]
        return found
    return _made(one, asker, asked)


def lent(one: Selector, asker: Asker) -> Asker:
    """The same sequence with the queries and keys of the layer that lends its choice."""
    source = one.source
    assert source is not None, "asked only where a layer lends its choice"
    if one.keys == "summary":  # which alone is another's
        return asker
    q = torch.split(source.q[:, asker.heads], list(asker.batch.sizes))[asker.s].transpose(0, 1)
    k, _, learned = text_keys(source.parts, asker.first, asker.last, asker.s)
    return replace(asker, q=q, k=k[:, learned:], cache=source.cache)


def _made(one: Selector, asker: Asker, asked: Asked) -> Lists:
    def fresh(begin: int, end: int) -> Lists:
        rows = rows_of(one, asker)
        rows = rows if (begin, end) == (0, asker.q.shape[1]) else rows.some(begin, end)
        keys = run_keys(one, asker.k, asker.first, asker.last, asker.s, asker.batch, asker.cache)
        return choose(one, rows, keys, asked)

    lists = held_lists(one, asker, fresh) if holds(one, asker) else fresh(0, asker.q.shape[1])
    return lists if one.all_seen is None else replace(lists, since=all_seen(one, asker, lists.since))


def rows_of(one: Selector, asker: Asker) -> Rows:
    """Who asks for a sequence."""
    if isinstance(one.net, LearnedPool):
        rows = asking(one, one.net.plain(asker.q, asker.past), asker.past, asker.decodes, None)
        heads = asker.last - asker.first + 1
        return replace(rows, q=one.net.queries(rows.q[:, :, 0], rows.last, one.many, asker.first, heads).unsqueeze(2))
    if isinstance(one.net, Indexed):
        net = one.net.split(asker.batch.sizes)[asker.s]
        return replace(asking(one, net.q.transpose(0, 1), asker.past, asker.decodes, None), weights=net.weights.t())
    earlier = earlier_of(one, asker.cache, asker.batch, asker.heads)
    return asking(one, asker.q, asker.past, asker.decodes, None if earlier is None else earlier[asker.s])


def holds(one: Selector, asker: Asker) -> bool:
    """Whether a choice is kept for several steps."""
    return bool(one.refresh) and asker.decodes and asker.cache is not None and bool(one.held)


def held_lists(one: Selector, asker: Asker, fresh: Callable[[int, int], Lists]) -> Lists:
    """The choice of each decode step: kept, or made anew where a rule of `refresh` says so.

    On a CPU only choices that are needed are made. Elsewhere nobody waits for a device to say which: all are, and it takes one.
    """
    cache, batch, s = asker.cache, asker.batch, asker.s
    assert cache is not None, "a choice is kept in a cache"
    names = {name: f"{one.held}.{name}" for name in ("chosen", "chosen_at", "asked")}
    chosen, at = (cache.state(names[name], batch)[s] for name in ("chosen", "chosen_at"))
    before = cache.state(names["asked"], batch)[s] if names["asked"] in cache.states else None
    lists, since = [], []
    for t in range(asker.q.shape[1]):
        i, q = asker.past + t, asker.q[:, t]
        fires = _fires(one, i, at, q, before)
        if fires.device.type != "cpu" or bool(fires):
            found = _as_row(fresh(t, t + 1), chosen.shape[1])
            chosen = torch.where(fires, found, chosen)
            at = torch.where(fires, torch.full_like(at, i + 1), at)
            before = None if before is None else torch.where(fires, q.to(before.dtype), before)
        newer = at[0].long() - 1
        since.append(torch.where(fires[0], newer.new_full((), -1 if one.dense else i), newer))
        lists.append(chosen)
    for name, value in (("chosen", chosen), ("chosen_at", at), ("asked", before)):
        if value is not None:
            cache.put_state(names[name], s, value, batch)
    index = torch.stack(lists, dim=1)  # [C, N, K]
    count = (index >= 0).sum(dim=-1, dtype=torch.int32).masked_fill((index == BROKEN).any(dim=-1), -1)
    return Lists(one, index, count, since=torch.stack(since))


def _fires(one: Selector, i: int, at: Tensor, q: Tensor, before: Tensor | None) -> Tensor:
    """Whether the query at position i chooses anew, [1]; `at`: one past the position that chose last, 0 where none has."""
    steps = i + 1 - at
    fires = at == 0
    for rule in one.refresh:
        if isinstance(rule, int):
            fires = fires | (steps >= rule)
        else:
            assert before is not None, "the query that chose last is kept"
            cosine = F.cosine_similarity(q.flatten().to(before.dtype), before.flatten(), dim=0)
            fires = fires | ((torch.remainder(steps, rule[1]) == 0) & (cosine < rule[0]))
    return fires


def _as_row(lists: Lists, most: int) -> Tensor:
    """The only row of lists as numbers [C, most], MISSING where there are fewer."""
    index, count = lists.index[:, 0, :most], lists.count
    inside = torch.arange(index.shape[1], device=index.device) < count
    row = F.pad(torch.where(inside, index, MISSING), (0, most - index.shape[1]), value=MISSING)
    return torch.where(count < 0, BROKEN, row).to(torch.int32)


def all_seen(one: Selector, asker: Asker, since: Tensor | None) -> Tensor:
    """From where on each query sees all tokens, [N]: from the first on, for those that see everything."""
    assert one.all_seen is not None, "asked only where some do"
    word, n = one.all_seen
    i = torch.arange(asker.q.shape[1], device=asker.q.device) + asker.past
    everything = i < n if word == "first" else i >= asker.batch.totals[asker.s] - n
    return torch.where(everything, -1, i if since is None else since)
