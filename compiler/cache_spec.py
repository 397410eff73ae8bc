"""What decoding keeps, from the checked spec alone: rows for each run of KV heads that keep the same.

growing   something of every token, or of every so many: bytes_per_token
ring      the first `pinned` tokens, the last `recent`, `chosen` more, and room for the tokens of one decode call: bytes_fixed
fixed     a state whose size no length changes: bytes_fixed
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from attnc.compiler.spec import DECODE_TOKENS, Spec
from attnc.compiler.value import Tokens, Value, tokens_of
from attnc.compiler.walk import first_leaf

SPARE = DECODE_TOKENS - 1
"""Slots of a ring beyond `recent`: the first of 16 tokens written together still sees its whole window."""

BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2, "int32": 4, "uint16": 2, "uint8": 1}


class CacheRow(Value):
    """What one sequence keeps for `kv_heads` KV heads of a layer from `first` on, or (`kv_heads` 0) one state of it.

    `scope`: the part of the layer that it belongs to.
    `tokens_kept`: slots of a ring, a share of the longest length where its window is one, None if all tokens stay.
    `shapes`: tensor -> shape; None stands for the number of slots. A ring of a share has bytes of both sorts.
    `span`, `step`: a growing row has a slot for every run of `span` tokens, one begun every `step`.
    `slots_per_token`: tokens of the layer's sequence for each of the text: more than one below `insert`.
    """

    name: str
    layer: int
    scope: str = ""
    first: int = 0
    kv_heads: int
    kind: Literal["growing", "ring", "fixed"]
    dtype: str
    bytes_per_token: float
    bytes_fixed: int
    tokens_kept: Tokens | None
    shapes: dict[str, tuple[int | None, ...]]
    pinned: Tokens = 0
    recent: Tokens | None = None
    chosen: Tokens = 0
    span: int = 1
    step: int = 1
    slots_per_token: float = 1.0


def cache_spec(spec: Spec, dtype: str) -> tuple[CacheRow, ...]:
    """The rows of all layers. Encoders (`causal = false`) keep nothing. KeyError for a dtype that is no float type."""
    from attnc.compiler.cache_rows import of_layer  # which makes the rows of the class above

    rows: list[CacheRow] = []
    rules: dict[tuple[int, float], tuple[list[CacheRow], float]] = {}
    slots = 1.0
    for layer in spec.layers:
        key = (id(layer.mixer), slots)
        if key not in rules:  # layers of one rule share their mixer
            rules[key] = of_layer(layer, spec.model, dtype, slots)
        here, slots = rules[key]
        rows += [row if row.layer == layer.index else _in_layer(row, layer.index) for row in here]
    return tuple(rows)


def _in_layer(row: CacheRow, layer: int) -> CacheRow:
    """The same row in another layer of its rule."""
    name = f"layers.{layer}{row.name.removeprefix(f'layers.{row.layer}')}"
    return replace(row, layer=layer, name=name)


def cache_bytes(spec: Spec, tokens: int, dtype: str) -> int:
    """Bytes that a cache for `tokens` tokens of one sequence takes."""
    return sum(row_bytes(row, tokens) for row in cache_spec(spec, dtype))


def row_bytes(row: CacheRow, tokens: int) -> int:
    """Bytes of one row in a cache for `tokens` tokens."""
    length = int(tokens * row.slots_per_token + 1e-9)
    slots = (length - row.span) // row.step + 1 if length >= row.span else 0
    if row.kind == "ring":
        assert row.recent is not None, "a ring forgets"
        slots = sum(tokens_of(count, length) for count in (row.pinned, row.recent, row.chosen) if count != 0) + SPARE
    return sum(count(shape, slots) for shape in row.shapes.values()) * BYTES[row.dtype]


def full_attention_bytes(spec: Spec, tokens: int, dtype: str) -> int:
    """The same with full attention in every layer, with the heads that the layer has."""
    found = [first_leaf(layer.mixer).attributes for layer in spec.layers]
    return sum(a.kv_heads * (a.head_dim + a.value_dim) for a in found if a.causal) * tokens * BYTES[dtype]


def count(shape: tuple[int | None, ...], slots: int) -> int:
    """Numbers in a tensor."""
    found = 1
    for size in shape:
        found *= slots if size is None else size
    return found
