"""`stride(n)`: every n-th key back from the own (Sparse Transformer, arXiv 1904.10509)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from attnc.compiler.declare import Bounds, Budgeted, Positional
from attnc.compiler.intervals import Intervals
from attnc.compiler.mixer import Kind, Mixer


class Stride(Kind):
    """`stride(128)`: keys 0, n, 2n, ... tokens back from the query."""

    kind: Literal["stride"] = "stride"
    n: Annotated[int, Positional(), Bounds(2, 65536), Budgeted("tuned")]


def stride_mask(i: Any, j: Any, *, causal: bool, n: int) -> Any:
    """Query i sees key j: a multiple of n apart."""
    nth = (i - j) % n == 0
    return nth & (j <= i) if causal else nth


MIXER = Mixer(
    name="stride",
    type="keys",
    parameters=Stride,
    make_examples=lambda: (Stride(n=3),),
    mask=stride_mask,
    sizes=lambda kind, _length: {"n": kind.n},
    intervals=lambda kind, causal: Intervals(strides=(kind.n,), causal=causal),
)
