"""`ssm(form, state = 16, expand = 1)`: diagonal state space, a state of `state` numbers for every channel of the inner width.

S4D (arXiv 2206.11893), Mamba (arXiv 2312.00752), Mamba-2 (arXiv 2405.21060). For every token, with u the inner input:

    s4d     h <- exp(dt A) h + (exp(dt A) - 1) / A u     y = 2 Re(C h) + D u, then GELU
    mamba   h <- exp(dt A) h + dt B u                    y = C h + D u
    mamba2  h <- exp(dt A) h + dt B u                    y = C h + D u, one number dt, A and D a head

In `s4d` A and C are complex, and all of dt, A, C and D belong to the channel. Else dt, B and C are of the token.
`mamba` and `mamba2` have dt = softplus(... + dt_bias) and A = -exp(A_log). B and C are shared by all channels: published
Mamba-2 models may have several groups of heads with B and C of their own, which the language cannot say.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from attnc.compiler.attributes import OF_INPUT, OF_OUTPUT
from attnc.compiler.declare import Bounds, Positional
from attnc.compiler.families import Channels, Recurrence
from attnc.compiler.mixer import Kind, Mixer, Weight, convolution
from attnc.compiler.mixers.channels import channel_states
from attnc.compiler.mixers.recurrence import recurrence
from attnc.compiler.spaced import Spaced
from attnc.compiler.value import Broken

STEPS = (1e-3, 1e-1)
"""The steps dt that a layer starts with, their logarithms spread evenly."""


class Ssm(Kind):
    """`ssm(mamba, state = 16, expand = 2)`: `state` numbers a channel.

    Inner width: expand x dim; of `mamba2` heads x head_dim.
    """

    kind: Literal["ssm"] = "ssm"
    form: Annotated[Literal["s4d", "mamba", "mamba2"], Positional()]
    state: Annotated[int, Bounds(1, 1024)] = 16
    expand: Annotated[int, Bounds(1, 8)] = 1


def inner_width(kind: Ssm, attributes: Any, model: Any) -> int:
    """Channels that have a state."""
    return int(attributes.heads * attributes.head_dim if kind.form == "mamba2" else kind.expand * model.dim)


def step_rank(model: Any) -> int:
    """The width through which `mamba` makes its steps: dim / 16, rounded up."""
    return -(-int(model.dim) // 16)


def conv_width(kind: Ssm, attributes: Any, model: Any) -> int:
    """Channels of the short convolution; in Mamba-2 it runs over B and C too."""
    return inner_width(kind, attributes, model) + (2 * kind.state if kind.form == "mamba2" else 0)


def _rules(kind: Ssm) -> Iterator[Broken]:
    if kind.form == "mamba2" and kind.expand != 1:
        message = "the inner width of `mamba2` is heads x head_dim, so `expand` has no meaning"
        yield Broken("expand", message, "`mamba2` without `expand`", "set `heads` and `head_dim` instead")
    if kind.form == "s4d" and kind.state % 2:
        message = f"the states of `s4d` come in pairs of two numbers, but state is {kind.state}"
        yield Broken("state", message, "an even `state`", f"write `state = {kind.state + 1}`")


def _state(kind: Ssm, attributes: Any, model: Any) -> dict[str, tuple[int, ...]]:
    """`state` numbers a channel; of S4D's complex states, which come in conjugate pairs, as many real numbers."""
    if kind.form == "mamba2":
        return {"state": (attributes.heads, kind.state, attributes.head_dim)}
    return {"state": (inner_width(kind, attributes, model), kind.state)}


def _recent(kind: Ssm, attributes: Any, model: Any) -> dict[str, tuple[int, ...]]:
    """The last inputs of the convolution."""
    if attributes.short_conv is None or kind.form == "s4d":
        return {}
    return {"conv": (attributes.short_conv - 1, conv_width(kind, attributes, model))}


def _weights(kind: Ssm, attributes: Any, model: Any) -> tuple[Weight, ...]:
    """All of the mixer's, projections included; where they start as published, the form's code says so."""
    inner, dim = inner_width(kind, attributes, model), model.dim
    own = {"s4d": _weights_s4d, "mamba": _weights_mamba, "mamba2": _weights_mamba2}[kind.form]
    found = [Weight(name="in_proj.weight", shape=(inner, dim)), *own(kind, attributes, model)]
    if attributes.short_conv is not None and kind.form != "s4d":
        n, width = attributes.short_conv, conv_width(kind, attributes, model)
        found += [convolution("conv", width, n), Weight(name="conv.bias", shape=(width,), start=0.0)]
    if attributes.output_gate is not None:
        found.append(Weight(name="output_gate.weight", shape=(inner, dim)))
    if attributes.output_norm is not None and kind.form == "mamba2":
        found.append(Weight(name="output_norm.weight", shape=(inner,), start=1.0))
    found.append(Weight(name="out_proj.weight", shape=(dim, inner)))
    if not isinstance(attributes.scale, int | float):
        found.append(Weight(name="scale", shape=(dim,), start=float(attributes.scale.init)))
    return tuple(found)


def _weights_s4d(kind: Ssm, attributes: Any, model: Any) -> list[Weight]:
    """S4D-Lin: A = -1/2 + i pi n; C [inner, pairs, 2] are real and imaginary parts."""
    inner, pairs = inner_width(kind, attributes, model), kind.state // 2
    return [
        Weight(name="dt_log", shape=(inner,), start=("log_even", *STEPS, "log")),
        Weight(name="A_log", shape=(inner, pairs), start=math.log(0.5)),
        Weight(name="A_imag", shape=(inner, pairs), start=("count", 0.0, math.pi, "plain")),
        Weight(name="C", shape=(inner, pairs, 2), start=(0.0, 0.5**0.5)),
        Weight(name="D", shape=(inner,), start=1.0),
    ]


def _weights_mamba(kind: Ssm, attributes: Any, model: Any) -> list[Weight]:
    """A = -(1, 2, ..., state) in every channel; steps through a narrow map."""
    inner, rank = inner_width(kind, attributes, model), step_rank(model)
    return [
        Weight(name="dt_down.weight", shape=(rank, inner)),
        Weight(name="dt_up.weight", shape=(inner, rank), start=("even", -(rank**-0.5), rank**-0.5, "plain")),
        Weight(name="dt_bias", shape=(inner,), start=("log_even", *STEPS, "inverse_softplus")),
        Weight(name="B_proj.weight", shape=(kind.state, inner)),
        Weight(name="C_proj.weight", shape=(kind.state, inner)),
        Weight(name="A_log", shape=(inner, kind.state), start=("count", 1.0, 1.0, "log")),
        Weight(name="D", shape=(inner,), start=1.0),
    ]


def _weights_mamba2(kind: Ssm, attributes: Any, model: Any) -> list[Weight]:
    """A one a head, from -16 to -1; steps, B and C straight from the layer's input."""
    heads = attributes.heads
    return [
        Weight(name="B_proj.weight", shape=(kind.state, model.dim)),
        Weight(name="C_proj.weight", shape=(kind.state, model.dim)),
        Weight(name="dt_proj.weight", shape=(heads, model.dim)),
        Weight(name="dt_bias", shape=(heads,), start=("log_even", *STEPS, "inverse_softplus")),
        Weight(name="A_log", shape=(heads,), start=("even", 1.0, 16.0, "log")),
        Weight(name="D", shape=(heads,), start=1.0),
    ]


def _spaced(kind: Ssm, attributes: Any, model: Any) -> Spaced:
    """The launch of states; Mamba-2's are matrices with a decay a head: q = C, k = B, v = dt u."""
    inner, gate = inner_width(kind, attributes, model), attributes.output_gate
    if kind.form == "s4d":
        family = Channels(step=False, write=False, read=False, weights=True, complex_states=True, state=kind.state // 2)
        return Spaced(family, inner, kind.state, "fixed", channel_states, gate=gate, causal=attributes.causal)
    if kind.form == "mamba":
        ranked = Channels(state=kind.state)
        return Spaced(ranked, inner, kind.state, "ranked", channel_states, conv=attributes.short_conv, gate=gate)
    return Spaced(
        family=Recurrence(decay="scalar", key_width=kind.state, value_width=attributes.head_dim),
        channels=inner,
        state=kind.state,
        steps="heads",
        formula=recurrence,
        heads=attributes.heads,
        conv=attributes.short_conv,
        gate=gate,
        norm=None if attributes.output_norm is None else model.norm.epsilon,
    )


def _takes(kind: Ssm) -> frozenset[str]:
    own = {
        "s4d": frozenset[str](),
        "mamba": frozenset({"short_conv"}),
        "mamba2": frozenset({"heads", "head_dim", "short_conv"}),
    }
    return OF_INPUT | own[kind.form] | (OF_OUTPUT if kind.form == "mamba2" else OF_OUTPUT - {"output_norm"})


MIXER = Mixer(
    name="ssm",
    type="mixer",
    parameters=Ssm,
    make_examples=lambda: (Ssm(form="s4d"), Ssm(form="mamba", state=4, expand=2), Ssm(form="mamba2", state=8)),
    reference=channel_states,
    spaced=_spaced,
    weights=_weights,
    state=_state,
    float32_state=True,
    recent=_recent,
    takes=_takes,
    rules=_rules,
    looks_back=lambda kind: kind.form != "s4d",
)
