"""`recurrent(cell)`: an LSTM (Hochreiter and Schmidhuber 1997) or GRU (arXiv 1406.1078), as in LRCN (arXiv 1411.4389)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from attnc.compiler.attributes import OF_INPUT, OF_OUTPUT
from attnc.compiler.declare import Positional
from attnc.compiler.mixer import Kind, Mixer, Weight


class Recurrent(Kind):
    """`recurrent(lstm)`: one cell as wide as the model."""

    kind: Literal["recurrent"] = "recurrent"
    cell: Annotated[Literal["lstm", "gru"], Positional()]


def _weights(kind: Recurrent, _attributes: Any, model: Any) -> tuple[Weight, ...]:
    """PyTorch's layout: the gates of the cell below one another, from the input and from the state."""
    gates = 4 if kind.cell == "lstm" else 3
    return (
        Weight(name="weight_ih", shape=(gates * model.dim, model.dim)),
        Weight(name="weight_hh", shape=(gates * model.dim, model.dim)),
        Weight(name="bias_ih", shape=(gates * model.dim,), start=0.0),
        Weight(name="bias_hh", shape=(gates * model.dim,), start=0.0),
    )


def _state(kind: Recurrent, _attributes: Any, model: Any) -> dict[str, tuple[int, ...]]:
    """h, and c of an LSTM."""
    return {"h": (model.dim,)} | ({"c": (model.dim,)} if kind.cell == "lstm" else {})


MIXER = Mixer(
    name="recurrent",
    type="mixer",
    parameters=Recurrent,
    make_examples=lambda: (Recurrent(cell="lstm"), Recurrent(cell="gru")),
    weights=_weights,
    state=_state,
    float32_state=True,
    takes=lambda _kind: OF_INPUT | OF_OUTPUT - {"output_norm"},
    looks_back=lambda _kind: True,
)
