"""`summary(n, stride = n, pool = mean, value_pool = pool)`: one key and value for every complete chunk of n.

Combiner (arXiv 2107.05768), CCA (arXiv 2412.12465), NSA's compressed branch (arXiv 2502.11089), RAT (arXiv 2507.04416). A chunk
that the rest of the union shows token by token has no summary.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from attnc.compiler.declare import Bounds, Budgeted, Positional
from attnc.compiler.mixer import Growing, Kept, Kind, Mixer, Weight
from attnc.compiler.value import Broken, derived

Pool = Literal["mean", "max", "sum", "last_query", "mlp", "recurrence", "attention"]


class Summary(Kind):
    """`summary(32, stride = 16, pool = mlp)`: chunks of n tokens, begun every `stride`, pooled to one key and one value.

    Pools: `mean`, `max`, `sum` of the chunk; `last_query`: weighted by the softmax of its last query; `mlp`: learned;
    `recurrence`: a gated running mean, whose unfinished chunk counts as it stands; `attention`: weighted by the softmax of
    the chunk's pooled query. Keys are pooled un-rotated, and rotated at the chunk's last position.
    """

    kind: Literal["summary"] = "summary"
    n: Annotated[int, Positional(), Bounds(1, 65536), Budgeted("training")]
    stride: Annotated[int, Bounds(1, 65536)] = derived(default_factory=lambda given: given["n"])
    pool: Pool = "mean"
    value_pool: Pool = derived(default_factory=lambda given: given["pool"])


def _rules(kind: Summary) -> Iterator[Broken]:
    if kind.stride > kind.n:
        message = f"chunks of {kind.n} begun every {kind.stride} leave tokens out"
        yield Broken("stride", message, "a stride of at most n", f"write `stride = {kind.n}`, or leave it out", "A104")
    if "recurrence" in (kind.pool, kind.value_pool):
        if kind.pool != kind.value_pool:
            message = f"one recurrence runs over keys and values, but pool is `{kind.pool}` and value_pool `{kind.value_pool}`"
            yield Broken("value_pool", message, "the same pool for both", "leave `value_pool` out")
        if kind.stride != kind.n:
            message = f"a recurrence begins anew with every chunk, so chunks of {kind.n} cannot overlap"
            yield Broken("stride", message, "stride = n", "leave `stride` out")


def _state(kind: Summary, attributes: Any, _model: Any) -> dict[str, tuple[int, ...]]:
    """The running key and value of the unfinished chunk, or the running query of an attention pool."""
    if kind.pool == "recurrence":
        return {"k": (attributes.kv_heads, attributes.head_dim), "v": (attributes.kv_heads, attributes.value_dim)}
    if "attention" in (kind.pool, kind.value_pool):
        return {"q": (-(-kind.n // kind.stride), attributes.heads, attributes.head_dim)}
    return {}


def _growing(kind: Summary, attributes: Any, _model: Any) -> tuple[Growing, ...]:
    """A key and a value for every complete chunk."""
    widths = {"k": attributes.head_dim, "v": attributes.value_dim}
    return tuple(
        Growing(name=name, shape=(attributes.kv_heads, width), span=kind.n, step=kind.stride) for name, width in widths.items()
    )


def _weights(kind: Summary, attributes: Any, model: Any) -> tuple[Weight, ...]:
    """RAT's forget gate: one number a channel of every KV head."""
    if kind.pool != "recurrence":
        return ()
    width = attributes.kv_heads * attributes.head_dim
    return (
        Weight(name="summary_gate.weight", shape=(width, model.dim)),
        Weight(name="summary_gate.bias", shape=(width,), start=0.0),
    )


def _fits(kind: Summary, attributes: Any, _model: Any) -> Iterator[Broken]:
    if kind.pool == "recurrence" and attributes.head_dim != attributes.value_dim:
        message = f"one gate runs over keys of {attributes.head_dim} and values of {attributes.value_dim}"
        yield Broken("", message, "head_dim = value_dim", "set `value_dim` to head_dim", "A204")


MIXER = Mixer(
    name="summary",
    type="keys",
    parameters=Summary,
    make_examples=lambda: (
        Summary(n=4),
        Summary(n=4, stride=2, pool="mlp"),
        Summary(n=4, pool="max", value_pool="attention"),
        Summary(n=4, pool="recurrence"),
    ),
    kept=lambda kind: Kept(recent=0 if kind.pool == "recurrence" else kind.n),
    weights=_weights,
    state=_state,
    growing=_growing,
    rules=_rules,
    fits=_fits,
    looks_back=lambda kind: kind.pool == "recurrence",
)
