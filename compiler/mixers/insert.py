"""`insert(landmark, every = n)`: a learned token after every n tokens (Landmark attention, arXiv 2305.16300).

The rest of the layer's chain and all later layers work on the longer sequence; the landmarks are gone before the head.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from attnc.compiler.declare import Bounds, Positional
from attnc.compiler.mixer import Kind, Mixer, Weight


class Insert(Kind):
    """`insert(landmark, every = 50)`: one learned token after every 50."""

    kind: Literal["insert"] = "insert"
    what: Annotated[Literal["landmark"], Positional()]
    every: Annotated[int, Bounds(1, 65536)]


def _weights(kind: Insert, _attributes: Any, model: Any) -> tuple[Weight, ...]:
    return (Weight(name=f"{kind.what}.weight", shape=(model.dim,)),)


MIXER = Mixer(
    name="insert",
    type="change",
    parameters=Insert,
    make_examples=lambda: (Insert(what="landmark", every=3),),
    weights=_weights,
    slots=lambda kind: 1 + 1 / kind.every,
)
