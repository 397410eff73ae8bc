"""Lines that every class with projections shares: x -> q, k, v in the order that the language fixes, and the heads' o -> y."""

from __future__ import annotations

from collections.abc import Mapping

from attnc.compiler.attributes import Attributes, LearnedScale
from attnc.compiler.spec import Model
from attnc.compiler.streams import Streams

AXES = {"q": "H, D", "k": "G, D", "v": "G, E"}
"""Axes of a softmax's q, k and v behind that of the tokens."""


def summary(a: Attributes) -> str:
    """What a softmax's class says of its heads."""
    shared = "" if a.heads == a.kv_heads else f" on {a.kv_heads} key and value heads"
    width = f"width {a.head_dim}" if a.head_dim == a.value_dim else f"widths {a.head_dim} and {a.value_dim}"
    return f"{a.heads} query heads{shared}, {width}."


def projections(streams: Streams, a: Attributes, model: Model) -> list[str]:
    """Lines of __init__: the projections, and what stands between them and the kind."""
    return [*maps(streams, a, model), *between(streams, a, model)]


def maps(streams: Streams, a: Attributes, model: Model) -> list[str]:
    """Lines of __init__: the projections of x, and o."""
    bias, out_bias = model.bias in ("qkv", "all"), model.bias == "all"
    sizes = {name: f"{heads} * {width}" for name, (heads, width) in streams.items()}
    lines = [f"self.{name}_proj = nn.Linear({model.dim}, {size}, bias={bias})" for name, size in sizes.items()]
    return [*lines, f"self.o_proj = nn.Linear({a.heads} * {a.value_dim}, {model.dim}, bias={out_bias})"]


def between(streams: Streams, a: Attributes, model: Model) -> list[str]:
    """Lines of __init__: what stands between the projections and the kind."""
    lines: list[str] = []
    if a.short_conv is not None:
        lines += [
            f"self.{name}_conv = ShortConv({heads} * {width}, {a.short_conv})" for name, (heads, width) in streams.items()
        ]
    if a.qk_norm == "rms":
        centre = ", centre=1" if model.norm.centre else ""
        lines += [
            f"self.{name}_norm = RMSNorm({a.head_dim}, {model.norm.epsilon!r}{centre})" for name in streams if name != "v"
        ]
    return lines


def after(a: Attributes, model: Model) -> list[str]:
    """Lines of __init__: what stands between the kind and the output."""
    lines = []
    if a.output_norm is not None:
        lines.append(f"self.output_norm = RMSNorm({a.value_dim}, {model.norm.epsilon!r})")
    if a.output_gate is not None:
        lines.append(f"self.output_gate = nn.Linear({model.dim}, {a.heads} * {a.value_dim}, bias=False)")
    return lines


def out_scale(a: Attributes, model: Model) -> list[str]:
    """The line of __init__ that makes a learned factor of the output."""
    if not isinstance(a.scale, LearnedScale):
        return []
    return [f"self.scale = nn.Parameter(torch.full(({model.dim},), {float(a.scale.init)!r}))"]


def scaled(text: str, a: Attributes) -> str:
    """The output times its factor."""
    if isinstance(a.scale, LearnedScale):
        return f"self.scale * {text}"
    return text if a.scale == 1 else f"{float(a.scale)!r} * {text}"


def begin(a: Attributes, chained: bool) -> list[str]:
    """Lines of forward: what is done to the mixer's input before all else. The output gate reads it as it came.

    `chained`: what the output gate reads is given to forward beside x.
    """
    if a.activation is None:
        return []
    keep = ["given = x  # what the output gate reads"] if a.output_gate is not None and not chained else []
    return [*keep, f"x = F.{a.activation}(x)"]


def gate(a: Attributes, chained: bool) -> str:
    """The output gate."""
    assert a.output_gate is not None, "asked only where there is one"
    read = "given" if chained or a.activation is not None else "x"
    return {"sigmoid": "torch.sigmoid({})", "silu": "F.silu({})", "linear": "{}"}[a.output_gate].format(
        f"self.output_gate({read})"
    )


def project(
    streams: Streams, a: Attributes, axes: Mapping[str, str] = AXES, given: Mapping[str, str] | None = None
) -> list[str]:
    """Lines of forward: from x to those of q, k and v that are made, [T, heads, width] each, before positions.

    `given`: names of what projections have made already, [T, heads * width] each.
    """
    lines = []
    for name, (heads, width) in streams.items():
        text = f"self.{name}_proj({'smooth' if a.input_ema is not None and name != 'v' else 'x'})"
        text = text if given is None else given[name]
        if a.short_conv is not None:
            lines.append(f'{name} = convolve(self.{name}_conv, {text}, call, self.slot, "{name}_conv")  # [T, channels]')
            text = name
        lines.append(f"{name} = {text}.unflatten(-1, ({heads}, {width}))  # [T, {axes[name]}]")
    normed = [name for name in streams if name != "v"]
    match a.qk_norm:
        case "rms":
            lines += [f"{name} = self.{name}_norm({name})" for name in normed]
        case "l2":
            lines += [f"{name} = l2_norm({name})" for name in normed]
    return lines


def output(a: Attributes, chained: bool = False) -> list[str]:
    """Lines of forward: output_norm per head, times output_gate, o, scale."""
    return [*gated(a, chained), f"return {scaled('self.o_proj(o)', a)}"]


def gated(a: Attributes, chained: bool = False) -> list[str]:
    """Lines of forward: output_norm per head, times output_gate; o is [T, heads * E] then."""
    lines = []
    if a.output_norm is not None:
        lines.append("o = self.output_norm(o)")
    lines.append("o = o.flatten(-2)  # [T, heads * E]")
    if a.output_gate is not None:
        lines.append(f"o = o * {gate(a, chained)}")
    return lines


def needs(streams: Streams, a: Attributes) -> dict[str, set[str]]:
    """Runtime file -> what these lines need from there."""
    layers: set[str] = set()
    if a.short_conv is not None:
        layers.add("ShortConv")
    if a.qk_norm == "l2" and len(streams) > ("v" in streams):
        layers.add("l2_norm")
    if a.qk_norm == "rms" or a.output_norm is not None:
        layers.add("RMSNorm")
    ema = {"smoothing": {"InputEma"}, "channels": {"ChannelStates"}} if a.input_ema is not None else {}
    return ema | ({"layers": layers} if layers else {}) | ({"stateful": {"convolve"}} if a.short_conv is not None else {})
