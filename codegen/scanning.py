"""The class of a kind that lowers to matrix states: x -> q, k, v and gates -> one launch -> o."""

from __future__ import annotations

from attnc.codegen import projecting
from attnc.codegen.launching import rope_text
from attnc.codegen.parts import Names, Part, merged
from attnc.compiler.graph import Apply, Graph
from attnc.compiler.mixer import Mixer, Weight
from attnc.compiler.mixers import MIXERS
from attnc.compiler.mixers.features import Taylor
from attnc.compiler.scanned import Scanned
from attnc.compiler.spec import Model

AXES = {"q": "heads, D", "k": "heads, D", "v": "heads, E"}
"""Axes of q, k and v behind that of the tokens; there are H states, and each may have fewer heads."""

LONGEST = 116
"""Characters of a line of forward."""


def scanned(graph: Graph, layer: int, scope: str, names: Names, model: Model) -> Part:
    """The class of an Apply node whose kind says how it is scanned."""
    found = ((name, node) for name, node in graph.nodes(layer) if isinstance(node, Apply) and node.scope == scope)
    return _part(*next(found), names, model)


def of_heads(graph: Graph, layer: int, scope: str, names: Names, model: Model) -> dict[str, Part]:
    """The classes of the kinds that keep states for some heads of a block, by name: each takes q, k and v of its heads from the
    block's projections, and returns what the block's o reads.
    """
    found = ((name, node) for name, node in graph.nodes(layer) if isinstance(node, Apply) and node.scope == scope and node.runs)
    return {node.name: _part(name, node, names, model) for name, node in found}


def _part(name: str, node: Apply, names: Names, model: Model) -> Part:
    declared, a, shares = MIXERS[node.kind.kind], node.attributes, bool(node.runs)
    assert declared.scanned is not None, "asked only of kinds that lower to states"
    one = declared.scanned(node.kind, a, model)
    class_name = names.new([node.kind.kind], "Heads" if shares else "Mixer")
    widths = ", ".join(f"{count} * {width}" for count, width in one.streams.values())
    modules = [
        *(
            [f"self.takes = ({widths},)  # widths of {', '.join(one.streams)}"]
            if shares
            else projecting.maps(one.streams, a, model)
        ),
        *projecting.between(one.streams, a, model),
        *(_made(weight, model) for weight in declared.weights(node.kind, a, model)),
        *projecting.after(a, model),
        *([] if shares else projecting.out_scale(a, model)),
        *([f"self.rope = {rope_text(a)}"] if _turns(node, one) else []),
        _launch(one, class_name),
    ]
    output = [*projecting.gated(a), "return o"] if shares else projecting.output(a, node.chained)
    return Part(
        name=class_name,
        place="mixer",
        template="attention.py.j2",
        summary=_summary(node, one),
        origins=(str(node.origin),),
        modules=tuple(modules),
        body=(*_body(node, one), *output),
        plans=(plan_of_states(node, declared, model),),
        slots=1,
        given="".join(f"{key}: Tensor, " for key in one.streams) if shares else "",
        chained=node.chained and a.output_gate is not None,
        launches={class_name: name},
        needs=_needs(node, one, modules),
    )


def _summary(node: Apply, one: Scanned) -> str:
    """`32 states of 128 x 128; 16 heads of q and k, 32 of v.`"""
    counts: dict[int, list[str]] = {}
    for name, (count, _) in one.streams.items():
        counts.setdefault(count, []).append(name)
    listed = {count: " and ".join(filter(None, (", ".join(found[:-1]), found[-1]))) for count, found in counts.items()}
    heads = ", ".join(f"{count} head{'s' * (count > 1)} of {found}" for count, found in listed.items())
    rows = f"{one.family.key_width} x " if one.channels is None else ""
    states = f"{one.heads} state{'s' * (one.heads > 1)} of {rows}{one.family.value_width}"
    return f"{node.kind.kind}: {states}; {heads}."


def _made(weight: Weight, model: Model) -> str:
    """The line that makes a kind's own tensor: a linear map of x, or a tensor by itself."""
    name = weight.name.removesuffix(".weight")
    if weight.name == "lower_bound.weight":
        return f"self.lower_bound = LowerBound({weight.shape[0]})"
    if name != weight.name:
        assert weight.shape[1:] == (model.dim,), weight
        return f"self.{name} = nn.Linear({model.dim}, {weight.shape[0]}, bias=False)"
    still = "" if weight.learned else ", requires_grad=False"
    return f"self.{name} = nn.Parameter(torch.zeros({', '.join(map(str, weight.shape))}){still})"


def _launch(one: Scanned, name: str) -> str:
    if one.channels is not None:
        return f'self.scan = ChannelStates("{name}", formula=reference.{one.formula.__name__})'
    texts = [f'"{name}"', str(one.heads), f"scale={one.scale!r}", f"formula=reference.{one.formula.__name__}"]
    if one.family.normalize:
        texts.append("normalize=True")
    if one.decay in ("slopes", "retention"):
        texts.append(f"decay={one.decay}({one.heads})")
    if not one.causal:
        texts.append("causal=False")
    return f"self.scan = MatrixStates({', '.join(texts)})"


def _turns(node: Apply, one: Scanned) -> bool:
    return rope_text(node.attributes) is not None and {"q", "k"} <= set(one.streams)


def _body(node: Apply, one: Scanned) -> list[str]:
    """From x to o [T, H, E]."""
    given = {key: key for key in one.streams} if node.runs else None
    lines = projecting.begin(node.attributes, node.chained)
    lines += projecting.project(one.streams, node.attributes, AXES, given)
    if _turns(node, one):
        lines.append("turn = call.angles(self.rope)  # cosines and sines, [T, rotated / 2]")
        lines.append("q, k = rotate_by(q, *turn), rotate_by(k, *turn)")
    lines += _features(one)
    decays = _decay(one)
    lines += decays
    if one.key == "decay":
        lines.append("k = one_minus(decay).to(q.dtype)  # [T, H, K]")
        if one.family.decay == "scalar":
            lines[-1] = f"k = one_minus(decay).to(q.dtype).unsqueeze(-1).expand(-1, -1, {one.family.key_width})  # [T, H, K]"
    lines += _strengths(one)
    if one.channels is not None:
        return [*lines, *_of_vectors(one)]
    gates = ", decay=decay" * bool(decays) + ", erase=erase, write=write" * one.erases
    return [*lines, f"o = self.scan(q, k, v, call.batch, call.slot(self.slot){gates})  # [T, H, E]"]


def _of_vectors(one: Scanned) -> list[str]:
    """States that are as wide as values: v, repeated for neighbouring states, and its gates, channel by channel."""
    repeat = one.heads // one.streams["v"][0]
    shown = "v" if repeat == 1 else f"v.repeat_interleave({repeat}, dim=1)"
    return [
        f"y = self.scan(gated({shown}, decay), call.batch, call.slot(self.slot))  # [T, H E]",
        f"o = y.unflatten(-1, ({one.heads}, {one.family.value_width})).to(v.dtype)  # [T, H, E]",
    ]


def _features(one: Scanned) -> list[str]:
    """The feature map of q and of a projected k, after both share the factor of their products."""
    if not one.word:
        return []
    names = [name for name in one.streams if name != "v"]
    lines = []
    if one.inner_scale != 1:
        half = one.inner_scale**0.5
        lines.append(f"{', '.join(names)} = {', '.join(f'{half!r} * {name}' for name in names)}")
    more = {"taylor": f", {one.feature.n}" if isinstance(one.feature, Taylor) else "", "favor": ", self.favor"}
    texts = [
        f"features.{one.word}({name}{f', self.{name}_feature' if one.word == 'hedgehog' else more.get(one.word, '')})"
        for name in names
    ]
    return [*lines, f"{', '.join(names)} = {', '.join(texts)}  # [T, heads, {one.family.key_width}]"]


def _decay(one: Scanned) -> list[str]:
    """Logarithms of the gates of the token, in fp32."""
    axes = "[T, H]" if one.family.decay == "scalar" else "[T, H, K]"
    match one.decay:
        case "softplus":
            return [f"decay = softplus_decay(self.decay_proj(x), self.A_log, self.dt_bias)  # logarithms, {axes}"]
        case "sigmoid":
            low = "" if one.lower == 0 else ", self.lower_bound()" if one.lower == "learned" else f", {one.lower!r}"
            text = f"sigmoid_decay(self.decay_proj(x){low})"
            apart = "" if one.family.decay == "scalar" else f".unflatten(-1, ({one.heads}, {one.family.key_width}))"
            return [f"decay = {text}{apart}  # logarithms, {axes}"]
        case _:
            return []


def _strengths(one: Scanned) -> list[str]:
    """How strongly the delta rule erases and writes."""
    if not one.erases:
        return []
    beta = "" if one.beta == 1 else f", {one.beta}"

    def text(name: str, form: str, width: int) -> str:
        apart = "" if form == "scalar" else f".unflatten(-1, ({one.heads}, {width}))"
        return f"strength(self.{name}_proj(x){beta}){apart}"

    if one.one_strength:
        return [f"erase = write = {text('erase', 'scalar', 0)}  # [T, H]"]
    sides = (("erase", one.family.erase, one.family.key_width, "K"), ("write", one.family.write, one.family.value_width, "E"))
    return [
        f"{name} = {text(name, form, width)}  # [T, H{'' if form == 'scalar' else f', {axis}'}]"
        for name, form, width, axis in sides
    ]


def plan_of_states(node: Apply, declared: Mixer, model: Model) -> str:
    """The runtime's LayerPlan: states in fp32, and the last inputs of convolutions in the model's dtype."""
    exact = ", torch.float32" if declared.float32_state else ""
    texts = [f'State("{name}", {shape!r}{exact})' for name, shape in declared.state(node.kind, node.attributes, model).items()]
    recent = declared.recent(node.kind, node.attributes, model)
    texts += [f'State("{name}", {shape!r})' for name, shape in recent.items()]
    text = f"LayerPlan(states=({', '.join(texts)},))"
    if len(text) <= LONGEST:
        return text
    rows = "".join(f"\n                    {one}," for one in texts)
    return f"LayerPlan(\n                states=({rows}\n                )\n            )"


def _needs(node: Apply, one: Scanned, modules: list[str]) -> dict[str, set[str]]:
    text = "\n".join((*modules, *_body(node, one)))
    words = ("softplus_decay", "sigmoid_decay", "one_minus", "strength", "slopes", "retention", "LowerBound")
    gates = {word for word in words if f"{word}(" in text}
    launch = {"scan": {"MatrixStates"}} if one.channels is None else {"channels": {"ChannelStates", "gated"}}
    needs: dict[str, set[str]] = launch | {"cache": {"LayerPlan", "State"}, "gates": gates}
    if one.word:
        needs["."] = {"features"}
    if _turns(node, one):
        needs["rotary"] = {"rotate_by", *(word for word in ("Rope", "LinearScale", "Yarn", "Llama3") if f"{word}(" in text)}
    found = merged([needs, projecting.needs(one.streams, node.attributes)])
    return {file: names for file, names in found.items() if names}
