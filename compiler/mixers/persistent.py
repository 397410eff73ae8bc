"""`persistent(n)`: n learned keys and values without position, seen by every query (arXiv 1907.01470, 2501.00663).

They are not keys of the sequence, so no interval describes them: they stand before the sequence's keys, and nothing of them
is kept in a cache.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from attnc.compiler.declare import Bounds, Budgeted, Positional
from attnc.compiler.mixer import Kept, Kind, Mixer, Weight


class Persistent(Kind):
    """`persistent(16)`: n learned keys and values of every KV head."""

    kind: Literal["persistent"] = "persistent"
    n: Annotated[int, Positional(), Bounds(1, 4096), Budgeted("training")]


def persistent_mask(i: Any, j: Any, *, causal: bool) -> Any:  # noqa: ARG001
    """Query i sees learned key j: always."""
    import torch

    return torch.ones_like(i - j, dtype=torch.bool)


def _weights(kind: Persistent, attributes: Any, _model: Any) -> tuple[Weight, ...]:
    """Keys [n, kv_heads, head_dim] and values [n, kv_heads, value_dim]."""
    return (
        Weight(name="persistent_key", shape=(kind.n, attributes.kv_heads, attributes.head_dim)),
        Weight(name="persistent_value", shape=(kind.n, attributes.kv_heads, attributes.value_dim)),
    )


MIXER = Mixer(
    name="persistent",
    type="keys",
    parameters=Persistent,
    make_examples=lambda: (Persistent(n=2),),
    mask=persistent_mask,
    kept=lambda _kind: Kept(pinned=0, recent=0),
    weights=_weights,
    own_keys=lambda kind: kind.n,
)
