"""Which of q, k and v a set of projections makes of its input, and how wide each is."""

from __future__ import annotations

from attnc.compiler.attributes import Attributes

Streams = dict[str, tuple[int, int]]
"""`q`, `k` and `v`, in this order, as far as they are made -> (heads, width of each)."""


def of_softmax(a: Attributes, *, own_qk: bool) -> Streams:
    """Those of a softmax; q and k of another layer (`own_qk` false) and k that is q are not made."""
    made = {"q": (a.heads, a.head_dim), "k": (a.kv_heads, a.head_dim), "v": (a.kv_heads, a.value_dim)}
    left_out = ("k",) if a.share_qk else ()
    return {name: size for name, size in made.items() if name not in (left_out if own_qk else ("q", "k"))}


def channels(streams: Streams) -> dict[str, int]:
    """How many numbers of a token each has in all heads."""
    return {name: heads * width for name, (heads, width) in streams.items()}
