"""`routed` as the selector that kernels understand, and what of it no selector says yet."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from attnc.compiler.mixer import Lacking, Scores
from attnc.compiler.mixers.routed.choice import (
    Antidiagonal,
    Cosine,
    Last,
    LogGaussian,
    PerLayer,
    QueryBlock,
    SoftmaxScore,
    Sublinear,
)
from attnc.compiler.mixers.routed.kind import Routed
from attnc.compiler.mixers.routed.units import Indexer, LearnedPool, Mean, unit_size
from attnc.compiler.mixers.summary import Summary
from attnc.compiler.print_value import print_value
from attnc.compiler.value import Share

if TYPE_CHECKING:
    from attnc.compiler.families import Selector


def selector(kind: Routed) -> Selector:
    """The same choice, in the words of families.py."""
    from attnc.compiler import families  # a spec is checked without it

    unit = unit_size(kind.unit)
    assert not isinstance(kind.top_k, LogGaussian), "quotas are not built"
    top_k = kind.top_k
    if isinstance(top_k, Sublinear):
        amount: int | Share | families.Sublinear | None = families.Sublinear(top_k.k, top_k.from_, float(top_k.exponent))
    else:
        amount = top_k
    span, step = (unit, unit) if kind.keys == "minmax" or isinstance(kind.keys, Mean | LearnedPool) else (1, 1)
    if isinstance(kind.keys, Mean) and kind.keys.n is not None and kind.keys.stride is not None:
        span, step = kind.keys.n, kind.keys.stride
    if isinstance(kind.keys, Summary):
        span, step = kind.keys.n, kind.keys.stride
    joined = isinstance(kind.score, Antidiagonal)
    if isinstance(kind.score, Antidiagonal):
        span = step = kind.score.n
    coarse = kind.score.lse if isinstance(kind.score, SoftmaxScore) else None
    return families.Selector(
        unit=unit,
        diagonals=kind.unit == "diagonals",
        keys=_keys(kind),
        span=span,
        step=step,
        score="softmax" if joined or isinstance(kind.score, SoftmaxScore) else "dot",
        lse=None if coarse is None or coarse.n is None or coarse.stride is None else (coarse.n, coarse.stride),
        shared="head" if kind.per == "head" else "layer" if isinstance(kind.per, PerLayer) else "group",
        heads="sum" if kind.per == "head" else kind.per.pool,
        fold="sum" if joined else kind.fold,
        asks="block" if isinstance(kind.queries, QueryBlock) else "last" if isinstance(kind.queries, Last) else "each",
        many=kind.queries.n if isinstance(kind.queries, QueryBlock | Last) else 1,
        every=kind.queries.stride if isinstance(kind.queries, QueryBlock) else 1,
        top_k=amount,
        top_p=None if kind.top_p is None else kind.top_p.percent / 100,
        threshold=None if kind.threshold is None else float(kind.threshold),
        at_least=kind.at_least,
        at_most=kind.at_most,
        overlap=kind.overlap,
        refresh=_refresh(kind),
        dense=kind.on_refresh == "dense",
        all_seen=None if kind.dense_queries is None else (kind.dense_queries.word, kind.dense_queries.n),
        previous=kind.from_ is not None,
    )


ONCE = 2**24
"""Steps that no text has."""


def _refresh(kind: Routed) -> tuple[int | tuple[float, int], ...]:
    """Steps that a choice holds, and cosines with their steps; nothing where every query chooses."""
    if kind.refresh == "always":
        return ()
    given = kind.refresh if isinstance(kind.refresh, tuple) else (kind.refresh,)
    return tuple(
        ONCE if one == "once" else (float(one.x), one.every) if isinstance(one, Cosine) else one.n
        for one in given
        if one != "always"
    )


def _keys(kind: Routed) -> Literal["own", "mean", "bounds", "joined", "indexer", "learned", "summary"]:
    if isinstance(kind.score, Antidiagonal):
        return "joined"
    if isinstance(kind.keys, Indexer):
        return "indexer"
    if isinstance(kind.keys, LearnedPool):
        return "learned"
    if isinstance(kind.keys, Summary):
        return "summary"
    return "mean" if isinstance(kind.keys, Mean) else "bounds" if kind.keys == "minmax" else "own"


def lent(kind: Routed, other: Routed | None) -> Routed:
    """A choice that takes another over: how many units, for whom and when are its own, and how they score is the other's."""
    if other is None:  # the largest weights of a `full` layer
        return replace(kind, keys="own", score=SoftmaxScore(), fold="sum")
    made = {key: getattr(other, key) for key in ("keys", "queries", "score", "fold", "score_rope")}
    return replace(kind, **made)


def scores(kind: Routed, attributes: Any, model: Any) -> Scores | None:
    """What scores by weights of its own."""
    one = kind.keys
    turned = attributes.rope is not None and kind.score_rope == "same"
    if isinstance(one, LearnedPool) and kind.from_ is None:
        arguments = (attributes.kv_heads, attributes.head_dim, one.pool)
        return Scores("selector", "LearnedPool", "scorers", arguments, reads_input=False, rotated=turned)
    if not isinstance(one, Indexer) or kind.from_ is not None:
        return None
    rotated = min(attributes.rope_dim, one.head_dim) // 2 * 2 if turned else 0
    return Scores("indexer", "Indexer", "scorers", (model.dim, one.heads, one.head_dim), reads_input=True, rotated=rotated)


def unbuilt(kind: Routed) -> Iterator[Lacking]:
    """Combinations whose meaning is not settled, or that nothing computes yet."""
    if kind.top_p is not None and not isinstance(kind.score, SoftmaxScore | Antidiagonal):
        expected = "`score = softmax`, whose scores are shares of a mass"
        yield Lacking("`top_p` of `routed` by scores that are no shares", expected, "add `score = softmax`")
    if kind.unit == "diagonals" and kind.keys != "own":
        expected = "`keys` of the tokens themselves"
        yield Lacking(f"`keys = {print_value(kind.keys)}` of `routed(diagonals)`", expected, "leave `keys` out")
    if isinstance(kind.keys, Indexer):
        yield from _of_indexer(kind)
    if isinstance(kind.score, Antidiagonal) and isinstance(kind.keys, LearnedPool):
        yield Lacking("`keys = learned` of `routed` by antidiagonals", "`score = softmax`", "write `score = softmax`")
    if kind.from_ is not None and kind.refresh != "always":
        what = "`refresh` of a `routed` that takes a choice over"
        yield Lacking(what, "a choice of its own", "leave `refresh` or `from` out")
    if kind.refresh != "always":
        yield from _of_refresh(kind)


def _of_indexer(kind: Routed) -> Iterator[Lacking]:
    """An indexer scores tokens, for all heads alike, each query for itself."""
    per, queries = print_value(kind.per), print_value(kind.queries)
    lacking = {
        f"`per = {per}` of `routed` by an indexer": (not isinstance(kind.per, PerLayer), "write `per = layer`"),
        f"`queries = {queries}` of `routed` by an indexer": (kind.queries != "each", "leave `queries` out"),
        "`routed(diagonals)` by an indexer": (kind.unit == "diagonals", "write `routed(tokens, ...)`"),
        "`pool` of an indexer of `routed`": (isinstance(kind.keys, Indexer) and kind.keys.pool is not None, "leave `pool` out"),
    }
    for what, (there, help_line) in lacking.items():
        if there:
            yield Lacking(what, "scores of tokens, one choice for all heads, by each query", help_line)


def _of_refresh(kind: Routed) -> Iterator[Lacking]:
    """A choice that is kept has a number of units, and is made by each query for itself."""
    given = kind.refresh if isinstance(kind.refresh, tuple) else (kind.refresh,)
    shown = ", ".join(one if isinstance(one, str) else print_value(one) for one in given)
    if kind.queries != "each":
        yield Lacking(f"`refresh = {shown}` of `routed` whose queries ask together", "`queries = each`", "leave `queries` out")
    if not isinstance(kind.top_k, int):
        yield Lacking(f"`refresh = {shown}` of `routed` without a fixed number of units", "`top_k = n`", "write `top_k = n`")
    if kind.unit == "diagonals":
        yield Lacking(f"`refresh = {shown}` of `routed(diagonals)`", "tokens, columns or blocks", "leave `refresh` out")
