"""`codebook(n, ema = 0.99, commit = 1e-4)`: the keys that the union does not show, as n codes (LongVQ, arXiv 2404.11163).

Transformer-VQ's form (arXiv 2309.16354): a code's logit is q.c + log(count), its value the mean of the values that fell to it.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from attnc.compiler.declare import Bounds, Budgeted, Positional
from attnc.compiler.mixer import Kept, Kind, Mixer, Weight
from attnc.compiler.plain import Cost, Plain


class Codebook(Kind):
    """`codebook(512)`: n codes a KV head, moved by an average with factor `ema`; `commit` weighs the pull of keys to codes."""

    kind: Literal["codebook"] = "codebook"
    n: Annotated[int, Positional(), Bounds(2, 65536), Budgeted("training")]
    ema: Annotated[float, Bounds(0, 1)] = 0.99
    commit: Annotated[float, Bounds(0, 1)] = 1e-4


def codebook_attention(
    text: Any, codes: Any, count: Any, total: Any, visible: Any, turn: Any, scale: float, cap: float | None
) -> tuple[Any, Any, Any]:
    """Softmax over keys as they are where a query sees them, over c(k) where it does not; c(k) is the code nearest to k.

    `text` is one sequence: q [N, H, D] of the tokens from position `past` on; k [L, G, D] and v [L, G, E] of the keys known one
    by one, at `positions()`; `sink_logit` [H] or None; `first(i)`, the first position that a query at i or later sees beside
    the first `numbers.sink` ones. codes [G, n, D]; count [G, n] of the keys that each stands for and total [G, n, E] of their
    values: those before first(past). visible(i, j, length) is the mask and turn(x, positions) the rotation; codes and what
    reads them are not turned. Returns o [N, H, E], and counts and totals of the keys before first(past + N).
    """
    import torch

    def logit(one: Any, other: Any) -> Any:
        product = scale * (other @ one)
        return product if cap is None else cap * torch.tanh(product / cap)

    q, k, v, at, past, sink = text.q, text.k, text.v, text.positions(), text.past, text.numbers.sink
    heads, groups, done, until = q.shape[1], k.shape[1], text.first(past), text.first(past + len(text.q))
    taken = torch.stack([(k[:, g, None] - codes[g]).square().sum(-1).argmin(-1) for g in range(groups)], dim=1)
    turned = turn(k, at)
    rows = []
    for t in range(len(q)):
        i = torch.tensor(past + t, device=at.device)
        asked = turn(q[t : t + 1], i.view(1))[0]
        old = (at <= i) & (at >= done) | (at < sink) & (at <= i)
        seen = visible(i.view(1, 1), at[None, :], past + len(q))[0] & (at <= i)
        for h in range(heads):
            g = h // (heads // groups)
            far = old & ~seen
            held = count[g] > 0
            logits = [logit(asked[h], turned[seen, g]), logit(q[t, h], codes[g][taken[far, g]])]
            logits.append(logit(q[t, h], codes[g][held]) + count[g][held].log())
            values = [v[seen, g], v[far, g], total[g][held] / count[g][held].unsqueeze(-1)]
            if text.sink_logit is not None:
                logits.append(text.sink_logit[h : h + 1])
                values.append(torch.zeros_like(v[:1, g]))
            rows.append(torch.softmax(torch.cat(logits), dim=0) @ torch.cat(values))
    count, total = count.clone(), total.clone()
    for j in range(len(k)):
        if max(done, sink) <= int(at[j]) < until:
            for g in range(groups):
                count[g, taken[j, g]] += 1
                total[g, taken[j, g]] += v[j, g]
    return torch.stack(rows).reshape(len(q), heads, -1), count, total


def _weights(kind: Codebook, attributes: Any, _model: Any) -> tuple[Weight, ...]:
    """The codes [kv_heads, n, head_dim] and the average of how many keys fall to each; no gradient moves them."""
    shape = (attributes.kv_heads, kind.n)
    return (
        Weight(name="codebook", shape=(*shape, attributes.head_dim), learned=False),
        Weight(name="codebook_count", shape=shape, start=1.0, learned=False),
    )


def _state(kind: Codebook, attributes: Any, _model: Any) -> dict[str, tuple[int, ...]]:
    """How many keys fell to each code, and the sum of their values."""
    return {"count": (attributes.kv_heads, kind.n), "value": (attributes.kv_heads, kind.n, attributes.value_dim)}


def _condensed(kind: Codebook, attributes: Any, _model: Any) -> Plain:
    """Blocks of 64 queries; counts in prefill and decoding, every old key as its code in training."""
    a = attributes
    return Plain(
        file="codebook",
        name="Codes",
        options={"ema": float(kind.ema), "commit": float(kind.commit)},
        formulas=(codebook_attention,),
        width=a.heads * a.value_dim,
        cost=Cost(
            flops=2.0 * kind.n * (a.heads * (a.head_dim + a.value_dim) + a.kv_heads * a.head_dim),
            each=4.0 * (a.heads + a.kv_heads) * a.head_dim,
            numbers=kind.n * a.kv_heads * (a.head_dim + 2.0 * a.value_dim),
            block=64,
            launches=40,
            trained=2.0 * a.heads * (2 * a.head_dim + a.value_dim),
        ),
        how="codes with counts",
    )


MIXER = Mixer(
    name="codebook",
    type="keys",
    parameters=Codebook,
    make_examples=lambda: (Codebook(n=4), Codebook(n=8, ema=0.9, commit=0.01)),
    kept=lambda _kind: Kept(recent=0),
    condensed=_condensed,
    weights=_weights,
    state=_state,
)
