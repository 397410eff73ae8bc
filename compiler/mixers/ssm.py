"""`ssm(form, state = 16, expand = 1)`: diagonal state space.

S4D (arXiv 2206.11893), Mamba (arXiv 2312.00752), Mamba-2 (arXiv 2405.21060).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from attnc.compiler.attributes import OF_INPUT, OF_OUTPUT
from attnc.compiler.declare import Bounds, Positional
from attnc.compiler.mixer import Kind, Mixer, Weight
from attnc.compiler.value import Broken


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


def _rules(kind: Ssm) -> Iterator[Broken]:
    if kind.form == "mamba2" and kind.expand != 1:
        message = "the inner width of `mamba2` is heads x head_dim, so `expand` has no meaning"
        yield Broken("expand", message, "`mamba2` without `expand`", "set `heads` and `head_dim` instead")


def _state(kind: Ssm, attributes: Any, model: Any) -> dict[str, tuple[int, ...]]:
    """`state` numbers a channel; of S4D's complex states, which come in conjugate pairs, as many real numbers."""
    if kind.form == "mamba2":
        return {"state": (attributes.heads, attributes.head_dim, kind.state)}
    return {"state": (inner_width(kind, attributes, model), kind.state)}


def _recent(kind: Ssm, attributes: Any, model: Any) -> dict[str, tuple[int, ...]]:
    """The last inputs of the convolution; in Mamba-2 it runs over B and C too, which all heads share."""
    if attributes.short_conv is None:
        return {}
    shared = 2 * kind.state if kind.form == "mamba2" else 0
    return {"conv": (attributes.short_conv - 1, inner_width(kind, attributes, model) + shared)}


def _weights(kind: Ssm, attributes: Any, model: Any) -> tuple[Weight, ...]:
    """The rates A, as logarithms, and the skip D."""
    inner = inner_width(kind, attributes, model)
    per_head = kind.form == "mamba2"
    rates = (attributes.heads,) if per_head else (inner, kind.state)
    return (
        Weight(name="A_log", shape=rates, start=0.0),
        Weight(name="D", shape=(attributes.heads if per_head else inner,), start=1.0),
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
    weights=_weights,
    state=_state,
    float32_state=True,
    recent=_recent,
    takes=_takes,
    rules=_rules,
)
