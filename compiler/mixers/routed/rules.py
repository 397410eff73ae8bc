"""What holds between the parameters of `routed`."""

from __future__ import annotations

from collections.abc import Iterator

from attnc.compiler.fields import fields
from attnc.compiler.mixers.routed.choice import Antidiagonal, Estimated, QueryBlock, SoftmaxScore
from attnc.compiler.mixers.routed.kind import Routed
from attnc.compiler.mixers.routed.units import Blocks, Clusters, Mean
from attnc.compiler.mixers.summary import Summary
from attnc.compiler.value import Broken

DECISIONS = ("top_k", "top_p", "threshold")
OF_BLOCKS = ("minmax", "descent", "last")
"""Keys that stand for several tokens."""

OF_CLUSTERS = ("unit", "per", "selection")
"""All that clusters leave to say."""

OF_MAKING = ("keys", "queries", "score", "fold", "length_norm", "smooth", "score_rope", "adaptive", "search", "within")
"""How a choice is made."""


def rules(kind: Routed) -> Iterator[Broken]:
    """The rules that do not hold."""
    if isinstance(kind.unit, Clusters):
        yield from _clusters(kind)
        return
    yield from _decision(kind)
    yield from _keys(kind)
    yield from _score(kind)
    yield from _time(kind)


def given_of(kind: Routed) -> list[str]:
    """The keys whose values differ from their defaults."""
    return [key for key, field in fields(Routed).items() if getattr(kind, field.name) != field.default_in(kind)]


def _decision(kind: Routed) -> Iterator[Broken]:
    given = [key for key in DECISIONS if getattr(kind, key) is not None]
    listed = "exactly one of `top_k`, `top_p` and `threshold`"
    if not given and kind.from_ is None:
        yield Broken("", "`routed` does not say how many units it keeps", listed, "add `top_k = ...`", "A105")
    if not given and kind.from_ is not None:
        yield Broken("from", "`routed` does not say how much of the choice it takes over", listed, "add `top_k = ...`", "A105")
    if len(given) > 1:
        shown = " and ".join(f"`{key}`" for key in given)
        yield Broken(given[1], f"`routed` decides by {shown} at once", listed, f"leave `{given[1]}` out")
    if kind.at_most is not None and kind.at_least > kind.at_most:
        message = f"at_least {kind.at_least} is more than at_most {kind.at_most}"
        yield Broken("at_least", message, "at_least <= at_most", "exchange the two", "A104")
    if kind.adaptive is not None and kind.per != "head":
        message = "`adaptive` shares a budget between heads, but they share one choice already"
        yield Broken("adaptive", message, "`per = head`", "write `per = head`, or leave `adaptive` out")


def _keys(kind: Routed) -> Iterator[Broken]:
    blocks = isinstance(kind.unit, Blocks)
    shown = kind.keys if isinstance(kind.keys, str) else getattr(kind.keys, "word", "")
    if not blocks and shown in (*OF_BLOCKS, "two_step", "learned"):
        message = f"`keys = {shown}` stands for several tokens, but the unit is `{kind.unit}`"
        yield Broken("keys", message, "`blocks(n)` as unit", "route blocks, or leave `keys` out")
    if isinstance(kind.keys, Summary) and not blocks:
        message = f"a summary stands for several tokens, but the unit is `{kind.unit}`"
        yield Broken("keys", message, "`blocks(n)` as unit", "route blocks, or leave `keys` out")
    if not blocks and isinstance(kind.keys, Mean) and kind.keys.n is None and kind.keys.chunks is None:
        message = f"`mean` alone is that of a block, but the unit is `{kind.unit}`"
        yield Broken("keys", message, "`mean(n)`", "give the size of the chunks: `mean(n)`")
    if kind.search != "flat" and kind.keys not in ("centre", "own"):
        message = "a tree of intervals is searched by one key of each, `centre`"
        yield Broken("search", message, "`keys = centre`", "write `keys = centre`, or leave `search` out")
    if kind.keys == "centre" and kind.search == "flat" and not blocks:
        message = "`keys = centre` stands for an interval, but tokens are searched one by one"
        yield Broken("keys", message, "`blocks(n)`, or `search = tree(n)`", "add `search = tree(2)`")


def _score(kind: Routed) -> Iterator[Broken]:
    if isinstance(kind.score, Antidiagonal):
        n = kind.score.n
        block, unit = kind.queries, kind.unit
        if not isinstance(block, QueryBlock) or not isinstance(unit, Blocks) or block.n % n or unit.n % n:
            message = f"`antidiagonal({n})` runs through blocks of queries and of keys that {n} divides"
            expected = "`blocks(n)` and `queries = block(n)`"
            yield Broken("score", message, expected, f"use block sizes that are multiples of {n}", "A204")
    if isinstance(kind.score, Antidiagonal | Estimated) and kind.keys not in ("own", Mean()):
        message = f"`score = {kind.score.word}` reads the keys themselves"
        yield Broken("keys", message, "no `keys`", "leave `keys` out")
    if isinstance(kind.score, SoftmaxScore) and kind.score.lse is not None and not isinstance(kind.keys, Mean | Summary):
        message = "`lse` is a coarser denominator for pooled keys"
        yield Broken("score", message, "`keys = mean(n)`", "leave `lse` out")
    if kind.fold == "sum" and isinstance(kind.keys, Mean) and kind.keys.n is None and kind.keys.chunks is None:
        message = "each unit has one key, so there is nothing to fold"
        yield Broken("fold", message, "several keys to one unit", "leave `fold` out")


def _time(kind: Routed) -> Iterator[Broken]:
    if kind.on_refresh == "dense" and kind.refresh == "always":
        message = "`on_refresh = dense` with a choice in every step makes every step dense"
        yield Broken("on_refresh", message, "a `refresh`", "add `refresh = every(n)`, or write `full`")
    if kind.evict and kind.on_refresh == "dense":
        message = "`evict` drops what a dense step would read"
        yield Broken("evict", message, "`on_refresh = sparse`", "leave `evict` or `on_refresh` out")
    if kind.evict and kind.unit == "diagonals":
        message = "`evict` drops keys, and each key lies on many diagonals"
        yield Broken("evict", message, "tokens, blocks or columns", "leave `evict` out")
    if kind.evict and kind.dense_queries is not None:
        message = "`evict` drops what `dense_queries` would read"
        yield Broken("evict", message, "no `dense_queries`", "leave `evict` or `dense_queries` out")
    if isinstance(kind.refresh, tuple) and len({type(one) for one in kind.refresh}) < len(kind.refresh):
        message = "of two triggers of one sort the first to fire makes the other needless"
        yield Broken("refresh", message, "at most one `every` and one `cosine`", "remove one", "A106")
    if kind.from_ is not None:
        message = "a choice that is taken over is not made again"
        for key in given_of(kind):
            if key in OF_MAKING:
                yield Broken(key, f"{message}, so `{key}` has no meaning", "`from` without it", f"leave `{key}` out")


def _clusters(kind: Routed) -> Iterator[Broken]:
    for key in given_of(kind):
        if key not in OF_CLUSTERS:
            message = f"clusters choose by themselves, so `{key}` has no meaning"
            yield Broken(key, message, "`clusters` without it", f"leave `{key}` out")
    if kind.selection == "causal":
        message = "a cluster takes its best tokens of the whole sequence, so later tokens decide about earlier ones"
        expected = "a choice that looks back, or an explicit `selection = noncausal`"
        yield Broken("", message, expected, "add `selection = noncausal` to accept it", "A304")
