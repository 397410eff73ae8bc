"""The class of a kind that is a mixer by itself and runs its formula as it is written."""

from __future__ import annotations

from attnc.codegen.parts import Names, Part
from attnc.compiler.graph import Apply, Graph
from attnc.compiler.mixers import MIXERS
from attnc.compiler.spec import Model


def apply(graph: Graph, layer: int, scope: str, names: Names, model: Model) -> Part:
    """The class of a kind that is a mixer by itself: its weights, and a call of its reference."""
    node = next(node for _, node in graph.nodes(layer) if isinstance(node, Apply) and node.scope == scope)
    declared = MIXERS[node.kind.kind]
    assert declared.reference is not None, f"{node.kind.kind} is built, so it has a reference"
    weights = declared.weights(node.kind, node.attributes, model)
    states = declared.state(node.kind, node.attributes, model)
    arguments = ", ".join(f"self.{weight.name.removesuffix('.weight').replace('.', '_')}" for weight in weights)
    modules = [f"self.{w.name.removesuffix('.weight').replace('.', '_')} = Weight({w.shape!r})" for w in weights]
    state_texts = ", ".join(f'State("{name}", {shape!r})' for name, shape in states.items())
    return Part(
        name=names.new([node.kind.kind], "Mixer"),
        place="mixer",
        template="attention.py.j2",
        summary=f"{node.kind.kind}: a mixer with projections of its own.",
        origins=(str(node.origin),),
        modules=tuple(modules),
        body=(
            f"return run_stateful(reference.{declared.reference.__name__}, x, call, self.slot, {tuple(states)!r}, {arguments})",
        ),
        plans=(f"LayerPlan(states=({state_texts},))",),
        slots=1,
        needs={"stateful": {"Weight", "run_stateful"}, "cache": {"State"}},
    )
