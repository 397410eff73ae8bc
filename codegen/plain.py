"""The class of a kind that plain PyTorch runs: x -> what the launch is given -> the launch -> gate, output, scale."""

from __future__ import annotations

from collections.abc import Iterable

from attnc.codegen import projecting
from attnc.codegen.parts import Names, Part, merged
from attnc.codegen.scanning import LONGEST, plan_of_states
from attnc.compiler.graph import Apply, Graph
from attnc.compiler.mixer import Mixer, Weight
from attnc.compiler.mixers import MIXERS
from attnc.compiler.plain import Plain
from attnc.compiler.spec import Model


def plain(graph: Graph, layer: int, scope: str, names: Names, model: Model) -> Part:
    """The class of an Apply node whose kind says how plain PyTorch runs it."""
    found = ((name, node) for name, node in graph.nodes(layer) if isinstance(node, Apply) and node.scope == scope)
    name, node = next(found)
    declared = MIXERS[node.kind.kind]
    assert declared.plain is not None, "asked only of kinds that plain PyTorch runs"
    one = declared.plain(node.kind, node.attributes, model)
    class_name = names.new([node.kind.kind], "Mixer")
    weights = declared.weights(node.kind, node.attributes, model)
    gate = node.attributes.output_gate is not None
    modules = (
        *made(weights, one.tensors),
        *([f"self.output_gate = nn.Linear({model.dim}, {one.width}, bias=False)"] if gate else []),
        *projecting.out_scale(node.attributes, model),
        launch(one, class_name),
    )
    body = (
        *projecting.begin(node.attributes, node.chained),
        f"y = self.scan({', '.join(['x', 'call', 'self.slot', *given(one, weights)])})  # [T, {one.width}]",
        *([f"y = y * {projecting.gate(node.attributes, node.chained)}"] if gate else []),
        f"return {projecting.scaled(f'self.{one.out}(y)' if one.out else 'y', node.attributes)}",
    )
    plan = plan_of(one, declared, node, model)
    return Part(
        name=class_name,
        place="mixer",
        template="attention.py.j2",
        summary=f"{node.kind.kind}: {one.how}." if one.how else f"{node.kind.kind}, by plain PyTorch.",
        origins=(str(node.origin),),
        modules=modules,
        body=body,
        plans=(plan,),
        slots=1,
        launches={class_name: name},
        needs=merged(
            [
                {one.file: {one.name}, "cache": {"LayerPlan", *_words(plan)}},
                *([{"stateful": {"Weight"}}] if one.tensors else []),
            ]
        ),
        chained=node.chained and gate,
    )


def made(weights: Iterable[Weight], tensors: tuple[str, ...] = ()) -> list[str]:
    """The lines that make a kind's own tensors: linear maps of x, and tensors by themselves, `tensors` below names."""
    known = {weight.name for weight in weights}
    lines = []
    for weight in weights:
        name, _, last = weight.name.partition(".")
        if weight.name in tensors:
            lines.append(f"self.{name} = Weight({weight.shape!r})")
        elif last == "weight":
            lines.append(f"self.{name} = nn.Linear({weight.shape[1]}, {weight.shape[0]}, bias={f'{name}.bias' in known})")
        elif not last:
            still = "" if weight.learned else ", requires_grad=False"
            lines.append(f"self.{name} = nn.Parameter(torch.zeros({', '.join(map(str, weight.shape))}){still})")
    return lines


def given(one: Plain, weights: Iterable[Weight]) -> list[str]:
    """What the launch is given behind x: outputs of linear maps, and tensors as they are."""
    found = []
    for weight in weights:
        name, _, last = weight.name.partition(".")
        if weight.name in one.tensors:
            found.append(f"self.{weight.name}")
        elif name != one.out and last != "bias":
            found.append(f"self.{name}(x)" if last else f"self.{name}")
    return found


def launch(one: Plain, name: str) -> str:
    """The line that makes the launch."""
    options = [f'{key}="{given}"' if isinstance(given, str) else f"{key}={given!r}" for key, given in one.options.items()]
    text = ", ".join([f'"{name}"', *options, f"formula=reference.{one.formulas[-1].__name__}"])
    line = f"self.scan = {one.name}({text})"
    return line if len(line) <= LONGEST else f"self.scan = {one.name}(\n            {text}\n        )"


def plan_of(one: Plain, declared: Mixer, node: Apply, model: Model) -> str:
    """The runtime's LayerPlan: what is kept of every token, or states and last inputs."""
    if one.stored is None:
        return plan_of_states(node, declared, model)
    own = one.stored
    exact = ", value_dtype=torch.float32" if own.exact else ""
    return (
        f"LayerPlan((Slots(0, {own.heads - 1}, Growing()),), key_width={own.key_width}, value_width={own.value_width}{exact})"
    )


def _words(plan: str) -> set[str]:
    return {word for word in ("Slots", "Growing", "State") if f"{word}(" in plan}
