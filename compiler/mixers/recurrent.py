"""`recurrent(cell)`: an LSTM (Hochreiter and Schmidhuber 1997) or GRU (arXiv 1406.1078), as in LRCN (arXiv 1411.4389)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from attnc.compiler.attributes import OF_INPUT, OF_OUTPUT
from attnc.compiler.declare import Positional
from attnc.compiler.mixer import Kind, Mixer, Weight
from attnc.compiler.plain import Cost, Plain


class Recurrent(Kind):
    """`recurrent(lstm)`: one cell as wide as the model."""

    kind: Literal["recurrent"] = "recurrent"
    cell: Annotated[Literal["lstm", "gru"], Positional()]


def recurrent_cell(
    x: Any, weight_ih: Any, weight_hh: Any, bias_ih: Any, bias_hh: Any, state: tuple[Any, ...]
) -> tuple[Any, tuple[Any, ...]]:
    """lstm: c <- f c + i g, h <- o tanh(c); gates i, f, o are sigmoids and g is a tanh of W_ih x + b_ih + W_hh h + b_hh.
    gru: h <- (1 - z) n + z h; r and z are sigmoids of the same, n = tanh(W_in x + b_in + r (W_hn h + b_hn)).

    x [N, W] of one sequence; weights lie below one another in the order i, f, g, o or r, z, n. state: (h, c) [W] each, or (h,).
    Returns h of every token [N, W], and the state after the last one.
    """
    import torch

    outputs = []
    for token in x:
        h, *more = state
        of_input, of_state = weight_ih @ token + bias_ih, weight_hh @ h + bias_hh
        if more:
            i, f, g, o = (of_input + of_state).chunk(4)
            c = torch.sigmoid(f) * more[0] + torch.sigmoid(i) * torch.tanh(g)
            state = torch.sigmoid(o) * torch.tanh(c), c
        else:
            (r, z), (new, old) = (
                torch.sigmoid(of_input + of_state).chunk(3)[:2],
                (y.chunk(3)[2] for y in (of_input, of_state)),
            )
            state = ((1 - z) * torch.tanh(new + r * old) + z * h,)
        outputs.append(state[0])
    return (torch.stack(outputs) if outputs else x), state


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


def _plain(kind: Recurrent, _attributes: Any, model: Any) -> Plain:
    """PyTorch's own layer, which goes through a text token by token."""
    numbers = (8 if kind.cell == "lstm" else 6) * model.dim**2
    return Plain(
        file="recurrent",
        name="Recurrent",
        options={"cell": kind.cell},
        formulas=(recurrent_cell,),
        width=model.dim,
        cost=Cost(flops=2 * numbers, each=16 * model.dim, numbers=numbers, block=1, launches=2),
        how="token by token",
    )


MIXER = Mixer(
    name="recurrent",
    type="mixer",
    parameters=Recurrent,
    make_examples=lambda: (Recurrent(cell="lstm"), Recurrent(cell="gru")),
    reference=recurrent_cell,
    plain=_plain,
    weights=_weights,
    state=_state,
    float32_state=True,
    takes=lambda _kind: OF_INPUT | OF_OUTPUT - {"output_norm"},
    looks_back=lambda _kind: True,
)
