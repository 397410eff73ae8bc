"""Choosing units by content: scores of a block of queries at a time, never T x T, and lists of what each keeps.

Legend: n queries of a block at positions i; H query heads, G KV heads, R = H // G; C choosers; L keys; M runs; U units; D width
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .pooled import RunKeys
from .selector import Lists, Selector
from .spans import Numbers, visible

BLOCK = 256
"""Queries whose scores are made at once."""


@dataclass(frozen=True)
class Asked:
    """A sequence's part of a call: its first new token's position, `length` (of shares), the keys of the intervals, logits."""

    past: int
    length: int
    numbers: Numbers
    scale: float | Tensor
    cap: float | None


def choose(selector: Selector, q: Tensor, keys: RunKeys, asked: Asked) -> Lists:
    """What each of the queries q [H, N, D] keeps."""
    tokens = asked.past + q.shape[1]
    units = -(-tokens // selector.unit)
    most = selector.most(asked.length, units)
    bounded = selector.wanted(asked.length) is not None
    found, bad = [], []
    for begin in range(0, q.shape[1], BLOCK):
        block = q[:, begin : begin + BLOCK]
        i = torch.arange(begin, begin + block.shape[1], device=q.device) + asked.past
        scores, candidate = unit_scores(selector, block, keys, i, units, asked.scale, asked.cap)
        shown = None if selector.overlap == "ranked" else shown_units(selector.unit, units, i, asked.numbers)
        found.append(kept_units(selector, scores, candidate, shown, asked.length))
        bad.append((scores.isnan() & candidate).any(dim=-1))
    if not found:
        choosers = {"head": q.shape[0], "group": keys.k.shape[0], "layer": 1}[selector.shared]
        none = torch.zeros(choosers, 0, dtype=torch.int32, device=q.device)
        return Lists(selector, none.unsqueeze(-1), none)
    kept = torch.cat(found, dim=1)
    count = kept.sum(dim=-1, dtype=torch.int32)
    if not bounded:  # the device knows how many; the lists are as long as the longest
        most = int(count.amax()) if count.numel() else 0
    numbers = torch.where(kept, torch.arange(units, device=q.device), units).sort(dim=-1).values[..., :most]
    return Lists(selector, numbers.to(torch.int32), count.masked_fill(torch.cat(bad, dim=1), -1))


def unit_scores(
    selector: Selector, q: Tensor, keys: RunKeys, i: Tensor, units: int, scale: float | Tensor, cap: float | None
) -> tuple[Tensor, Tensor]:
    """Queries q [H, n, D] at positions i -> (scores [C, n, U], fp32 or float64; which units are candidates [n, U])."""
    wide = torch.promote_types(q.dtype, torch.float32)
    q = q.to(wide).contiguous()
    repeat = q.shape[0] // keys.k.shape[0]
    grouped = q.view(-1, repeat, *q.shape[1:])  # [G, R, n, D]
    whole = _read_whole(i, keys.k.shape[1], selector.span, selector.step)  # [n, M]
    scores = _products(grouped, keys, wide)
    if selector.score == "softmax":
        scores = _shares(scores, whole, grouped, keys, i, selector, (scale, cap))
    else:
        scores = scores.masked_fill(~whole, float("-inf"))
    scores = _over_heads(selector, scores)
    first, count = touched(selector, units)
    width = int(count.max()) if units else 0
    places = first.unsqueeze(1) + torch.arange(width)
    inside = torch.arange(width) < count.unsqueeze(1)
    if keys.k.shape[1] == 0:
        return scores.new_zeros(scores.shape[0], len(i), units), torch.zeros(len(i), units, dtype=torch.bool, device=q.device)
    places, inside = (x.to(q.device) for x in (places.clamp(max=keys.k.shape[1] - 1), inside & (places < keys.k.shape[1])))
    there = whole[:, places] & inside  # [n, U, width]
    folded = scores[:, :, places] if width > 1 else scores[:, :, places[:, 0]].unsqueeze(-1)
    if selector.fold == "max":
        folded = folded.masked_fill(~there, float("-inf")).amax(dim=-1)
    else:
        folded = folded.masked_fill(~there, 0.0).sum(dim=-1)
    end = (torch.arange(units, device=q.device) + 1) * selector.unit
    return folded, (end <= i.unsqueeze(1) + 1) & there.any(dim=-1)


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


def shown_units(unit: int, units: int, i: Tensor, numbers: Numbers) -> Tensor:
    """Which units the intervals show, as far as the query may see them: [n, U]. One that it may not see at all is not."""
    j = torch.arange(units * unit, device=i.device)
    later = j > i.unsqueeze(1)
    return (visible(numbers, i.unsqueeze(1), j) | later).view(len(i), units, unit).all(dim=-1) & ~later[:, ::unit]


def kept_units(selector: Selector, scores: Tensor, candidate: Tensor, shown: Tensor | None, length: int) -> Tensor:
    """Which units are kept, [C, n, U]: the best, ties to the lowest number. `shown` [n, U]: what becomes of them."""
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
    ranked = torch.where(candidate, scores, float("-inf"))
    order = torch.sort(ranked, dim=-1, descending=True, stable=True).indices
    there = candidate.expand_as(scores).gather(-1, order)
    order = order.gather(-1, torch.sort(there.to(torch.uint8), dim=-1, descending=True, stable=True).indices)
    there = candidate.expand_as(scores).gather(-1, order)
    sorted_scores = scores.gather(-1, order)
    rank = torch.arange(scores.shape[-1], device=scores.device)
    enough = rank < least
    if selector.top_p is not None:
        mass = torch.where(there, sorted_scores, 0.0)
        enough = enough | (before + mass.cumsum(dim=-1) - mass < selector.top_p * (before + mass.sum(dim=-1, keepdim=True)))
    elif selector.threshold is not None:
        enough = enough | (sorted_scores > selector.threshold)
    enough = enough & there if most is None else enough & there & (rank < most)
    return torch.zeros_like(enough).scatter(-1, order, enough)
