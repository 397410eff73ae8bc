"""The oracle's choice of keys by content: one query at a time, in plain sums and sorted lists, from docs/language.md.

Legend: H heads that share a choice; D key width; L keys so far. Kinds are read as data.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from formulas import sees


@dataclass
class Asking:
    """What one choice is made from, and for which query: that at position i.

    q     [H, P, D], the queries at positions 0, 1, ... that are known; k [H, L, D], the keys of each
    last  the position at which the choice is made: i, or the last of those who ask together
    """

    q: torch.Tensor
    k: torch.Tensor
    i: int
    last: int
    length: int
    scale: float
    cap: float | None = None
    net: tuple | None = None
    """an indexer's q [L, J, D], k [L, D] and weights [L, J]"""
    chunks: list | None = None
    """for each head the keys of another branch's chunks"""
    maps: tuple | None = None
    """for each head q [H, P, D] and k [H, L, D] before they are turned, maps of both, and what turns x [n, D] at places [n]"""


def chooses_at(kind, i: int, known: int, decodes: bool) -> int:
    """The position of the last query that takes part in the choice for query i, of those that are known."""
    word = getattr(kind.queries, "word", "each")
    if word == "each" or decodes:
        return i
    return known - 1 if word == "last" else min((i // kind.queries.n + 1) * kind.queries.n, known) - 1


def queries(kind, asking: Asking, h: int) -> list[tuple[torch.Tensor, int]]:
    """Who asks, with the position up to which each reads; several queries' scores add up."""
    word, q, last = getattr(kind.queries, "word", "each"), asking.q[h], asking.last
    if word == "each":
        return [(q[last], last)]
    if word == "last":
        return [(q[p], p) for p in range(max(0, last + 1 - kind.queries.n), last + 1)]
    begin = last // kind.queries.n * kind.queries.n
    return [(torch.stack([q[p] for p in range(begin, last + 1, kind.queries.stride)]).mean(0), last)]


def kept_units(kind, asking: Asking, others) -> tuple[set[int], float]:
    """(numbers of the units that are kept, the smallest gap between a score that was and one that was not).

    `others`: the key sets of the union that are no choice.
    """
    scores = unit_scores(kind, asking)
    size = unit_size(kind)
    shown = {u for u in range(asking.last // size + 1) if all(_shown(others, asking, j) for j in _tokens(kind, u, asking.last))}
    mass, used = 0.0, 0
    if kind.overlap == "counted":
        mass, used = sum(scores.get(u, 0.0) for u in shown), len(shown)
    if kind.overlap != "ranked":
        scores = {u: score for u, score in scores.items() if u not in shown}
    ranked = sorted(scores, key=lambda u: (-scores[u], u))
    count = wanted(kind, ranked, scores, asking.length, mass)
    count = max(count, kind.at_least - used)
    if kind.at_most is not None:
        count = min(count, kind.at_most - used)
    if kind.top_k is not None:
        count = max(amount(kind, asking.length), kind.at_least)
        count = (count if kind.at_most is None else min(count, kind.at_most)) - used
    kept, left = ranked[: max(count, 0)], ranked[max(count, 0) :]
    gap = scores[kept[-1]] - scores[left[0]] if kept and left else math.inf
    return set(kept), gap


def chosen(kind, asking: Asking, others) -> list[bool]:
    """Which keys the choice adds for the query."""
    size = unit_size(kind)
    kept, _ = kept_units(kind, asking, others)
    units = [asking.i - j if kind.unit == "diagonals" else j // size for j in range(asking.k.shape[1])]
    return [unit in kept and j <= asking.i for j, unit in enumerate(units)]


def unit_size(kind) -> int:
    return getattr(kind.unit, "n", 1)


def _tokens(kind, u: int, i: int) -> range:
    """The tokens of a unit that the query may see."""
    size = unit_size(kind)
    if kind.unit == "diagonals":
        return range(i - u, i - u + 1)
    return range(u * size, min((u + 1) * size, i + 1))


def _shown(others, asking: Asking, j: int) -> bool:
    return any(sees(kind, asking.last, j, asking.length, True) for kind in others)


def amount(kind, length: int) -> int:
    """How many units `top_k` asks for."""
    if isinstance(kind.top_k, int):
        return kind.top_k
    if hasattr(kind.top_k, "percent"):
        return max(1, int(length // unit_size(kind) * kind.top_k.percent / 100))
    far = length / kind.top_k.from_
    return kind.top_k.k if far <= 1 else int(kind.top_k.k * far**kind.top_k.exponent)


def wanted(kind, ranked, scores, length: int, mass: float) -> int:
    """How many of the ranked units are kept, before bounds."""
    if kind.threshold is not None:
        return sum(scores[u] > kind.threshold for u in ranked)
    if kind.top_p is not None:
        total, count = mass + sum(scores.values()), 0
        while count < len(ranked) and mass < total * kind.top_p.percent / 100:
            mass += scores[ranked[count]]
            count += 1
        return count
    return amount(kind, length)


def unit_scores(kind, asking: Asking) -> dict[int, float]:
    """The score of every unit that has been read whole and touches a run that has."""
    size = unit_size(kind)
    if kind.unit == "diagonals":
        return _of_distances(kind, asking)
    if getattr(kind.score, "word", "") == "antidiagonal":
        return _of_antidiagonals(kind, asking)
    if asking.maps is not None:
        return _of_maps(kind, asking)
    if asking.net is not None:
        return _of_indexer(kind, asking)
    runs = complete(*_steps(kind, size), asking.last)
    by_head = [_head_scores(kind, runs, h, asking) for h in range(len(asking.q))]
    scores = [_pooled(kind, [found[m] for found in by_head]) for m in range(len(runs))]
    units = {}
    for u in range((asking.last + 1) // size):
        touching = [scores[m] for m, run in enumerate(runs) if run.start < (u + 1) * size and run.stop > u * size]
        if touching:
            units[u] = max(touching) if kind.fold == "max" else sum(touching)
    return units


def _pooled(kind, values: list[float]) -> float:
    pool = "sum" if kind.per == "head" else kind.per.pool
    return {"sum": sum, "max": max, "min": min, "mean": lambda values: sum(values) / len(values)}[pool](values)


def _of_distances(kind, asking: Asking) -> dict[int, float]:
    """The score of every distance back: that of the one key of each query that lies there."""
    lines = [
        [(p, _query_scores(kind, complete(1, 1, p), q, asking.k[h], p, asking)) for q, p in queries(kind, asking, h)]
        for h in range(len(asking.q))
    ]
    return {
        back: _pooled(kind, [sum(scores[p - back] for p, scores in line if p >= back) for line in lines])
        for back in range(asking.last + 1)
    }


def _of_indexer(kind, asking: Asking) -> dict[int, float]:
    """DeepSeek-V3.2: a token's score is the sum over heads of weight x relu(q . k)."""
    q, k, weights = asking.net
    scores = []
    for s in range(asking.last + 1):
        heads = range(q.shape[1])
        scores.append(sum(float(weights[asking.last, j]) * max(0.0, float(q[asking.last, j] @ k[s])) for j in heads))
    if kind.score != "dot":
        scores = [1 / sum(math.exp(other - own) for other in scores) for own in scores]
    size, fold = unit_size(kind), max if kind.fold == "max" else sum
    return {u: fold(scores[u * size : (u + 1) * size]) for u in range((asking.last + 1) // size)}


def _of_maps(kind, asking: Asking) -> dict[int, float]:
    """SeerAttention: a block's mean query and pooled keys, each mapped, then turned at the block's first position."""
    q, k, q_maps, k_maps, turned = asking.maps
    size, many = unit_size(kind), getattr(kind.queries, "n", 1)
    begin = asking.last // many * many
    pools = {"mean": lambda x: x.mean(0), "sum": lambda x: x.sum(0), "max": lambda x: x.amax(0), "min": lambda x: x.amin(0)}
    heads = []
    for h in range(len(q)):
        rows = [q[h, p] for p in range(begin, asking.last + 1, getattr(kind.queries, "stride", 1))]
        query = turned((q_maps[h] @ torch.stack(rows).mean(0))[None], torch.tensor([begin]))[0]
        scores = []
        for u in range((asking.last + 1) // size):
            block = k[h, u * size : (u + 1) * size]
            key = k_maps[h] @ torch.cat([pools[pool](block) for pool in kind.keys.pool])
            scores.append(float(query @ turned(key[None], torch.tensor([u * size]))[0]))
        if kind.score != "dot":
            logits = [logit(score, asking) for score in scores]
            scores = [1 / sum(math.exp(other - own) for other in logits) for own in logits]
        heads.append(scores)
    return {u: _pooled(kind, [scores[u] for scores in heads]) for u in range(len(heads[0]))}


def _of_antidiagonals(kind, asking: Asking) -> dict[int, float]:
    """XAttention: groups of n queries by groups of n keys, each the sum along its antidiagonal; softmax, summed in blocks."""
    n, size, block = kind.score.n, kind.unit.n, kind.queries.n
    begin = asking.last // block * block
    heads = []
    for h in range(len(asking.q)):
        scores = dict.fromkeys(range(0, asking.last + 2 - n, n), 0.0)
        for first in range(begin, asking.last + 2 - n, n):
            groups = range(0, first + 1, n)
            sums = [sum(asking.q[h, first + n - 1 - r] @ asking.k[h, key + r] for r in range(n)) for key in groups]
            logits = [logit(float(one) / n, asking) for one in sums]
            for key, own in zip(groups, logits, strict=True):
                scores[key] += 1 / sum(math.exp(other - own) for other in logits)
        heads.append(scores)
    tiles = {key: _pooled(kind, [scores[key] for scores in heads]) for key in heads[0]}
    return {u: sum(tiles[key] for key in range(u * size, (u + 1) * size, n)) for u in range((asking.last + 1) // size)}


def _steps(kind, size: int) -> tuple[int, int]:
    """The tokens of a run, and from one run to the next."""
    if getattr(kind.keys, "word", "") == "mean" and kind.keys.n is not None:
        return kind.keys.n, kind.keys.stride
    if getattr(kind.keys, "kind", "") == "summary":
        return kind.keys.n, kind.keys.stride
    return (1, 1) if kind.keys == "own" else (size, size)


def complete(n: int, step: int, i: int) -> list[range]:
    """The tokens of every run, of those that query i has read whole."""
    return [range(begin, begin + n) for begin in range(0, i + 2 - n, step)]


def _head_scores(kind, runs: list[range], h: int, asking: Asking) -> list[float]:
    """The runs' scores by one head; a query's own share in them goes to what it has read whole."""
    total = [0.0] * len(runs)
    for q, i in queries(kind, asking, h):
        keys = asking.k[h] if asking.chunks is None else asking.chunks[h]
        for m, score in enumerate(_query_scores(kind, complete(*_steps(kind, unit_size(kind)), i), q, keys, i, asking)):
            total[m] += score
    return total


def _query_scores(kind, runs: list[range], q: torch.Tensor, k: torch.Tensor, i: int, asking: Asking) -> list[float]:
    if kind.keys == "minmax":
        return [float(torch.maximum(q * k[run].amax(0), q * k[run].amin(0)).sum()) for run in map(list, runs)]
    products = means(q, k, runs) if asking.chunks is None else [float(q @ key) for key in k[: len(runs)]]
    if kind.score == "dot":
        return products
    logits = [logit(product, asking) for product in products]
    total = logits
    if kind.score.lse is not None:
        coarse = complete(kind.score.lse.n, kind.score.lse.stride, i)
        total = [logit(product, asking) for product in means(q, k, coarse)] or logits
    return [1 / sum(math.exp(other - own) for other in total) for own in logits]


def means(q: torch.Tensor, k: torch.Tensor, runs: list[range]) -> list[float]:
    """The products of a query and the mean key of each run."""
    weights = torch.zeros(len(runs), len(k), dtype=k.dtype)
    for m, run in enumerate(runs):
        weights[m, run.start : run.stop] = 1 / len(run)
    return (weights @ k @ q).tolist()


def logit(product: float, asking: Asking) -> float:
    scaled = product * asking.scale
    return scaled if asking.cap is None else asking.cap * math.tanh(scaled / asking.cap)
