"""What decoding keeps for `routed`, beside keys and values."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from attnc.compiler.mixer import Growing, Kept, Weight
from attnc.compiler.mixers.features import feature_width
from attnc.compiler.mixers.routed.choice import (
    Antidiagonal,
    Cosine,
    Estimated,
    Last,
    PerGroup,
    PerLayer,
    QueryBlock,
    SoftmaxScore,
)
from attnc.compiler.mixers.routed.kind import Routed
from attnc.compiler.mixers.routed.units import Clusters, Hash, Indexer, LearnedPool, Mean, TwoStep, unit_size
from attnc.compiler.mixers.summary import Summary
from attnc.compiler.value import Share

CNN_ROWS = 24
"""Rows of its map that SEA's network sees (arXiv 2310.01777)."""


def kept(kind: Routed) -> Kept:
    """Every token, as any may be chosen; with `evict` as many as are chosen, and with `refresh = once` all later ones too."""
    if not kind.evict or kind.refresh == "once" or not isinstance(kind.top_k, int | Share):
        return Kept()
    chosen = kind.top_k if isinstance(kind.top_k, Share) else kind.top_k * unit_size(kind.unit)
    return Kept(recent=0, chosen=chosen, by_query_head=kind.per == "head", drops=True)


def growing(kind: Routed, attributes: Any, model: Any) -> tuple[Growing, ...]:
    """What stands for each unit; nothing where the keys in the cache do, or where an earlier layer chooses."""
    if kind.from_ is not None:
        return ()
    found = [*_of_keys(kind, attributes), *_of_score(kind, attributes), *_of_choice(kind, attributes)]
    for part in kind.within or ():
        if isinstance(part, Routed):
            inner = growing(part, attributes, model)
            found += [replace(one, name=f"within.{one.name}") for one in inner]
    return tuple(found)


def _of_keys(kind: Routed, attributes: Any) -> list[Growing]:
    if isinstance(kind.score, Antidiagonal | Estimated):  # which read the keys themselves
        return []
    heads, width, size = attributes.kv_heads, attributes.head_dim, unit_size(kind.unit)
    match kind.keys:
        case Mean(n=int(n), stride=int(stride)):
            return [Growing(name="mean", shape=(heads, width), span=n, step=stride)]
        case Mean(chunks=None) | TwoStep() | LearnedPool():
            return [Growing(name=kind.keys.word, shape=(heads, width), span=size, step=size)]
        case "minmax":
            return [Growing(name=name, shape=(heads, width), span=size, step=size) for name in ("min", "max")]
        case Mean(chunks=chunks) if chunks is not None:
            # prefix sums of keys give the mean of any chunk; a flag for each token says where chunks begin
            return [
                Growing(name="prefix", shape=(heads, width), dtype="float32"),
                Growing(name="boundary", shape=(1,), dtype="uint8"),
            ]
        case Summary(n=n, stride=stride):
            return [Growing(name="summary", shape=(heads, width), span=n, step=stride, of=kind.keys)]
        case Hash(bits=bits):
            return [Growing(name="hash", shape=(heads, bits // 8), dtype="uint8")]
        case Indexer(head_dim=own, pool=pool):
            span = size if pool else 1
            return [Growing(name="indexer", shape=(own,), span=span, step=span)]
        case _:
            return []


def _of_score(kind: Routed, attributes: Any) -> list[Growing]:
    found = []
    if isinstance(kind.unit, Clusters):
        found.append(Growing(name="cluster", shape=(attributes.kv_heads,), dtype="uint16"))
    if isinstance(kind.score, SoftmaxScore) and kind.score.lse is not None:
        n, stride = kind.score.lse.n, kind.score.lse.stride
        assert n is not None, "the rules ask for it"
        assert stride is not None, "by default as n"
        shape = (attributes.kv_heads, attributes.head_dim)
        found.append(Growing(name="lse", shape=shape, span=n, step=stride))
    if kind.queries == "all":
        found.append(Growing(name="score", shape=(choosers(kind, attributes),), dtype="float32"))
    return found


def _of_choice(kind: Routed, attributes: Any) -> list[Growing]:
    """The choice itself, where it holds for several steps; at most all units where their number depends on the length."""
    if kind.refresh == "always" or kind.evict:
        return []
    makers, size = choosers(kind, attributes), unit_size(kind.unit)
    if isinstance(kind.top_k, int):
        return [Growing(name="chosen", shape=(makers, kind.top_k), step=0, dtype="int32")]
    return [Growing(name="chosen", shape=(makers,), span=size, step=size, dtype="int32")]


def choosers(kind: Routed, attributes: Any) -> int:
    """How many choices a layer makes: one a query head, a KV head, or one."""
    if isinstance(kind.per, PerLayer):
        return 1
    return int(attributes.kv_heads if isinstance(kind.per, PerGroup) else attributes.heads)


def state(kind: Routed, attributes: Any, model: Any) -> dict[str, tuple[int, ...]]:
    """Queries that ask for others, and what an estimate carries."""
    if kind.from_ is not None:
        return {}
    heads, width = attributes.heads, attributes.head_dim
    found: dict[str, tuple[int, ...]] = {}
    if isinstance(kind.queries, QueryBlock):
        found["query"] = (heads, width)
    elif isinstance(kind.queries, Last) and kind.queries.n > 1 and kind.refresh != "once":
        found["query"] = (kind.queries.n - 1, heads, width)
    triggers = kind.refresh if isinstance(kind.refresh, tuple) else (kind.refresh,)
    if any(isinstance(one, Cosine) for one in triggers):
        found["asked"] = (heads, width)
    if kind.refresh != "always" and not kind.evict:
        found["chosen_at"] = (1,)
    if isinstance(kind.score, Estimated):
        features = feature_width(kind.score.feature, width)
        found |= {"estimate": (heads, features, 2 * width), "estimate_sum": (heads, features)}
        found["rows"] = (CNN_ROWS, heads, kind.score.width)
    for part in kind.within or ():
        if isinstance(part, Routed):
            found |= {f"within.{name}": shape for name, shape in state(part, attributes, model).items()}
    return found


def weights(kind: Routed, attributes: Any, model: Any) -> tuple[Weight, ...]:
    """The indexer's maps and norm, learned pools' maps, hash projections and cluster centres."""
    if kind.from_ is not None:
        return ()
    heads, width = attributes.kv_heads, attributes.head_dim
    found: list[Weight] = []
    match kind.keys:
        case Indexer(heads=own, head_dim=inner):
            found.append(Weight(name="indexer.q_proj.weight", shape=(own * inner, model.dim)))
            found.append(Weight(name="indexer.k_proj.weight", shape=(inner, model.dim)))
            found.append(Weight(name="indexer.k_norm.weight", shape=(inner,), start=1.0))
            found.append(Weight(name="indexer.k_norm.bias", shape=(inner,), start=0.0))
            found.append(Weight(name="indexer.weight_proj.weight", shape=(own, model.dim)))
        case LearnedPool(pool=pool):
            found.append(Weight(name="selector.q_proj.weight", shape=(heads, width, width)))
            found.append(Weight(name="selector.k_proj.weight", shape=(heads, width, len(pool) * width)))
        case Hash(bits=bits):
            found.append(Weight(name="selector.hash", shape=(width, bits), start=(0.0, 1.0)))
    if isinstance(kind.unit, Clusters):
        found.append(Weight(name="selector.centres", shape=(heads, kind.unit.n, width), start=(0.0, 1.0)))
    return tuple(found)
