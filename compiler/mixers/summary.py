"""`summary(n, stride = n, pool = mean, value_pool = pool)`: one key and value for every complete chunk of n.

Combiner (arXiv 2107.05768), CCA (arXiv 2412.12465), NSA's compressed branch (arXiv 2502.11089), RAT (arXiv 2507.04416). A chunk
that the rest of the union shows token by token has no summary.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, Literal

from attnc.compiler.declare import Bounds, Budgeted, Positional
from attnc.compiler.mixer import Growing, Kept, Kind, Lacking, Mixer, Scores, Weight
from attnc.compiler.mixers.chunk_attention import chunk_pooled, chunk_queries, chunk_read, summary_attention
from attnc.compiler.plain import Cost, Plain
from attnc.compiler.value import Broken, Share, derived

if TYPE_CHECKING:
    from attnc.compiler.families import Selector

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
        return {"q": (-(-kind.n // kind.stride), attributes.kv_heads, attributes.head_dim)}
    return {}


def _growing(kind: Summary, attributes: Any, _model: Any) -> tuple[Growing, ...]:
    """A key and a value for every complete chunk."""
    widths = {"k": attributes.head_dim, "v": attributes.value_dim}
    return tuple(
        Growing(name=name, shape=(attributes.kv_heads, width), span=kind.n, step=kind.stride) for name, width in widths.items()
    )


def _weights(kind: Summary, attributes: Any, model: Any) -> tuple[Weight, ...]:
    """RAT's forget gate: one number a channel of every KV head; NSA's maps of a chunk's rows side by side, for all heads."""
    if kind.pool != "recurrence":
        pools = (("k", kind.pool, attributes.head_dim), ("v", kind.value_pool, attributes.value_dim))
        return tuple(one for name, pool, width in pools if pool == "mlp" for one in _maps(f"summary.{name}", kind.n, width))
    width = attributes.kv_heads * attributes.head_dim
    return (
        Weight(name="summary_gate.weight", shape=(width, model.dim)),
        Weight(name="summary_gate.bias", shape=(width,), start=0.0),
    )


def _maps(name: str, n: int, width: int) -> tuple[Weight, ...]:
    return (
        Weight(name=f"{name}.place", shape=(n, width)),
        Weight(name=f"{name}.up.weight", shape=(width, n * width)),
        Weight(name=f"{name}.down.weight", shape=(width, width)),
    )


def _selector(kind: Summary) -> Selector:
    """In the words of choices: every chunk that has been read, one key each."""
    from attnc.compiler import families  # a spec is checked without it

    every = Share(percent=100.0 / kind.stride)
    return families.Selector(keys="chunks", span=kind.n, step=kind.stride, score="softmax", top_k=every)


def _scores(kind: Summary, attributes: Any, _model: Any) -> Scores:
    arguments = (attributes.head_dim, attributes.value_dim, kind.n, kind.stride, (kind.pool, kind.value_pool))
    return Scores("summary", "ChunkPool", "chunks_pooled", arguments, reads_input=False, rotated=-1, chooses=False)


def _unbuilt(kind: Summary) -> Iterator[Lacking]:
    words = (kind.pool, kind.value_pool)
    if stands(kind) and "mlp" in words:
        yield Lacking(f"`mlp` beside `{words[words[0] == 'mlp']}`", "one of them for both", "write the same pool for both")


def chunk_keys(k: Any, v: Any, i: Any, net: Any, sizes: Any) -> Any:
    """Keys k [H, L, D] as before they were turned, values v [H, L, E] -> (a key and a value for each chunk, their last
    positions, which chunks each query at i has read [N, M]).

    net: (pools of keys and values, maps of keys and of values, how keys are turned); sizes: (tokens of a chunk, from one to the
    next).
    """
    import torch

    (pools, maps, turn), (n, stride) = net, sizes
    begins = range(0, k.shape[1] - n + 1, stride)

    def pooled(x: Any, pool: str, weights: Any) -> Any:
        rows = []
        for begin in begins:
            chunk = x[:, begin : begin + n]
            if pool == "mlp":
                place, up, down = weights
                inner = torch.stack([up @ (head + place).reshape(-1) for head in chunk])
                rows.append((inner * torch.sigmoid(inner)) @ down.T)
            else:
                rows.append({"mean": chunk.mean(1), "sum": chunk.sum(1), "max": chunk.amax(1)}[pool])
        return torch.stack(rows, dim=1) if rows else x[:, :0]

    last = torch.tensor([begin + n - 1 for begin in begins], device=k.device, dtype=i.dtype)
    keys, values = pooled(k, pools[0], maps[0]), pooled(v, pools[1], maps[1])
    return turn(keys, last), values, last <= i[:, None]


APART = ("last_query", "attention", "recurrence")
"""Pools that are weighed by queries or run on: chunks of these go beside the keys that the union shows, not as choices."""


def stands(kind: Summary) -> bool:
    """Whether the kind is no choice of all chunks."""
    return kind.pool in APART or kind.value_pool in APART


def _condensed(kind: Summary, attributes: Any, _model: Any) -> Plain:
    """Blocks of 64 queries over the keys that are shown and over all chunks."""
    a = attributes
    return Plain(
        file="summaries",
        name="Summaries",
        options={"n": kind.n, "stride": kind.stride, "pool": kind.pool, "value_pool": kind.value_pool},
        formulas=(chunk_pooled, chunk_queries, chunk_read, summary_attention),
        width=a.heads * a.value_dim,
        cost=Cost(
            flops=8.0 * kind.n * a.kv_heads * (a.head_dim + a.value_dim),
            each=4.0 * (a.heads + a.kv_heads) * a.head_dim,
            pairs=2.0 * a.heads * (a.head_dim + a.value_dim) / kind.stride,
            block=64,
            launches=40,
        ),
        how="chunks beside tokens",
    )


def _beside(kind: Summary, rest: Any) -> Iterator[Lacking]:
    """A recurrence is a union of its own."""
    if kind.pool == "recurrence" and rest:
        yield Lacking(
            f"`{rest[0].kind}` beside `summary` with `pool = recurrence`", "the summary alone", f"leave `{rest[0].kind}` out"
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
    chooses=_selector,
    formulas=(chunk_keys,),
    scores=_scores,
    condensed=_condensed,
    stands=stands,
    beside=_beside,
    unbuilt=_unbuilt,
    kept=lambda kind: Kept(recent=0 if kind.pool == "recurrence" else kind.n),
    weights=_weights,
    state=_state,
    growing=_growing,
    rules=_rules,
    fits=_fits,
    looks_back=lambda kind: kind.pool == "recurrence",
)
