"""Choosing units by content: scores of a block of queries at a time, never T x T, and lists of what each keeps.

Legend: n queries of a block at positions i; H query heads, G KV heads, R = H // G; C choosers; L keys; M runs; U units; D width
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .asking import Rows
from .pooled import RunKeys
from .selector import Lists, Selector
from .spans import Numbers, visible

BLOCK = 256
"""Queries whose scores are made at once."""


@dataclass(frozen=True)
class Asked:
    """A sequence's part of a call: tokens before it and with it, `length` (of shares), the keys of the intervals, logits."""

    past: int
    tokens: int
    length: int
    numbers: Numbers
    scale: float | Tensor
    cap: float | None


def choose(selector: Selector, rows: Rows, keys: RunKeys, asked: Asked) -> Lists:
    """What each row keeps, of a sequence of `asked.tokens` tokens with this call's."""
    bound = (
        selector.most(asked.length, -(-asked.tokens // selector.unit)) if selector.wanted(asked.length) is not None else None
    )
    index, counts = [], []
    size = max(1, BLOCK // rows.at.shape[1])
    for begin in range(0, rows.q.shape[1], size):
        some, read = rows.some(begin, begin + size), _read(selector, asked, begin + size)
        units = -(-read // selector.unit)
        scores, candidate = unit_scores(selector, some, keys.of(selector, read), units, asked.scale, asked.cap)
        shown = None if selector.overlap == "ranked" else shown_units(selector, units, some.last, asked.numbers)
        order, enough = ranked_units(selector, scores, candidate, shown, asked.length)
        count = enough.sum(dim=-1, dtype=torch.int32)
        most = int(count.amax()) if bound is None else bound  # else the device knows how many
        ahead = (
            order[..., :most].masked_fill(~enough[..., :most], units)
            if bound is not None
            else order.masked_fill(~enough, units)
        )
        index.append(ahead.sort(dim=-1).values[..., :most].to(torch.int32))
        counts.append(count.masked_fill((scores.isnan() & candidate).any(dim=-1), -1))
    if not index:
        choosers = {"head": rows.q.shape[0], "group": keys.k.shape[0], "layer": 1}[selector.shared]
        none = torch.zeros(choosers, 0, dtype=torch.int32, device=rows.q.device)
        return Lists(selector, none.unsqueeze(-1), none)
    longest = max(one.shape[-1] for one in index)
    padded = [F.pad(one, (0, longest - one.shape[-1])) for one in index]
    return Lists(selector, torch.cat(padded, dim=1), torch.cat(counts, dim=1), rows.row)


def _read(selector: Selector, asked: Asked, rows: int) -> int:
    """How many tokens the first so many rows have read at most; no device is asked."""
    match selector.asks:
        case "each":
            end = asked.past + rows
        case "block":
            end = (asked.past // selector.many + rows) * selector.many
        case "last":
            end = asked.tokens
    return min(end, asked.tokens)


def unit_scores(
    selector: Selector, rows: Rows, keys: RunKeys, units: int, scale: float | Tensor, cap: float | None
) -> tuple[Tensor, Tensor]:
    """Rows that ask -> (scores [C, r, U], fp32 or float64; which units are candidates [r, U])."""
    count, many = rows.at.shape
    q, at = rows.q.flatten(1, 2), rows.at.flatten()
    grouped = q.reshape(len(keys.k), q.shape[0] // len(keys.k), *q.shape[1:])  # [G, R, r n, D]
    runs = keys.k.shape[1]
    whole = _read_whole(at, runs, selector.span, selector.step)  # [r n, M]
    scores = _products(grouped, keys, q.dtype)
    if rows.weights is not None:  # of an indexer's heads: [1, J, r, M] -> [1, 1, r, M]
        scores = (scores.relu() * rows.weights.to(q.dtype).unsqueeze(-1)).sum(dim=1, keepdim=True)
        scale, cap = 1.0, None
    if selector.score == "softmax":
        scale = scale / selector.span if selector.keys == "joined" else scale
        scores = _shares(scores, whole, grouped, keys, at, selector, (scale, cap))
    else:
        scores = scores.masked_fill(~whole, float("-inf") if many == 1 else 0.0)
    if selector.diagonals:
        scores = _along_diagonals(scores, at, units)
    if many > 1:  # their scores add up
        scores = scores.view(*scores.shape[:2], count, many, -1).sum(dim=3)
    scores = _over_heads(selector, scores)
    if selector.diagonals:
        return scores, torch.arange(units, device=q.device) <= rows.last.unsqueeze(1)
    return _folded(selector, scores, _read_whole(rows.last, runs, selector.span, selector.step), rows.last, units)


def _along_diagonals(scores: Tensor, at: Tensor, units: int) -> Tensor:
    """Scores [G, R, n, L] of keys by queries at positions [n] -> of distances back [G, R, n, U], 0 beyond the first key."""
    place = at.unsqueeze(1) - torch.arange(units, device=at.device)
    found = scores.gather(3, place.clamp(0, scores.shape[3] - 1).expand(*scores.shape[:2], -1, -1)) if units else scores
    return found.masked_fill(place < 0, 0.0)


def _folded(selector: Selector, scores: Tensor, whole: Tensor, last: Tensor, units: int) -> tuple[Tensor, Tensor]:
    """Scores [C, r, M] of runs, which have been read whole [r, M], -> (of units [C, r, U], candidates [r, U])."""
    runs, device = scores.shape[2], scores.device
    first, count = touched(selector, units)
    width = int(count.max()) if units else 0
    if runs == 0:
        return scores.new_zeros(*scores.shape[:2], units), torch.zeros(len(last), units, dtype=torch.bool, device=device)
    places = first.unsqueeze(1) + torch.arange(width)
    inside = ((torch.arange(width) < count.unsqueeze(1)) & (places < runs)).to(device)
    places = places.clamp(max=runs - 1).to(device)
    there = whole[:, places] & inside  # [r, U, width]
    found = scores[:, :, places]
    if selector.fold == "max":
        found = found.masked_fill(~there, float("-inf")).amax(dim=-1)
    else:
        found = found.masked_fill(~there, 0.0).sum(dim=-1)
    end = (torch.arange(units, device=device) + 1) * selector.unit
    return found, (end <= last.unsqueeze(1) + 1) & there.any(dim=-1)


def touched(selector: Selector, units: int) -> tuple[Tensor, Tensor]:
    """The first run that has a token in common with each unit, and how many have: [U] and [U]."""
    begin = torch.arange(units) * selector.unit
    first = (torch.div(begin - selector.span, selector.step, rounding_mode="floor") + 1).clamp(min=0)
    last = torch.div(begin + selector.unit - 1, selector.step, rounding_mode="floor")
    return first, last - first + 1


def _read_whole(i: Tensor, count: int, span: int, step: int) -> Tensor:
    """Which of `count` runs each query has read whole, [n, count]."""
    return torch.arange(count, device=i.device) * step + span <= i.unsqueeze(1) + 1


def _products(q: Tensor, keys: RunKeys, wide: torch.dtype) -> Tensor:
    """q [G, R, n, D] -> [G, R, n, M]; with bounds the largest product that a key within them could have."""
    if keys.upper is None:
        return q @ keys.k.to(wide).unsqueeze(1).transpose(2, 3)
    upper, lower = (x.to(wide).unsqueeze(1).transpose(2, 3) for x in (keys.upper, keys.k))
    return q.clamp(min=0) @ upper + q.clamp(max=0) @ lower


def _shares(
    products: Tensor,
    whole: Tensor,
    q: Tensor,
    keys: RunKeys,
    i: Tensor,
    selector: Selector,
    logit: tuple[float | Tensor, float | None],
) -> Tensor:
    """Each run's share of the mass of all runs read whole; of coarser runs where there are some, [G, R, n, M]."""
    own = _logits(products, logit).masked_fill(~whole, float("-inf"))
    total = own.logsumexp(dim=-1, keepdim=True)
    if keys.lse is not None and selector.lse is not None:
        there = _read_whole(i, keys.lse.shape[1], *selector.lse)
        coarse = _logits(q @ keys.lse.to(q.dtype).unsqueeze(1).transpose(2, 3), logit).masked_fill(~there, float("-inf"))
        if coarse.shape[-1]:
            total = torch.where(there.any(dim=-1, keepdim=True), coarse.logsumexp(dim=-1, keepdim=True), total)
    return torch.exp(own - total.masked_fill(torch.isneginf(total), 0.0))


def _logits(products: Tensor, logit: tuple[float | Tensor, float | None]) -> Tensor:
    scale, cap = logit
    factor = scale.to(products.dtype).view(*products.shape[:2], 1, 1) if isinstance(scale, Tensor) else scale
    scaled = products * factor
    return scaled if cap is None else cap * torch.tanh(scaled / cap)


def _over_heads(selector: Selector, scores: Tensor) -> Tensor:
    """[G, R, n, M] -> [C, n, M]."""
    if selector.shared == "head":
        return scores.flatten(0, 1)
    pools: dict[str, Callable[..., Tensor]] = {"sum": torch.sum, "mean": torch.mean, "max": torch.amax, "min": torch.amin}
    pool = pools[selector.heads]
    return pool(scores, dim=1) if selector.shared == "group" else pool(scores.flatten(0, 1), dim=0, keepdim=True)


def shown_units(selector: Selector, units: int, i: Tensor, numbers: Numbers) -> Tensor:
    """Which units the intervals show, as far as the query may see them: [n, U]. One that it may not see at all is not."""
    if selector.diagonals:
        back = i.unsqueeze(1) - torch.arange(units, device=i.device)
        return visible(numbers, i.unsqueeze(1), back) & (back >= 0)
    unit = selector.unit
    j = torch.arange(units * unit, device=i.device)
    later = j > i.unsqueeze(1)
    return (visible(numbers, i.unsqueeze(1), j) | later).view(len(i), units, unit).all(dim=-1) & ~later[:, ::unit]


def ranked_units(
    selector: Selector, scores: Tensor, candidate: Tensor, shown: Tensor | None, length: int
) -> tuple[Tensor, Tensor]:
    """Units best first, ties to the lowest number, [C, n, U], and which of them are kept: a query's kept ones come first.

    `shown` [n, U]: which the intervals show, and so compete, count or are left out.
    """
    least: int | Tensor = selector.at_least
    most: int | Tensor | None = selector.at_most
    wanted = selector.wanted(length)
    if wanted is not None:
        least = most = max(wanted, least) if most is None else min(max(wanted, least), most)
    before = scores.new_zeros(())
    if shown is not None:
        if selector.overlap == "counted":
            used = shown.sum(dim=-1).view(1, -1, 1)
            least, most = least - used, None if most is None else most - used
            before = torch.where(shown & candidate, scores, 0.0).sum(dim=-1, keepdim=True)
        candidate = candidate & ~shown
    lowest = torch.finfo(scores.dtype).min  # a candidate comes before what is none, whatever its score
    ranked = scores.clamp(min=lowest).masked_fill(~candidate, float("-inf"))
    sorted_scores, order = torch.sort(ranked, dim=-1, descending=True, stable=True)
    rank = torch.arange(scores.shape[-1], device=scores.device)
    there = rank < candidate.sum(dim=-1).view(1, -1, 1)
    enough = rank < least
    if selector.top_p is not None:
        mass = torch.where(there, sorted_scores, 0.0)
        enough = enough | (before + mass.cumsum(dim=-1) - mass < selector.top_p * (before + mass.sum(dim=-1, keepdim=True)))
    elif selector.threshold is not None:
        enough = enough | (sorted_scores > selector.threshold)
    enough = enough & there if most is None else enough & there & (rank < most)
    return order, enough.expand_as(order)
