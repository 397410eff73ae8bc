"""The class of a state space: x -> what is written and the steps of time -> a launch of states -> skip, gate, norm, output."""

from __future__ import annotations

from attnc.codegen import projecting
from attnc.codegen.parts import Names, Part, merged
from attnc.codegen.scanning import plan_of_states
from attnc.compiler.families import Channels
from attnc.compiler.graph import Apply, Graph
from attnc.compiler.mixer import Weight
from attnc.compiler.mixers import MIXERS
from attnc.compiler.spaced import Spaced
from attnc.compiler.spec import Model


def spaced(graph: Graph, layer: int, scope: str, names: Names, model: Model) -> Part:
    """The class of an Apply node whose kind says how it is held as a state space."""
    found = ((name, node) for name, node in graph.nodes(layer) if isinstance(node, Apply) and node.scope == scope)
    name, node = next(found)
    declared = MIXERS[node.kind.kind]
    assert declared.spaced is not None, "asked only of state spaces"
    one = declared.spaced(node.kind, node.attributes, model)
    class_name = names.new([node.kind.kind], "Mixer")
    weights = declared.weights(node.kind, node.attributes, model)
    body = (*projecting.begin(node.attributes, node.chained), *_body(one), *_output(one, node))
    return Part(
        name=class_name,
        place="mixer",
        template="attention.py.j2",
        summary=_summary(node, one),
        origins=(str(node.origin),),
        modules=(*_modules(one, weights), _launch(one, class_name)),
        body=body,
        plans=(plan_of_states(node, declared, model),),
        slots=1,
        chained=node.chained and one.gate is not None,
        launches={class_name: name},
        needs=_needs(one, body),
    )


def _summary(node: Apply, one: Spaced) -> str:
    if one.heads:
        return f"{node.kind.kind}: {one.heads} states of {one.state} x {one.channels // one.heads}, written and read alike."
    return f"{node.kind.kind}: {one.channels} channels with a state of {one.state} numbers each."


def _modules(one: Spaced, weights: tuple[Weight, ...]) -> list[str]:
    """Linear maps, the convolution, the norm, and tensors by themselves, in the order of the weights."""
    lines = []
    for weight in weights:
        name, _, last = weight.name.partition(".")
        if name == "conv":
            if last == "weight":
                lines.append(f"self.conv = ShortConv({one.conv_width}, {one.conv}, bias=True)")
        elif name == "output_norm":
            lines.append(f"self.output_norm = RMSNorm({one.channels}, {one.norm!r})")
        elif last:
            lines.append(f"self.{name} = nn.Linear({weight.shape[1]}, {weight.shape[0]}, bias=False)")
        elif name == "scale":
            lines.append(f"self.scale = nn.Parameter(torch.full(({weight.shape[0]},), {weight.start!r}))")
        else:
            lines.append(f"self.{name} = nn.Parameter(torch.zeros({', '.join(map(str, weight.shape))}))")
    return lines


def _launch(one: Spaced, name: str) -> str:
    more = "" if one.causal else ", causal=False"
    formula = f"formula=reference.{one.formula.__name__}"
    if isinstance(one.family, Channels):
        return f'self.scan = ChannelStates("{name}", {formula}{more})'
    return f'self.scan = MatrixStates("{name}", {one.heads}, scale=1.0, {formula}{more})'


def _body(one: Spaced) -> list[str]:
    """From x to y [T, C]."""
    return {"fixed": _fixed, "ranked": _ranked, "heads": _heads}[one.steps](one)


def _convolved(one: Spaced, text: str) -> str:
    return text if one.conv is None else f'convolve(self.conv, {text}, call, self.slot, "conv")'


def _fixed(_one: Spaced) -> list[str]:
    return [
        "u = wide(self.in_proj(x))  # [T, C]",
        "rates, weights = zero_order_hold(self.dt_log, self.A_log, self.A_imag, self.C)  # [C, N / 2], complex",
        "y = self.scan(Channels(u, rates, weights=weights), call.batch, call.slot(self.slot))  # [T, C]",
        "y = F.gelu(y + self.D * u)",
    ]


def _ranked(one: Spaced) -> list[str]:
    return [
        f"u = {_convolved(one, 'self.in_proj(x)')}  # [T, C]",
        "step = time_step(self.dt_up(self.dt_down(u)), self.dt_bias)  # [T, C], in fp32",
        "rates, write, read = -torch.exp(wide(self.A_log)), self.B_proj(u), self.C_proj(u)  # [C, N], [T, N], [T, N]",
        "u = wide(u)",
        "y = self.scan(Channels(step * u, rates, step, write, read), call.batch, call.slot(self.slot))  # [T, C]",
        "y = y + self.D * u",
    ]


def _heads(one: Spaced) -> list[str]:
    widths = f"({one.channels}, {one.state}, {one.state})"
    if one.conv is None:
        first = ["u, write, read = self.in_proj(x), self.B_proj(x), self.C_proj(x)  # [T, C], [T, N], [T, N]"]
    else:
        first = [
            "u = torch.cat((self.in_proj(x), self.B_proj(x), self.C_proj(x)), dim=-1)  # [T, C + 2 N]",
            f"u, write, read = {_convolved(one, 'u')}.split({widths}, dim=-1)",
        ]
    return [
        *first,
        "step = time_step(self.dt_proj(x), self.dt_bias)  # [T, H], in fp32",
        f"u = u.unflatten(-1, ({one.heads}, {one.channels // one.heads}))  # [T, H, E]",
        "v = (step.unsqueeze(-1) * u).to(u.dtype)",
        "decay = -torch.exp(wide(self.A_log)) * step  # logarithms, [T, H]",
        "y = self.scan(read.unsqueeze(1), write.unsqueeze(1), v, call.batch, call.slot(self.slot), decay=decay)  # [T, H, E]",
        "y = (wide(y) + self.D.unsqueeze(-1) * wide(u)).flatten(-2)  # [T, C]",
    ]


def _output(one: Spaced, node: Apply) -> list[str]:
    """Gate, norm and the output's map."""
    lines = []
    if one.gate is not None:
        lines.append(f"y = y * {projecting.gate(node.attributes, node.chained)}")
    if one.norm is not None:
        lines.append("y = self.output_norm(y)")
    return [*lines, f"return {projecting.scaled('self.out_proj(y.to(x.dtype))', node.attributes)}"]


def _needs(one: Spaced, body: tuple[str, ...]) -> dict[str, set[str]]:
    needs: dict[str, set[str]] = {"cache": {"LayerPlan", "State"}, "gates": {"wide"}}
    if one.steps != "fixed":
        needs["gates"].add("time_step")
    if isinstance(one.family, Channels):
        needs["channels"] = {"ChannelStates", "Channels"} | ({"zero_order_hold"} if one.steps == "fixed" else set())
    else:
        needs["scan"] = {"MatrixStates"}
    layers = ({"ShortConv"} if one.conv is not None else set()) | ({"RMSNorm"} if one.norm is not None else set())
    text = "\n".join(body)
    more = [{"layers": layers}] if layers else []
    return merged([needs, *more, *([{"stateful": {"convolve"}}] if "convolve(" in text else [])])
