"""The class of a union in which something stands for keys that it does not show: x -> q, k, v -> one launch -> o."""

from __future__ import annotations

from attnc.codegen import attending, launching, projecting
from attnc.codegen.eager.emit import Masks
from attnc.codegen.parts import Names, Part, merged
from attnc.codegen.plain import given, made
from attnc.codegen.scanning import LONGEST
from attnc.compiler.attributes import LogPosition
from attnc.compiler.graph import Condense, Graph, Project
from attnc.compiler.kept import of_union
from attnc.compiler.mixers import MIXERS
from attnc.compiler.overlay import block_size
from attnc.compiler.parameters import place
from attnc.compiler.plain import Plain
from attnc.compiler.spec import Model
from attnc.compiler.streams import of_softmax


def condensed(graph: Graph, layer: int, scope: str, names: Names, model: Model, visible: Masks) -> Part:
    """The class of a scope's Project node with the Condense node that reads it."""
    nodes = [(name, node) for name, node in graph.nodes(layer) if node.scope == scope]
    project = next(node for _, node in nodes if isinstance(node, Project))
    name, node = next((name, node) for name, node in nodes if isinstance(node, Condense))
    a = node.attributes
    declared = MIXERS[node.kind.kind]
    assert declared.condensed is not None, "asked only of kinds that stand for others"
    one = declared.condensed(node.kind, a, model)
    class_name = names.new([*(key.kind for key in node.group.keys), node.kind.kind], "Attention")
    weights = declared.weights(node.kind, a, model)
    group = launching.group_text(node.group, visible, a.causal)
    modules = (
        *attending.modules(project, model),
        *attending.ema_module(a, model, class_name),
        *made(weights),
        _launch(one, node, class_name, group, model),
    )
    plan = _plan(node, project, model)
    body = (
        *attending.project_lines(project, handed=False),
        *_body(node, given(one, weights)),
        *projecting.output(a, project.chained),
    )
    needs: dict[str, set[str]] = {one.file: {one.name}, "intervals": {"HeadGroup"}, "cache": {"LayerPlan", "Slots"}}
    text = group + plan + "\n".join((*modules, *body))
    for file, words in {**attending.WORDS, "layers": ("log_position",)}.items():
        needs.setdefault(file, set()).update(word for word in words if f"{word}(" in text or f"{word}," in text)
    if "State(" in plan:
        needs["cache"].add("State")
    return Part(
        name=class_name,
        place=place(project).split(".")[0],
        template="attention.py.j2",
        summary=projecting.summary(a),
        origins=(str(node.group.origin),),
        modules=modules,
        body=body,
        plans=(plan,),
        slots=1,
        launches={class_name: name} | attending.ema_launch(graph, layer, scope, class_name),
        needs={
            file: found for file, found in merged([needs, projecting.needs(of_softmax(a, own_qk=True), a)]).items() if found
        },
        chained=project.chained and a.output_gate is not None,
    )


def _launch(one: Plain, node: Condense, name: str, group: str, model: Model) -> str:
    """The line that makes the launch."""
    a = node.attributes
    sizes = (size for key in (*node.group.keys, node.kind) if (size := block_size(key)))
    every = next(sizes) if a.positions == "chunk" else 0
    options = {
        "scale": repr(launching.scale(a, model)),
        "cap": repr(model.score_cap),
        "rope": launching.rope_text(a) or "None",
        "every": repr(every),
        **{key: f'"{value}"' if isinstance(value, str) else repr(value) for key, value in one.options.items()},
        "formula": f"reference.{one.formulas[-1].__name__}",
    }
    rows = [f'"{name}"', group, *(f"{key}={value}" for key, value in options.items())]
    line = f"self.scan = {one.name}({', '.join(rows)})"
    if len(line) <= LONGEST:
        return line
    return f"self.scan = {one.name}(" + "".join(f"\n            {row}," for row in rows) + "\n        )"


def _body(node: Condense, more: list[str]) -> list[str]:
    """From q, k, v to o [T, H, E]."""
    a, lines = node.attributes, []
    if isinstance(a.temperature, LogPosition):
        numbers = f"{float(a.temperature.floor_scale)!r}, {float(a.temperature.attn_scale)!r}"
        lines.append(f"q = log_position(q, call.batch.positions, {numbers})")
    sink = ["sink_logit=self.sink_logit"] if a.sink_logit is not None else []
    return [*lines, f"o = self.scan({', '.join(['q', 'k', 'v', 'call', 'self.slot', *more, *sink])})  # [T, H, E]"]


def _plan(node: Condense, project: Project, model: Model) -> str:
    """The runtime's LayerPlan: keys shown one by one, states, and something of each run of keys."""
    a, declared, last = node.attributes, MIXERS[node.kind.kind], node.attributes.kv_heads - 1
    kept = of_union((*node.group.keys, node.kind))
    keep = "Growing()" if kept.recent is None else f"Ring({kept.pinned}, {kept.recent})"
    texts = [f"(Slots(0, {last}, {keep}),)", f"key_width={a.head_dim}, value_width={a.value_dim}"]
    states = launching.conv_states(project) if a.short_conv is not None else []
    states += launching.ema_states(project, model)
    found = declared.state(node.kind, a, model)
    states += [f'State("{name}", {shape!r}, torch.float32)' for name, shape in found.items()]
    texts += [f"states=({', '.join(states)},)"] if states else []
    grown = declared.growing(node.kind, a, model)
    pooled = [f'Pooled("{one.name}", 0, {last}, {one.shape[-1]}, {one.span}, {one.step})' for one in grown]
    texts += [f"pooled=({', '.join(pooled)},)"] if pooled else []
    text = f"LayerPlan({', '.join(texts)})"
    if len(text) <= LONGEST:
        return text
    return "LayerPlan(" + "".join(f"\n                {one}," for one in texts) + "\n            )"
