"""`power_of_two(n)`: blocks of n at distance 0, 1, 2, 4, 8... (PowerAttention, arXiv 2503.03588)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from attnc.compiler.declare import Bounds, Budgeted, Positional
from attnc.compiler.intervals import Intervals
from attnc.compiler.mixer import Kind, Mixer


class PowerOfTwo(Kind):
    """`power_of_two(256)`: the own block of n and those 1, 2, 4, 8... blocks away."""

    kind: Literal["power_of_two"] = "power_of_two"
    n: Annotated[int, Positional(), Bounds(2, 65536), Budgeted("tuned")]


def power_of_two_mask(i: Any, j: Any, *, causal: bool, n: int) -> Any:
    """Query i sees key j: their blocks of n are 0 or a power of two apart."""
    distance = (i // n - j // n).abs()
    hop = (distance & (distance - 1)) == 0
    return hop & (j <= i) if causal else hop


MIXER = Mixer(
    name="power_of_two",
    type="keys",
    parameters=PowerOfTwo,
    make_examples=lambda: (PowerOfTwo(n=2),),
    mask=power_of_two_mask,
    sizes=lambda kind, _length: {"n": kind.n},
    intervals=lambda kind, causal: Intervals(powers=(kind.n,), causal=causal),
)
