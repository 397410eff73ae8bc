"""Counts of tokens inside a kind, and the kind with other ones: `routed(blocks(64), keys = mean(32, stride = 16))`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from attnc.compiler.mixer import Kind
from attnc.compiler.value import Share, Value

COUNTS = ("n", "stride", "from_", "window", "nms", "size")
"""Sizes of arguments that count tokens."""

NO_TOKENS = ("every", "cosine", "tree", "hash", "taylor", "indexer")
"""Words of arguments whose sizes count something else."""

TOP_K = "top_k"
"""The word of a choice of so many tokens."""

UNITS = ("blocks", "block")
"""Words of arguments whose n is a unit: several of it fit into a reduced sequence."""


def within(kind: Kind) -> Iterator[tuple[str, str, int]]:
    """(word, key, count) of every count of tokens in the arguments of a kind, however deep."""
    for value in vars(kind).values():
        yield from _within(value)
    if isinstance(vars(kind).get("stride"), int):
        yield kind.kind, "stride", vars(kind)["stride"]
    if _keeps_tokens(kind):
        yield TOP_K, "n", vars(kind)["top_k"]


def divided(kind: Kind) -> Iterator[tuple[int, int]]:
    """(size, part) where a size must stay a multiple of a part: blocks along whose antidiagonals scores are summed."""
    score = getattr(kind, "score", None)
    if getattr(score, "word", "") == "antidiagonal":
        assert score is not None
        for one in (vars(kind)["unit"], vars(kind)["queries"]):
            if one.n != score.n:
                yield one.n, score.n


def reduced(kind: Kind, counts: Mapping[int, int], tokens: int) -> Kind:
    """The kind with the counts in its arguments mapped; at most half of the blocks that `tokens` tokens make are chosen."""
    given = vars(kind)
    update = {key: _mapped(value, counts, tokens) for key, value in given.items()}
    if isinstance(given.get("stride"), int):
        update["stride"] = counts.get(given["stride"], given["stride"])
    if _keeps_tokens(kind):
        update["top_k"] = counts.get(given["top_k"], given["top_k"])
    elif isinstance(given.get("top_k"), int) and hasattr(given["unit"], "n"):
        update["top_k"] = max(given["at_least"], min(given["top_k"], tokens // update["unit"].n // 2))
    return replace(kind, **update)


def _keeps_tokens(kind: Kind) -> bool:
    """Whether `top_k` counts tokens, or distances in tokens."""
    return isinstance(vars(kind).get("top_k"), int) and isinstance(vars(kind).get("unit"), str)


def _within(value: Any) -> Iterator[tuple[str, str, int]]:
    if isinstance(value, tuple):
        for one in value:
            yield from within(one) if isinstance(one, Kind) else _within(one)
    if not isinstance(value, Value) or isinstance(value, Share) or _word(value) in NO_TOKENS:
        return
    for key, inner in vars(value).items():
        if key in COUNTS and isinstance(inner, int):
            yield _word(value), key, inner
        yield from _within(inner)


def _mapped(value: Any, counts: Mapping[int, int], tokens: int) -> Any:
    if isinstance(value, tuple):
        return tuple(reduced(one, counts, tokens) if isinstance(one, Kind) else _mapped(one, counts, tokens) for one in value)
    if not isinstance(value, Value) or isinstance(value, Share) or _word(value) in NO_TOKENS:
        return value
    known = {key: counts.get(inner, inner) for key, inner in vars(value).items() if key in COUNTS and isinstance(inner, int)}
    deeper = {key: _mapped(inner, counts, tokens) for key, inner in vars(value).items() if isinstance(inner, Value | tuple)}
    return replace(value, **known, **deeper)


def _word(value: Value) -> str:
    return str(getattr(value, "word", None) or getattr(value, "kind", ""))
