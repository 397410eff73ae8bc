"""`codebook(n, ema = 0.99, commit = 1e-4)`: the keys that the union does not show, as n codes (LongVQ, arXiv 2404.11163).

Transformer-VQ's form (arXiv 2309.16354): a code's logit is q.c + log(count), its value the mean of the values that fell to it.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from attnc.compiler.declare import Bounds, Budgeted, Positional
from attnc.compiler.mixer import Kept, Kind, Mixer, Weight


class Codebook(Kind):
    """`codebook(512)`: n codes a KV head, moved by an average with factor `ema`; `commit` weighs the pull of keys to codes."""

    kind: Literal["codebook"] = "codebook"
    n: Annotated[int, Positional(), Bounds(2, 65536), Budgeted("training")]
    ema: Annotated[float, Bounds(0, 1)] = 0.99
    commit: Annotated[float, Bounds(0, 1)] = 1e-4


def _weights(kind: Codebook, attributes: Any, _model: Any) -> tuple[Weight, ...]:
    """The codes [kv_heads, n, head_dim]; they learn by the average, not by gradients."""
    return (Weight(name="codebook", shape=(attributes.kv_heads, kind.n, attributes.head_dim)),)


def _state(kind: Codebook, attributes: Any, _model: Any) -> dict[str, tuple[int, ...]]:
    """How many keys fell to each code, and the mean of their values."""
    return {"count": (attributes.kv_heads, kind.n), "value": (attributes.kv_heads, kind.n, attributes.value_dim)}


MIXER = Mixer(
    name="codebook",
    type="keys",
    parameters=Codebook,
    make_examples=lambda: (Codebook(n=4), Codebook(n=8, ema=0.9, commit=0.01)),
    kept=lambda _kind: Kept(recent=0),
    weights=_weights,
    state=_state,
)
