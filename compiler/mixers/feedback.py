"""`feedback(heads = 1, gain = learned)`: attention inside a recurrent feedback path (Sessa, arXiv 2604.18580)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from attnc.compiler.attributes import OF_INPUT, OF_OUTPUT
from attnc.compiler.declare import Bounds
from attnc.compiler.mixer import Growing, Kind, Mixer, Weight
from attnc.compiler.value import Broken


class Feedback(Kind):
    """`feedback`: s = f + gain A s, f its input, A softmax over strictly earlier tokens: a triangular solve.

    `heads`: how many matrices A, each for its part of the width.
    `gain`: a number, or `learned`: 0.999 tanh of a map of the token.
    """

    kind: Literal["feedback"] = "feedback"
    heads: Annotated[int, Bounds(1, 64)] = 1
    gain: Annotated[float | Literal["learned"], Bounds(-1, 1)] = "learned"


def _fits(kind: Feedback, _attributes: Any, model: Any) -> Iterator[Broken]:
    if model.dim % kind.heads:
        message = f"dim {model.dim} does not split into {kind.heads} heads of `feedback`"
        yield Broken("heads", message, "heads that divide dim", "use `heads = 1`", "A204")


def _weights(kind: Feedback, _attributes: Any, model: Any) -> tuple[Weight, ...]:
    """q and k as wide as the model, and the gain's map."""
    found = [Weight(name=f"{name}_proj.weight", shape=(model.dim, model.dim)) for name in ("q", "k")]
    if kind.gain == "learned":
        found.append(Weight(name="gain.weight", shape=(kind.heads, model.dim)))
        found.append(Weight(name="gain.bias", shape=(kind.heads,), start=1.0))
    return tuple(found)


def _growing(kind: Feedback, _attributes: Any, model: Any) -> tuple[Growing, ...]:
    """The key and the solution s of every token."""
    return tuple(Growing(name=name, shape=(kind.heads, model.dim // kind.heads)) for name in ("k", "s"))


MIXER = Mixer(
    name="feedback",
    type="mixer",
    parameters=Feedback,
    make_examples=lambda: (Feedback(), Feedback(heads=2, gain=0.5)),
    weights=_weights,
    growing=_growing,
    takes=lambda _kind: OF_INPUT | OF_OUTPUT - {"output_norm"},
    fits=_fits,
    looks_back=lambda _kind: True,
)
