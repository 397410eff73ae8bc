"""`sink(n)`: the first n keys (StreamingLLM, arXiv 2309.17453)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from attnc.compiler.declare import Bounds, Budgeted, NotBuilt, Positional
from attnc.compiler.intervals import Intervals
from attnc.compiler.mixer import Kept, Kind, Mixer
from attnc.compiler.value import Value


class Cosine(Value):
    """`cosine(0.9)`: keys whose state in this layer has abs(cos) > x with the first token's."""

    word: Literal["cosine"] = "cosine"
    x: Annotated[float, Positional(), Bounds(0, 1)]


class Sink(Kind):
    """`sink(4)`: the first n keys."""

    kind: Literal["sink"] = "sink"
    n: Annotated[int, Positional(), Bounds(0, 65536), Budgeted("tuned")]
    detect: Annotated[Literal["first"] | Cosine, NotBuilt(Cosine)] = "first"


def sink_mask(i: Any, j: Any, *, causal: bool, n: int) -> Any:
    """Query i sees key j: one of the first n."""
    first = (j < n) & (i >= 0)
    return first & (j <= i) if causal else first


def _kept(kind: Sink) -> Kept:
    """The first n; those that are found by their likeness to the first token may lie anywhere."""
    return Kept(recent=0, chosen=kind.n) if isinstance(kind.detect, Cosine) else Kept(pinned=kind.n, recent=0)


def _state(kind: Sink, _attributes: Any, model: Any) -> dict[str, tuple[int, ...]]:
    """The first token's state, which others are compared with."""
    return {"first": (model.dim,)} if isinstance(kind.detect, Cosine) else {}


MIXER = Mixer(
    name="sink",
    type="keys",
    parameters=Sink,
    make_examples=lambda: (Sink(n=3),),
    mask=sink_mask,
    sizes=lambda kind, _length: {"n": kind.n},
    intervals=lambda kind, causal: Intervals(sink=kind.n, causal=causal),
    kept=_kept,
    state=_state,
)
