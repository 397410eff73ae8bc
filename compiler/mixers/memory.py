"""`memory(net, chunk = 64, lr = learned, ...)`: fast weights learned at test time, one small net a head.

Titans (arXiv 2501.00663), TTT (arXiv 2407.04620), AllMem (arXiv 2602.13680). Within a chunk all gradients are taken at the
weights that the chunk began with.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import log
from typing import Annotated, Any, Literal

from attnc.compiler.attributes import OF_INPUT, OF_OUTPUT, OF_PROJECTIONS, OF_ROTATION
from attnc.compiler.declare import Bounds, Budgeted, Positional
from attnc.compiler.families import FastWeights, RateOf
from attnc.compiler.mixer import Kind, Mixer, Weight
from attnc.compiler.mixers.fast_weights import fast_net, fast_weights
from attnc.compiler.streams import Streams, channels
from attnc.compiler.taught import Taught
from attnc.compiler.value import Broken, Value

Expand = Annotated[int, Bounds(1, 8)]


class Mlp(Value):
    """`mlp(depth = 2, expand = 4)`: `depth` maps, expand x head_dim wide inside."""

    word: Literal["mlp"] = "mlp"
    depth: Annotated[int, Bounds(1, 4)] = 2
    expand: Expand = 4


class Swiglu(Value):
    """`swiglu(expand = 4)`: a gated net, expand x head_dim wide inside."""

    word: Literal["swiglu"] = "swiglu"
    expand: Expand = 4


class Learned(Value):
    """`learned`: a gate of the token; `learned(per = head)`: one learned number a head."""

    word: Literal["learned"] = "learned"
    per: Literal["token", "head"] = "token"


STARTS = {"momentum": 0.0, "decay": -6.0}
"""Where learned rates begin, before the sigmoid: 0.5 and 0.0025 a token. Half of what was learned is gone after 280 tokens."""

MOVE, MOST = 0.43, 0.1
"""The learned `lr` of a chunk's tokens begins at `MOVE` in all, and at no more than `MOST` for one. With keys of length 1, a
chunk then moves one map by 0.86 of its distance from the values, twice that with momentum, even if all keys are one: it
settles. Less would teach next to nothing before training has raised it.
"""

Rate = Annotated[float | Learned | None, Bounds(0, 1)]


class Memory(Kind):
    """`memory(mlp(depth = 2), chunk = 64)`: S <- momentum S - lr grad loss(M(k), v), M <- (1 - decay) M + S, read M(q).

    `net`         `linear`, `mlp(...)` or `swiglu(...)` from head_dim to value_dim.
    `lr`, `momentum`, `decay`  `none` (1 for lr, else 0), a number, `learned` or `learned(per = head)`.
    `loss`        `mse`: the squared distance of M(k) from v, no half of it.
    `read`        a token reads the weights that its chunk began with, or those after its own write.
    `error`       taken at the weights before or after decay; after it, one linear map is the gated delta rule.
    `weight_norm` `row`: before a chunk writes, rows get the norm that they began with.
    `residual`, `norm`  TTT's x + norm(M(x)) around the net.
    """

    kind: Literal["memory"] = "memory"
    net: Annotated[Literal["linear"] | Mlp | Swiglu, Positional()]
    chunk: Annotated[int, Bounds(1, 65536), Budgeted("tuned")] = 64
    lr: Rate = Learned()
    momentum: Rate = None
    decay: Rate = None
    loss: Literal["mse"] = "mse"
    read: Literal["before_write", "after_write"] = "before_write"
    error: Literal["before_decay", "after_decay"] = "before_decay"
    weight_norm: Literal["row"] | None = None
    residual: bool = False
    norm: Literal["layer"] | None = None


def net_shapes(kind: Memory, attributes: Any) -> dict[str, tuple[int, ...]]:
    """The net's weights, [outputs, inputs] of every head."""
    heads, inside, outside = attributes.heads, attributes.head_dim, attributes.value_dim
    if isinstance(kind.net, Swiglu):
        hidden = kind.net.expand * inside
        return {"gate": (heads, hidden, inside), "up": (heads, hidden, inside), "down": (heads, outside, hidden)}
    depth, hidden = (kind.net.depth, kind.net.expand * inside) if isinstance(kind.net, Mlp) else (1, 0)
    widths = [inside, *[hidden] * (depth - 1), outside]
    return {f"map_{at}": (heads, widths[at + 1], widths[at]) for at in range(depth)}


def streams(_kind: Memory, attributes: Any) -> Streams:
    """A q for each net; k and v are repeated."""
    a = attributes
    return {"q": (a.heads, a.head_dim), "k": (a.kv_heads, a.head_dim), "v": (a.kv_heads, a.value_dim)}


def _gates(kind: Memory) -> int:
    """How many of lr, momentum and decay are gates of the token."""
    return sum(isinstance(rate, Learned) and rate.per == "token" for rate in (kind.lr, kind.momentum, kind.decay))


def _rules(kind: Memory) -> Iterator[Broken]:
    if kind.error == "after_decay" and kind.decay is None:
        message = "`error = after_decay` needs a decay, but decay is `none`"
        yield Broken("error", message, "a `decay`", "write `decay = learned`, or leave `error` out")


def _fits(kind: Memory, attributes: Any, _model: Any) -> Iterator[Broken]:
    if kind.residual and attributes.head_dim != attributes.value_dim:
        message = f"`residual` adds keys of {attributes.head_dim} to values of {attributes.value_dim}"
        yield Broken("", message, "head_dim = value_dim", "leave `residual` or `value_dim` out", "A204")


def _state(kind: Memory, attributes: Any, _model: Any) -> dict[str, tuple[int, ...]]:
    """Weights, their momentum, and the gates of the unfinished chunk's tokens."""
    found = {f"weight.{name}": shape for name, shape in net_shapes(kind, attributes).items()}
    if kind.momentum is not None:
        found |= {f"momentum.{name}": shape for name, shape in net_shapes(kind, attributes).items()}
    gates = _gates(kind)
    if gates and kind.chunk > 1:
        found["gates"] = (gates, kind.chunk - 1, attributes.heads)
    return found


def _recent(kind: Memory, attributes: Any, _model: Any) -> dict[str, tuple[int, ...]]:
    """Keys and values of the unfinished chunk, and the last inputs of the convolutions."""
    found: dict[str, tuple[int, ...]] = {}
    if kind.chunk > 1:
        found["k"] = (kind.chunk - 1, attributes.kv_heads, attributes.head_dim)
        found["v"] = (kind.chunk - 1, attributes.kv_heads, attributes.value_dim)
    if attributes.short_conv is not None:
        widths = channels(streams(kind, attributes))
        found |= {f"{name}_conv": (attributes.short_conv - 1, width) for name, width in widths.items()}
    return found


def _weights(kind: Memory, attributes: Any, model: Any) -> tuple[Weight, ...]:
    """The weights that every sequence begins with, what rates are learned from, and the norm around the net.

    Nets of several maps begin as Glorot's (as titans-pytorch's do): maps as small as a projection's pass next to nothing on,
    and what is written behind them is not found again. One map begins as small as TTT's.
    """
    heads, found = attributes.heads, []
    maps = net_shapes(kind, attributes)
    for name, shape in maps.items():
        deviation = 0.02 if len(maps) == 1 else (2 / (shape[1] + shape[2])) ** 0.5
        found.append(Weight(name=f"net.{name}", shape=shape, start=(0.0, deviation)))
    share = min(MOVE / int(kind.chunk), MOST)
    for name, rate in _rates(kind).items():
        if isinstance(rate, Learned):
            start = log(share / (1 - share)) if name == "lr" else STARTS[name]
            bias = Weight(name=f"{name}_proj.bias" if rate.per == "token" else name, shape=(heads,), start=start)
            found += [Weight(name=f"{name}_proj.weight", shape=(heads, model.dim))] if rate.per == "token" else []
            found.append(bias)
    if kind.norm is not None:
        shape = (attributes.heads, attributes.value_dim)
        found += [Weight(name="net_norm.weight", shape=shape, start=1.0), Weight(name="net_norm.bias", shape=shape, start=0.0)]
    return tuple(found)


def _rates(kind: Memory) -> dict[str, float | Learned | None]:
    return {"lr": kind.lr, "momentum": kind.momentum, "decay": kind.decay}


def _taught(kind: Memory, attributes: Any, _model: Any) -> Taught:
    """The launch of nets."""

    def form(rate: float | Learned | None) -> RateOf:
        if isinstance(rate, Learned):
            return rate.per
        return "none" if rate is None else "number"

    inside = attributes.head_dim
    expand = 0 if kind.net == "linear" or (isinstance(kind.net, Mlp) and kind.net.depth == 1) else kind.net.expand
    family = FastWeights(
        gated=isinstance(kind.net, Swiglu),
        depth=kind.net.depth if isinstance(kind.net, Mlp) else 1,
        hidden=expand * inside,
        norm=kind.norm is not None,
        residual=kind.residual,
        lr=form(kind.lr),
        momentum=form(kind.momentum),
        decay=form(kind.decay),
        after_write=kind.read == "after_write",
        after_decay=kind.error == "after_decay",
        weight_norm=kind.weight_norm is not None,
        key_width=inside,
        value_width=attributes.value_dim,
    )
    return Taught(
        family=family,
        heads=attributes.heads,
        streams=streams(kind, attributes),
        chunk=int(kind.chunk),
        shapes=net_shapes(kind, attributes),
        numbers={name: float(rate) for name, rate in _rates(kind).items() if isinstance(rate, int | float)},
        formulas=(fast_net, fast_weights),
    )


MIXER = Mixer(
    name="memory",
    type="mixer",
    parameters=Memory,
    make_examples=lambda: (
        Memory(net="linear", chunk=4),
        Memory(net=Mlp(), chunk=4, momentum=Learned(), decay=Learned()),
        Memory(net=Swiglu(), chunk=4, momentum=0.9, weight_norm="row"),
        Memory(net="linear", chunk=4, residual=True, norm="layer"),
        Memory(net=Mlp(depth=1), chunk=1, decay=Learned(per="head"), error="after_decay"),
    ),
    reference=fast_weights,
    taught=_taught,
    weights=_weights,
    state=_state,
    float32_state=True,
    recent=_recent,
    takes=lambda _kind: OF_INPUT | OF_PROJECTIONS | OF_ROTATION | OF_OUTPUT,
    rules=_rules,
    fits=_fits,
    looks_back=lambda _kind: True,
    per_head=True,
)
