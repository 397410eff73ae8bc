"""The class of a context: segments that read what a memory returned for them, and that the memory learns from."""

from __future__ import annotations

from attnc.codegen import attending, projecting
from attnc.codegen.eager.emit import Masks
from attnc.codegen.launching import launch, rope_text
from attnc.codegen.parts import Names, Part, merged
from attnc.compiler.attributes import LogPosition
from attnc.compiler.cache_rows import context_states
from attnc.compiler.graph import Graph, Mix, Project
from attnc.compiler.spec import Context, Model
from attnc.compiler.streams import of_softmax


def context(
    graph: Graph, layer: int, scope: str, mixer: Context, memory: Part, names: Names, model: Model, visible: Masks
) -> Part:
    """`memory`: the class of what it reads and teaches, written before."""
    nodes = [(name, node) for name, node in graph.nodes(layer) if node.scope == scope]
    project = next(node for _, node in nodes if isinstance(node, Project))
    ((name, mix),) = [(name, node) for name, node in nodes if isinstance(node, Mix)]
    a = project.attributes
    class_name = names.new([mixer.node], "Attention")
    rope = rope_text(a)
    norms = f'("attention", "{mixer.name}")'
    modules = (
        *attending.modules(project, model),
        *([f"self.rope = {rope}"] if rope is not None else []),
        *attending.learned([mix], model),
        f"self.segments = Segments({mixer.segment})",
        f"self.{mixer.name} = {memory.name}(slot + 1)",
        f"self.gate = ProductGate({model.dim}, {model.norm.epsilon!r}, {norms})",
    )
    one = launch(mix, class_name, model, visible)
    needs = attending.needs(project, a, [mix], (one,), ("",), [])
    needs["cache"] = {"LayerPlan", "State"}
    return Part(
        name=class_name,
        place="mixer",
        template="attention.py.j2",
        summary=f"Segments of {mixer.segment} tokens; {projecting.summary(a)}",
        origins=(str(mixer.origin),),
        modules=modules,
        body=tuple(_body(mixer, project)),
        plans=(_plan(mixer, model),),
        slots=1 + memory.slots,
        mixes=(one,),
        launches={class_name: name},
        needs=merged([needs, {"context": {"Segments", "joined"}, "layers": {"ProductGate"}}]),
    )


def _body(mixer: Context, project: Project) -> list[str]:
    """The lines of forward."""
    a, name = project.attributes, mixer.name
    lines = [
        f"h = self.{name}.retrieve(x, piece.call)  # [T', W], at the weights that the segment began with",
        "both = torch.cat((h, x))",
    ]
    found = projecting.project(of_softmax(a, own_qk=True), a)
    lines += [line.replace("_proj(x)", "_proj(both)") if line[0] in "kv" and "_proj" in line else line for line in found]
    if rope_text(a) is not None:
        lines.append("turn = piece.call.angles(self.rope)  # cosines and sines, [T', rotated / 2]")
        lines.append("q, k = rotate_by(q, *turn), rotate_by(k, *piece.turned(turn))")
    if isinstance(a.temperature, LogPosition):
        numbers = f"{float(a.temperature.floor_scale)!r}, {float(a.temperature.attn_scale)!r}"
        lines.append(f"q = log_position(q, piece.call.batch.positions, {numbers})")
    more = ["learned"] if mixer.persistent else []
    more += ["sink_logit=self.sink_logit"] if a.sink_logit is not None else []
    lines.append(f"o = piece.attend({', '.join(['self.mixes[0]', 'q', 'k', 'v', *more])})  # [T', H, E]")
    output = projecting.output(a)
    lines += [*output[:-1], output[-1].replace("return ", "y = ") + "  # [T', W]"]
    lines.append(f"y = self.gate(y, self.{name}(y, piece.call))  # the memory learns from y, and weighs it")
    plans = f"zip((self.slot, self.slot + 1), (*self.plans(), *self.{name}.plans()), strict=True)"
    read = "self.persistent_key, self.persistent_value, call.batch.sequences"
    return [
        "outputs = []",
        *([f"learned = persistent_keys({read})"] if mixer.persistent else []),
        f"plans = {plans}",
        f"for x, piece in self.segments(x, call, plans, self.{name}):  # a part of a segment of every sequence",
        *(f"    {line}" for line in lines),
        "    outputs.append((y, piece.spots))",
        "return joined(outputs, x)",
    ]


def _plan(mixer: Context, model: Model) -> str:
    exact, own = context_states(mixer, model)
    texts = [f'State("{name}", {shape!r})' for name, shape in own.items()]
    texts += [f'State("{name}", {shape!r}, torch.float32)' for name, shape in exact.items()]
    rows = "".join(f"\n                    {one}," for one in texts)
    return f"LayerPlan(\n                states=({rows}\n                )\n            )"
