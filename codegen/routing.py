"""The class of a route per token: projections, router, the alternatives' masks, and the weights that join them."""

from __future__ import annotations

from attnc.codegen import projecting
from attnc.codegen.attending import WORDS, modules, project_lines
from attnc.codegen.eager.emit import Masks
from attnc.codegen.launching import rope_text, scale
from attnc.codegen.parts import Names, Part, merged
from attnc.compiler.graph import Graph, Project, RouteTokens
from attnc.compiler.parameters import place
from attnc.compiler.spec import Model
from attnc.compiler.streams import of_softmax


def routed(graph: Graph, layer: int, scope: str, names: Names, model: Model, visible: Masks) -> Part:
    """The class of a route per token: projections, router, the alternatives' masks, and the weights that join them."""
    project = next(node for _, node in graph.nodes(layer) if isinstance(node, Project) and node.scope == scope)
    node = next(one for _, one in graph.nodes(layer) if isinstance(one, RouteTokens) and one.scope == scope)
    a, count = project.attributes, len(node.names)
    groups = [f"HeadGroup(0, {a.kv_heads - 1}, visible=reference.{visible[keys, a.causal]})" for keys in node.alternatives]
    cap = "" if model.score_cap is None else f", cap={model.score_cap!r}"
    more = (
        f"self.router = nn.Linear({model.dim}, {count}, bias=False)  # to {', '.join(node.names)}",
        f"self.join = nn.Linear({model.dim}, {a.heads} * {count}, bias=False)",
        f"self.route = TokenRoute(({', '.join(groups)},), scale={scale(a, model)!r}{cap})",
    )
    rope = [f"self.rope = {rope_text(a)}"] if rope_text(a) else []
    turn = ["turn = call.angles(self.rope)", "q, k = rotate_by(q, *turn), rotate_by(k, *turn)"] if rope else []
    body = (
        *project_lines(project, handed=False),
        *turn,
        f'chosen = routes(self.router(x), "{node.router.estimator}", self.training)  # [T, {count}], one-hot',
        f"weights = self.join(x).unflatten(-1, ({a.heads}, {count})).softmax(dim=-1)  # [T, H, {count}]",
        "o = self.route(q, k, v, chosen, weights, call.batch, call.slot(self.slot))  # [T, H, E]",
        *projecting.output(a, project.chained),
    )
    width = a.value_dim + count
    needs = {"route": {"TokenRoute", "routes"}, "intervals": {"HeadGroup"}, "cache": {"LayerPlan", "Slots", "Growing"}}
    if turn:
        needs["rotary"] = {"Rope", "rotate_by", *(name for name in WORDS["rotary"] if f"{name}(" in rope[0])}
    needs = merged([needs, projecting.needs(of_softmax(a, own_qk=project.qk_layer is None), a)])
    return Part(
        name=names.new([], "RoutedAttention"),
        place=place(project).split(".")[0],
        template="attention.py.j2",
        summary=projecting.summary(a),
        origins=(str(node.origin),),
        modules=(*modules(project, model), *rope, *more),
        body=body,
        plans=(f"LayerPlan((Slots(0, {a.kv_heads - 1}, Growing()),), key_width={a.head_dim}, value_width={width})",),
        slots=1,
        needs=needs,
        chained=project.chained and a.output_gate is not None,
    )
