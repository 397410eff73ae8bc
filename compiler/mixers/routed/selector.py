"""`routed` as the selector that kernels understand, and what of it no selector says yet."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from attnc.compiler.mixer import Lacking
from attnc.compiler.mixers.routed.choice import Antidiagonal, Last, LogGaussian, PerLayer, QueryBlock, SoftmaxScore, Sublinear
from attnc.compiler.mixers.routed.kind import Routed
from attnc.compiler.mixers.routed.units import Mean, unit_size
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
    span, step = (unit, unit) if kind.keys == "minmax" or isinstance(kind.keys, Mean) else (1, 1)
    if isinstance(kind.keys, Mean) and kind.keys.n is not None and kind.keys.stride is not None:
        span, step = kind.keys.n, kind.keys.stride
    joined = isinstance(kind.score, Antidiagonal)
    if isinstance(kind.score, Antidiagonal):
        span = step = kind.score.n
    coarse = kind.score.lse if isinstance(kind.score, SoftmaxScore) else None
    return families.Selector(
        unit=unit,
        diagonals=kind.unit == "diagonals",
        keys="joined" if joined else "mean" if isinstance(kind.keys, Mean) else "bounds" if kind.keys == "minmax" else "own",
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
    )


def unbuilt(kind: Routed) -> Iterator[Lacking]:
    """Combinations whose meaning is not settled, or that nothing computes yet."""
    if kind.top_p is not None and not isinstance(kind.score, SoftmaxScore | Antidiagonal):
        expected = "`score = softmax`, whose scores are shares of a mass"
        yield Lacking("`top_p` of `routed` by scores that are no shares", expected, "add `score = softmax`")
    if kind.unit == "diagonals" and kind.keys != "own":
        expected = "`keys` of the tokens themselves"
        yield Lacking(f"`keys = {print_value(kind.keys)}` of `routed(diagonals)`", expected, "leave `keys` out")
