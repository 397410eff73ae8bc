"""Who asks for keys: every query for itself, a block's mean for its queries, or the last queries for all.

Known queries decide: in training and prefill those of the call, so that a block asks as one; in decode those up to the query
itself, so that calls of any size choose as steps of one token do. What earlier calls asked is a state in the cache.

Legend: N queries of a sequence in a call; H query heads; r rows that ask, each with n queries; D width.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .batch import Batch
from .selector import Selector

if TYPE_CHECKING:
    from .storage import LayerCache


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows that ask: q [H, r, n, D] at positions at [r, n], -1 where there is none; the last of a row is where it chooses.

    row  [N], the row that each of the call's queries asks by; None: its own
    """

    q: Tensor
    at: Tensor
    row: Tensor | None = None


def asking(selector: Selector, q: Tensor, past: int, stepwise: bool, earlier: Tensor | None) -> Rows:
    """Queries q [H, N, D] from position `past` on -> who asks. `earlier`: the state (see `remember`), or None."""
    i = torch.arange(q.shape[1], device=q.device) + past
    if selector.asks == "each" or not len(i):
        return Rows(q.unsqueeze(2), i.unsqueeze(1))
    if selector.asks == "block":
        return _blocks(selector, q, past, stepwise, earlier)
    if earlier is not None:
        before = min(past, selector.many - 1)
        q = torch.cat((earlier.transpose(0, 1)[:, earlier.shape[0] - before :].to(q.dtype), q), dim=1)
        past -= before
    last = i if stepwise else i[-1:]
    at = last.unsqueeze(1) - torch.arange(selector.many - 1, -1, -1, device=q.device)
    there = at >= past
    rows = q[:, (at - past).clamp(min=0)]
    return Rows(rows, at.masked_fill(~there, -1), None if stepwise else torch.zeros_like(i))


def _blocks(selector: Selector, q: Tensor, past: int, stepwise: bool, earlier: Tensor | None) -> Rows:
    many, every = selector.many, selector.every
    n = q.shape[1]
    i = torch.arange(n, device=q.device) + past
    chosen = ((i % many) % every == 0).to(q.dtype)
    start = past // many * many
    total = (q * chosen.view(1, -1, 1)).cumsum(dim=1)
    count = chosen.cumsum(dim=0)
    if stepwise:
        ends, row = torch.arange(n, device=q.device), None
    else:
        blocks = range(past // many, (past + n - 1) // many + 1)
        ends = torch.tensor([min((b + 1) * many, past + n) - 1 - past for b in blocks], device=q.device)
        row = torch.div(i, many, rounding_mode="floor") - past // many
    begins = torch.div(i[ends], many, rounding_mode="floor") * many - past - 1  # the query before the block, if of this call
    inside = (begins >= 0).to(q.dtype)
    before = total[:, begins.clamp(min=0)] * inside.view(1, -1, 1)
    sums, counts = total[:, ends] - before, count[ends] - count[begins.clamp(min=0)] * inside
    if earlier is not None and past > start:
        own = (begins < 0).to(q.dtype)
        sums = sums + earlier.to(q.dtype).unsqueeze(1) * own.view(1, -1, 1)
        counts = counts + own * (-(-(past - start) // every))
    mean = sums / counts.clamp(min=1).view(1, -1, 1)
    return Rows(mean.unsqueeze(2), i[ends].unsqueeze(1), row)


def earlier_of(selector: Selector, cache: LayerCache | None, batch: Batch, heads: slice) -> Tensor | None:
    """The states [S, ...] of what earlier calls asked, for some query heads; None where no cache holds them."""
    if cache is None or not selector.held or selector.asks == "each" or f"{selector.held}.query" not in cache.states:
        return None
    state = cache.state(f"{selector.held}.query", batch)
    return state[:, heads] if selector.asks == "block" else state[:, :, heads]


def remember(selectors: Iterable[Selector], cache: LayerCache, q: Tensor, batch: Batch) -> None:
    """Keep what this call's queries q [T, H, D] ask: of `block` the sum of the unfinished block's, [S, H, D]; of `last` the
    last n - 1, [S, n - 1, H, D].
    """
    for selector in selectors:
        name = f"{selector.held}.query"
        if selector.asks == "each" or not selector.held or name not in cache.states:
            continue
        state = cache.state(name, batch).clone()
        for s, tokens in enumerate(torch.split(q, list(batch.sizes))):
            if len(tokens):
                state[s] = _next(selector, state[s], tokens.to(state.dtype), batch.pasts[s])
        cache.set_state(name, state, batch)


def _next(selector: Selector, state: Tensor, q: Tensor, past: int) -> Tensor:
    """The state of one sequence after queries q [N, H, D] from position `past` on."""
    if selector.asks == "last":
        return torch.cat((state, q))[len(q) :]
    many, end = selector.many, past + len(q)
    begin = end // many * many  # of the block in progress
    i = torch.arange(past, end, device=q.device)
    fresh = q[(i >= begin) & ((i % many) % selector.every == 0)].sum(dim=0)
    return fresh + state if begin <= past and past % many else fresh
