"""The parameters of `routed`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from attnc.compiler.declare import Bounds, Budgeted, NotBuilt, Positional
from attnc.compiler.mixer import Kind
from attnc.compiler.mixers.routed.choice import (
    Antidiagonal,
    Cosine,
    Estimated,
    Every,
    First,
    Last,
    LogGaussian,
    PerGroup,
    PerLayer,
    QueryBlock,
    SoftmaxScore,
    Sublinear,
    Tree,
)
from attnc.compiler.mixers.routed.units import Blocks, Clusters, Hash, Indexer, LearnedPool, Mean, TwoStep, Unit
from attnc.compiler.mixers.summary import Summary
from attnc.compiler.value import Share, derived

Units = Annotated[int, Bounds(1, 2**24)]
Keys = Literal["own", "minmax", "centre", "descent", "last"] | Mean | TwoStep | LearnedPool | Hash | Indexer | Summary


def _default_keys(given: dict[str, Any]) -> Keys:
    """Each token's own key, or a block's mean."""
    return Mean() if isinstance(given.get("unit"), Blocks) else "own"


class Routed(Kind):
    """`routed(blocks(64), top_k = 16)`: the units that content picks; exactly one of top_k, top_p and threshold.

    Clusters pick by themselves.

    `at_least`, `at_most`   bounds on the number of units.
    `keys`                  what stands for a unit: `own` keys of its tokens, or pooled ones.
    `queries`               who asks.
    `score`, `fold`, `length_norm`, `smooth`, `score_rope`  how a unit's score comes about.
    `per`, `adaptive`       who shares one choice, and whether heads share a budget.
    `overlap`               what becomes of units that the union shows anyway.
    `search`, `within`      among which units.
    `from`                  `previous`: the choice of the nearest earlier layer that makes one.
    `refresh`, `on_refresh` for how many decode steps, and what the step that chooses sees.
    `evict`                 unchosen keys are dropped for good.
    `dense_queries`         queries that see everything.
    `selection`             `noncausal` accepts a choice that looks ahead.
    """

    kind: Literal["routed"] = "routed"
    unit: Annotated[Unit, Positional(), NotBuilt(Clusters)]
    top_k: Annotated[
        int | Share | Sublinear | LogGaussian | None, Bounds(1, 2**24), Budgeted("tuned"), NotBuilt(LogGaussian)
    ] = None
    top_p: Annotated[Share | None, Bounds(0, 0), Budgeted("tuned")] = None
    threshold: Annotated[float | None, Bounds(-1e6, 1e6), Budgeted("tuned")] = None
    at_least: Units = 1
    at_most: Annotated[int | None, Bounds(1, 2**24)] = None
    keys: Annotated[Keys, NotBuilt("centre", "descent", "last", TwoStep, Hash)] = derived(default_factory=_default_keys)
    queries: Annotated[Literal["each", "all"] | QueryBlock | Last, NotBuilt("all")] = "each"
    score: Annotated[Literal["dot"] | SoftmaxScore | Antidiagonal | Estimated, NotBuilt(Estimated)] = "dot"
    fold: Literal["max", "sum"] = "max"
    length_norm: Annotated[Literal["sqrt"] | None, NotBuilt()] = None
    smooth: Annotated[int, Bounds(1, 65536), NotBuilt()] = 1
    score_rope: Annotated[Literal["same"] | None, NotBuilt()] = "same"
    per: Literal["head"] | PerGroup | PerLayer = PerGroup()
    adaptive: Annotated[Share | None, NotBuilt()] = None
    overlap: Literal["ranked", "counted", "excluded"] = "ranked"
    search: Annotated[Literal["flat"] | Tree, NotBuilt()] = "flat"
    within: Annotated[tuple[Kind, ...] | None, NotBuilt()] = None
    from_: Literal["previous"] | None = None
    refresh: Literal["always", "once"] | Every | Cosine | tuple[Every | Cosine, ...] = "always"
    on_refresh: Literal["sparse", "dense"] = "sparse"
    evict: Annotated[bool, NotBuilt()] = False
    dense_queries: First | Last | None = None
    selection: Literal["causal", "noncausal"] = "causal"
