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
import torch.nn.functional as F
from torch import Tensor

from .batch import Batch
from .selector import Selector

if TYPE_CHECKING:
    from .storage import LayerCache


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows that ask: q [H, r, n, D] at positions at [r, n], -1 where there is none.

    last  [r], the position at which a row chooses
    row   [N], the row that each of the call's queries asks by; None: its own
    weights  [H, r] of the heads of an indexer, whose scores add up; None: of heads of their own
    """

    q: Tensor
    at: Tensor
    last: Tensor
    row: Tensor | None = None
    weights: Tensor | None = None

    def some(self, begin: int, end: int) -> Rows:
        """Some of the rows, whoever asks by them."""
        weights = None if self.weights is None else self.weights[:, begin:end]
        return Rows(self.q[:, begin:end], self.at[begin:end], self.last[begin:end], weights=weights)


def asking(selector: Selector, q: Tensor, past: int, stepwise: bool, earlier: Tensor | None) -> Rows:
    """Queries q [H, N, D] from position `past` on -> who asks. `earlier`: the state (see `remember`), or None."""
    i = torch.arange(q.shape[1], device=q.device) + past
    q = q.to(torch.promote_types(q.dtype, torch.float32))
    if selector.asks == "each" or not len(i):
        return Rows(q.unsqueeze(2), i.unsqueeze(1), i)
    if selector.keys == "joined":
        return _joined(selector, q, past)
    if selector.asks == "block":
        return _running(selector, q, i, earlier) if stepwise else _blocks(selector, q, i, earlier)
    if earlier is not None:
        before = min(past, selector.many - 1)
        q = torch.cat((earlier.transpose(0, 1)[:, earlier.shape[0] - before :].to(q.dtype), q), dim=1)
        past -= before
    last = i if stepwise else i[-1:]
    at = last.unsqueeze(1) - torch.arange(selector.many - 1, -1, -1, device=q.device)
    rows = q[:, (at - past).clamp(min=0)]
    return Rows(rows, at.masked_fill(at < past, -1), last, None if stepwise else torch.zeros_like(i))


def _cut(q: Tensor, past: int, many: int) -> tuple[Tensor, Tensor]:
    """Queries q [H, N, D] from position `past` on in blocks, zeros where there is none [H, r, many, D]; which are [r, many]."""
    begin, end = past // many * many, -(-(past + q.shape[1]) // many) * many
    before, after = past - begin, end - past - q.shape[1]
    there = F.pad(torch.ones(q.shape[1], dtype=torch.bool, device=q.device), (before, after)).view(-1, many)
    return F.pad(q, (0, 0, before, after)).view(q.shape[0], len(there), many, q.shape[2]), there


def _blocks(selector: Selector, q: Tensor, i: Tensor, earlier: Tensor | None) -> Rows:
    """A row for each block, by the mean of its queries."""
    past, many = int(i[0]), selector.many
    cut, there = _cut(q, past, many)
    cut, there = cut[:, :, :: selector.every], there[:, :: selector.every]
    sums, counts = cut.sum(dim=2), there.sum(dim=1)
    if earlier is not None and past % many:
        sums = torch.cat((sums[:, :1] + earlier.to(q.dtype).unsqueeze(1), sums[:, 1:]), dim=1)
        counts = counts + F.pad(counts.new_full((1,), -(-(past % many) // selector.every)), (0, len(counts) - 1))
    row = torch.div(i, many, rounding_mode="floor") - past // many
    last = ((torch.arange(len(counts), device=q.device) + past // many + 1) * many - 1).clamp(max=past + len(i) - 1)
    mean = sums / counts.clamp(min=1).view(1, -1, 1)
    return Rows(mean.unsqueeze(2), last.unsqueeze(1), last, row)


def _running(selector: Selector, q: Tensor, i: Tensor, earlier: Tensor | None) -> Rows:
    """Each query by the mean of its block's up to itself."""
    past, many = int(i[0]), selector.many
    cut, there = _cut(q, past, many)
    chosen = there & (torch.arange(many, device=q.device) % selector.every == 0)
    sums, counts = (cut * chosen.unsqueeze(-1)).cumsum(dim=2), chosen.cumsum(dim=1)
    if earlier is not None and past % many:
        first = F.pad(earlier.to(q.dtype).view(len(q), 1, 1, -1), (0, 0, 0, 0, 0, len(counts) - 1))
        sums, counts = (
            sums + first,
            counts + F.pad(counts.new_full((1, 1), -(-(past % many) // selector.every)), (0, 0, 0, len(counts) - 1)),
        )
    mean = sums.flatten(1, 2) / counts.clamp(min=1).view(1, -1, 1)
    own = mean[:, past % many : past % many + len(i)]
    return Rows(own.unsqueeze(2), i.unsqueeze(1), i)


def _joined(selector: Selector, q: Tensor, past: int) -> Rows:
    """A row for each block, of groups of `span` queries read backwards as one; a group that is not complete does not ask."""
    many, span = selector.many, selector.span
    cut, there = _cut(q, past, many)
    groups = cut.view(*cut.shape[:2], many // span, span, q.shape[2]).flip(3).flatten(3)
    whole = there.view(len(there), many // span, span).all(dim=2)
    end = past + q.shape[1]
    begin = (torch.arange(len(there), device=q.device) + past // many) * many
    at = begin.unsqueeze(1) + (torch.arange(many // span, device=q.device) + 1) * span - 1
    row = torch.div(torch.arange(past, end, device=q.device), many, rounding_mode="floor") - past // many
    return Rows(groups, at.masked_fill(~whole, -1), (begin + many - 1).clamp(max=end - 1), row)


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
