"""What decoding keeps, from the checked spec alone: one row for each run of KV heads that keep the same tokens.

growing   keys and values of every token: bytes_per_token
ring      the first `pinned` tokens and the last `recent`, with room for the tokens of one decode call: bytes_fixed
fixed     a state whose size no length changes: bytes_fixed
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from attnc.compiler.attributes import Attributes
from attnc.compiler.kept import join, of_union
from attnc.compiler.mixer import Kept
from attnc.compiler.mixers import MIXERS
from attnc.compiler.spec import DECODE_TOKENS, Attention, Layer, Mixing, Route, Spec
from attnc.compiler.value import Share, Tokens, Value, tokens_of
from attnc.compiler.walk import CACHED_PHASES, Part, default_leaves, first_leaf, parts

SPARE = DECODE_TOKENS - 1
"""Slots of a ring beyond `recent`: the first of 16 tokens written together still sees its whole window."""

BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}


class CacheRow(Value):
    """What one sequence keeps for `kv_heads` KV heads of a layer, or one state of it.

    `tokens_kept`: slots of a ring, a share of the longest length where its window is one, None if all tokens stay.
    `shapes`: tensor -> shape; None stands for the number of tokens. A ring of a share has bytes of both sorts.
    """

    name: str
    layer: int
    kv_heads: int
    kind: Literal["growing", "ring", "fixed"]
    dtype: str
    bytes_per_token: float
    bytes_fixed: int
    tokens_kept: Tokens | None
    shapes: dict[str, tuple[int | None, ...]]
    pinned: Tokens = 0
    recent: Tokens | None = None


def cache_spec(spec: Spec, dtype: str) -> tuple[CacheRow, ...]:
    """The rows of all layers. Encoders (`causal = false`) keep nothing. KeyError for a dtype that is no float type."""
    return tuple(row for layer in spec.layers for part in parts(layer.mixer) for row in _rows(layer, part, spec, dtype))


def cache_bytes(spec: Spec, tokens: int, dtype: str) -> int:
    """Bytes that a cache for `tokens` tokens of one sequence takes."""
    return sum(row_bytes(row, tokens) for row in cache_spec(spec, dtype))


def row_bytes(row: CacheRow, tokens: int) -> int:
    """Bytes of one row in a cache for `tokens` tokens."""
    slots = tokens
    if row.kind == "ring":
        assert row.recent is not None, "a ring forgets"
        slots = tokens_of(row.pinned, tokens) + tokens_of(row.recent, tokens) + SPARE
    return sum(_count(shape, slots) for shape in row.shapes.values()) * BYTES[row.dtype]


def full_attention_bytes(spec: Spec, tokens: int, dtype: str) -> int:
    """The same with full attention in every layer, with the heads that the layer has."""
    found = [first_leaf(layer.mixer).attributes for layer in spec.layers]
    return sum(a.kv_heads * (a.head_dim + a.value_dim) for a in found if a.causal) * tokens * BYTES[dtype]


def _rows(layer: Layer, part: Part, spec: Spec, dtype: str) -> Iterator[CacheRow]:
    leaf = first_leaf(part.mixer)
    attributes = leaf.attributes
    name = f"layers.{layer.index}{'.' * bool(part.scope)}{part.scope}"
    if not attributes.causal:
        return
    if isinstance(leaf, Mixing):
        shapes = MIXERS[leaf.kind.kind].state(leaf.kind, attributes, spec.model)
        yield _fixed(f"{name}.{leaf.kind.kind}", layer.index, shapes, dtype)
        return
    widths = {"k": attributes.head_dim, "v": attributes.value_dim}
    if attributes.qk_from:
        del widths["k"]
    if isinstance(part.mixer, Route):
        widths["route"] = len(part.mixer.alternatives)
    for first, last, kept in _kept(part, attributes):
        whole = first == 0 and last == attributes.kv_heads - 1
        shown = name if whole else f"{name}.heads.{first}" + f"-{last}" * (last > first)
        yield _slots(shown, layer.index, last - first + 1, kept, widths, dtype)
    if attributes.short_conv is not None:
        yield _fixed(f"{name}.short_conv", layer.index, _conv_shapes(attributes), dtype)


def _kept(part: Part, attributes: Attributes) -> list[tuple[int, int, Kept]]:
    """(first, last, kept) of runs of KV heads: the join over what may run with a cache. A route keeps all keys."""
    if isinstance(part.mixer, Route):
        return [(0, attributes.kv_heads - 1, Kept())]
    every = list(default_leaves(part.mixer, 0, attributes.kv_heads - 1, CACHED_PHASES))
    starts = sorted({leaf.first for leaf in every})
    runs: list[tuple[int, int, Kept]] = []
    for first, following in zip(starts, [*starts[1:], attributes.kv_heads], strict=True):
        here = [leaf.mixer for leaf in every if leaf.first <= first <= leaf.last]
        kept = join(of_union(mixer.keys) for mixer in here if isinstance(mixer, Attention))
        if runs and runs[-1][2] == kept:
            runs[-1] = (runs[-1][0], following - 1, kept)
        else:
            runs.append((first, following - 1, kept))
    return runs


def _slots(name: str, layer: int, heads: int, kept: Kept, widths: dict[str, int], dtype: str) -> CacheRow:
    """What some KV heads keep of each token; with `qk_from = previous` values alone."""
    slot = heads * sum(widths.values()) * BYTES[dtype]
    pinned, recent = kept.pinned, kept.recent
    slots: int | None = None
    kept_tokens: Tokens | None = None
    per_token, fixed = 0.0, 0
    if recent is None:
        per_token = slot
    elif isinstance(recent, int) and isinstance(pinned, int):
        slots = pinned + recent + SPARE
        kept_tokens, fixed = slots, slots * slot
    else:
        counts = (pinned, recent)
        kept_tokens = Share(percent=sum(count.percent for count in counts if isinstance(count, Share)))
        per_token = slot * kept_tokens.percent / 100
        fixed = slot * (SPARE + sum(count for count in counts if isinstance(count, int)))
    return CacheRow(
        name=name,
        layer=layer,
        kv_heads=heads,
        kind="growing" if recent is None else "ring",
        dtype=dtype,
        bytes_per_token=per_token,
        bytes_fixed=fixed,
        tokens_kept=kept_tokens,
        shapes={key: (heads, slots, width) for key, width in widths.items()},
        pinned=pinned,
        recent=recent,
    )


def _conv_shapes(attributes: Attributes) -> dict[str, tuple[int, ...]]:
    """The last inputs of the convolutions on q, k and v."""
    assert attributes.short_conv is not None, "asked only where there is a convolution"
    widths = {"q": attributes.heads * attributes.head_dim, "k": attributes.kv_heads * attributes.head_dim}
    if attributes.qk_from:
        widths = {}
    elif attributes.share_qk:
        del widths["k"]
    widths["v"] = attributes.kv_heads * attributes.value_dim
    return {f"{key}_conv": (attributes.short_conv - 1, width) for key, width in widths.items()}


def _fixed(name: str, layer: int, shapes: dict[str, tuple[int, ...]], dtype: str) -> CacheRow:
    return CacheRow(
        name=name,
        layer=layer,
        kv_heads=0,
        kind="fixed",
        dtype=dtype,
        bytes_per_token=0,
        bytes_fixed=sum(_count(shape, 0) for shape in shapes.values()) * BYTES[dtype],
        tokens_kept=0,
        shapes={key: tuple(shape) for key, shape in shapes.items()},
    )


def _count(shape: tuple[int | None, ...], slots: int) -> int:
    """Numbers in a tensor."""
    count = 1
    for size in shape:
        count *= slots if size is None else size
    return count
