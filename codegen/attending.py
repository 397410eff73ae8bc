"""The class of one set of projections with its launches over keys: x -> q, k, v -> softmaxes -> o."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from attnc.codegen import latent, projecting, selecting, sharing
from attnc.codegen.eager.emit import Masks
from attnc.codegen.launching import launch, plan_text, rope_text
from attnc.codegen.parts import Launch, Names, Part, merged
from attnc.compiler.attributes import Attributes, LogPosition
from attnc.compiler.graph import Apply, Graph, Mix, Project, Smooth
from attnc.compiler.kept import chunk_size
from attnc.compiler.mixer import Scores
from attnc.compiler.mixers import MIXERS
from attnc.compiler.parameters import of_mix, place
from attnc.compiler.spec import Model
from attnc.compiler.streams import of_softmax


def hands_on(graph: Graph, layer: int) -> bool:
    """Whether a later layer takes over this layer's q and k."""
    return _carries(graph, layer, "qk")


def lends(graph: Graph, layer: int) -> bool:
    """Whether a later layer takes over this layer's choice of keys."""
    return _carries(graph, layer, "choice")


def _carries(graph: Graph, layer: int, what: str) -> bool:
    return any(
        data["carries"] == what for name, _ in graph.nodes(layer) for _, _, data in graph.network.out_edges(name, data=True)
    )


def source_layer(graph: Graph, layer: int) -> int | None:
    """The earlier layer whose q and k this one takes over."""
    found = (node.qk_layer for _, node in graph.nodes(layer) if isinstance(node, Project))
    return next((source for source in found if source is not None), None)


def attention(
    graph: Graph, layer: int, scope: str, names: Names, model: Model, visible: Masks, beside: Mapping[str, Part]
) -> Part:
    """The class of a scope's Project node with all Mix nodes that read it; `beside`: the classes of states of other heads."""
    project = next(node for _, node in graph.nodes(layer) if isinstance(node, Project) and node.scope == scope)
    mixes = [(name, node) for name, node in graph.nodes(layer) if isinstance(node, Mix) and node.scope == scope]
    states = [node for _, node in graph.nodes(layer) if isinstance(node, Apply) and node.scope == scope and node.runs]
    owned = [(mix.first, mix.last) for _, mix in mixes] + [run for node in states for run in node.runs]
    covered = sorted(group for first, last in owned for group in range(first, last + 1))
    assert covered == list(range(project.attributes.kv_heads)), f"the launches of layer {layer} cover each KV group once"
    kinds = [key.kind for _, mix in mixes for variant in mix.variants for group in variant.groups for key in group.keys]
    class_name = names.new(kinds, "Attention")
    many = len(mixes) > 1
    launches = tuple(
        launch(mix, f"{class_name}.{at}" if many else class_name, model, visible) for at, (_, mix) in enumerate(mixes)
    )
    a = project.attributes
    more = _choosing([mix for _, mix in mixes], model, lends(graph, layer) or _summary_asked(graph, layer, scope))
    made = sharing.made() if states else []
    attend = [*made, *project_lines(project, handed=hands_on(graph, layer), given=sharing.GIVEN if states else None)]
    launched, outputs = _launches(mixes, a, more)
    attend += launched
    if a.kv_latent is not None:
        assert not many, "one launch reads a latent for all heads"
        attend, outputs = [*projecting.begin(a, project.chained), *latent.body(a, more)], ["o"]
    if states:
        body = [*attend, *sharing.join(a, [mix for _, mix in mixes], outputs, states, model)]
    else:
        body = [*attend, *_joined(outputs), *projecting.output(a, project.chained)]
    origins = dict.fromkeys(str(group.origin) for _, mix in mixes for variant in mix.variants for group in variant.groups)
    plans = tuple(plan_text(mix, project, at, model) for at, (_, mix) in enumerate(mixes))
    return Part(
        name=class_name,
        place=place(project).split(".")[0],
        template="attention.py.j2",
        summary=projecting.summary(a),
        origins=tuple(origins),
        modules=(
            *modules(project, model),
            *ema_module(a, model, class_name),
            *_ropes(mixes),
            *learned([mix for _, mix in mixes], model),
            *_scorers([mix for _, mix in mixes], model),
            *sharing.modules(beside, len(mixes)),
        ),
        body=tuple(body),
        plans=plans,
        slots=len(mixes) + sum(part.slots for part in beside.values()),
        mixes=launches,
        launches={one.name: name for one, (name, _) in zip(launches, mixes, strict=True)}
        | _choices(graph, launches, mixes)
        | ema_launch(graph, layer, scope, class_name),
        needs=needs(
            project, a, [mix for _, mix in mixes], launches, plans, selecting.scorers([mix for _, mix in mixes], model)
        ),
        source=project.qk_layer is not None,
        chained=project.chained and a.output_gate is not None,
    )


def _choices(graph: Graph, launches: tuple[Launch, ...], mixes: list[tuple[str, Mix]]) -> dict[str, str]:
    """The choices that launches read: `LAUNCH.choice`, and its node."""
    found: dict[str, str] = {}
    for one, (name, _) in zip(launches, mixes, strict=True):
        lists = [source for source in graph.inputs(name) if graph.network.edges[source, name]["carries"] == "lists"]
        found |= {f"{one.name}.choice": source for source in lists}
    return found


def modules(project: Project, model: Model) -> list[str]:
    """Lines of __init__: the projections, and what stands between them and the output."""
    a = project.attributes
    streams = of_softmax(a, own_qk=project.qk_layer is None)
    first = projecting.projections(streams, a, model) if a.kv_latent is None else latent.modules(a, model)
    sink = [] if a.sink_logit is None else [f"self.sink_logit = nn.Parameter(torch.zeros({a.heads}))"]
    return [*first, *projecting.after(a, model), *sink, *projecting.out_scale(a, model)]


def ema_module(a: Attributes, model: Model, name: str) -> list[str]:
    """The line of __init__ that makes the moving average which q and k are made of."""
    if a.input_ema is None:
        return []
    scan = f'ChannelStates("{name}.ema", formula=reference.channel_states)'
    return [f"self.input_ema = InputEma({model.dim}, {a.input_ema}, {scan})"]


def ema_launch(graph: Graph, layer: int, scope: str, name: str) -> dict[str, str]:
    """Its launch, and the node."""
    found = (one for one, node in graph.nodes(layer) if isinstance(node, Smooth) and node.scope == scope)
    return {f"{name}.ema": one for one in found}


def project_lines(project: Project, handed: bool, given: Mapping[str, str] | None = None) -> list[str]:
    """Lines of forward: from x to q [T, H, D], k [T, G, D], v [T, G, E], before positions.

    `handed`: a later layer takes q and k over. `given`: as of `projecting.project`.
    """
    a, own = project.attributes, project.qk_layer is None
    average = ["smooth = self.input_ema(x, call, self.slot)  # [T, W]"] if a.input_ema is not None and own else []
    made = projecting.project(of_softmax(a, own_qk=own), a, given=given)
    lines = [*projecting.begin(a, project.chained), *average, *made]
    if own and a.share_qk:
        lines.append("k = q")
    if not own:
        lines.append('q, k = call.handed["q"], call.handed["k"]  # of the nearest earlier layer with its own')
    elif handed:
        lines.append('call.handed["q"], call.handed["k"] = q, k')
    return lines


def learned(mixes: list[Mix], model: Model) -> list[str]:
    """Learned tensors of the key sets."""
    weights = {weight.name: weight for mix in mixes for weight in of_mix(mix, model)}
    plain = {name: weight for name, weight in weights.items() if "." not in name}  # others are of modules
    return [f"self.{name} = nn.Parameter(torch.zeros{weight.shape!r})" for name, weight in plain.items()]


def _scorers(mixes: list[Mix], model: Model) -> list[str]:
    """The modules that score keys by weights of their own."""
    lines = []
    for one in selecting.scorers(mixes, model):
        a = next(mix.attributes for mix in mixes if one in selecting.scorers([mix], model))  # launches turn keys apart
        if one.reads_input:
            ropes = [rope_text(replace(a, rope_dim=one.rotated)) or ""] if one.rotated else []
        else:
            ropes = [rope_text(a) or "None", (rope_text(a) or "None") if one.rotated else "None"][: 1 if one.rotated < 0 else 2]
        texts = [*map(repr, one.arguments), *ropes]
        lines.append(f"self.{one.module} = {one.made}({', '.join(texts)})")
    return lines


def _choosing(mixes: list[Mix], model: Model, lent: bool) -> str:
    """What launches are called with where content chooses keys, here or in a later layer."""
    found = selecting.scorers(mixes, model)
    more = "".join(f", net=self.{one.module}{'(x, call)' if one.reads_input else ''}" for one in found)
    more += ", lends=call.sources" if lent else ""
    asked = {word for mix in mixes for word in selecting.takes(mix)}
    assert len(asked) < 2, "a launch takes over one thing"
    return more + "".join(f', source=call.sources["{word}"]' for word in asked)


def _summary_asked(graph: Graph, layer: int, scope: str) -> bool:
    """Whether another branch of the layer chooses by the summaries of this one."""
    mixes = [node for _, node in graph.nodes(layer) if isinstance(node, Mix)]
    own = {kind for mix in mixes if mix.scope == scope for kind in selecting.choices(mix)}
    others = [kind for mix in mixes if mix.scope != scope for kind in selecting.choices(mix)]
    return any(getattr(kind, "keys", None) in own for kind in others)


def _launches(mixes: list[tuple[str, Mix]], a: Attributes, more: str) -> tuple[list[str], list[str]]:
    """(positions, then each launch over its heads; the names of their outputs).

    `more`: what they are called with beside.
    """
    lines: list[str] = []
    outputs: list[str] = []
    ratio = a.heads // a.kv_heads
    for at, (_, mix) in enumerate(mixes):
        whole = mix.first == 0 and mix.last == a.kv_heads - 1
        q, k, v = "q", "k", "v"
        if not whole:
            kv = f"{mix.first}:{mix.last + 1}"
            q, k, v = f"q[:, {mix.first * ratio}:{(mix.last + 1) * ratio}]", f"k[:, {kv}]", f"v[:, {kv}]"
        suffix = "" if len(mixes) == 1 else str(at)
        q, k = _positions(lines, mix, q, k, suffix)
        sink = _sink(mix, ratio, whole)
        learned = _persistent(mix, whole)
        outputs.append(f"o{suffix}")
        slot = "self.slot" if at == 0 else f"self.slot + {at}"
        given = f"{q}, {k}, {v}, call.batch, call.slot({slot}){sink}{learned}{more}"
        lines.append(f"o{suffix} = self.mixes[{at}]({given})  # [T, H, E]")
    return lines, outputs


def _joined(outputs: list[str]) -> list[str]:
    """Several launches are joined along the heads."""
    return [f"o = torch.cat(({', '.join(outputs)}), dim=1)  # [T, H, E]"] if len(outputs) > 1 else []


def _turns(mix: Mix) -> bool:
    """Whether q and k are turned before the launch."""
    return rope_text(mix.attributes) is not None and mix.attributes.positions != "consecutive"


def _ropes(mixes: list[tuple[str, Mix]]) -> list[str]:
    """The rotation of each launch, an attribute: what it multiplies positions by is made when a model is loaded."""
    suffixes = [""] if len(mixes) == 1 else [str(at) for at in range(len(mixes))]
    pairs = zip(suffixes, mixes, strict=True)
    return [f"self.rope{suffix} = {rope_text(mix.attributes)}" for suffix, (_, mix) in pairs if _turns(mix)]


def _positions(lines: list[str], mix: Mix, q: str, k: str, suffix: str) -> tuple[str, str]:
    """Adds the lines that turn and sharpen q and k; returns their names."""
    a = mix.attributes
    if _turns(mix):
        every = "" if a.positions == "absolute" else f", every={chunk_size(mix)}"
        lines.append(f"turn{suffix} = call.angles(self.rope{suffix}{every})  # cosines and sines, [T, rotated / 2]")
        lines.append(f"q{suffix}, k{suffix} = rotate_by({q}, *turn{suffix}), rotate_by({k}, *turn{suffix})")
        q, k = f"q{suffix}", f"k{suffix}"
    if isinstance(a.temperature, LogPosition):
        numbers = f"{float(a.temperature.floor_scale)!r}, {float(a.temperature.attn_scale)!r}"
        lines.append(f"q{suffix} = log_position({q}, call.batch.positions, {numbers})")
        q = f"q{suffix}"
    return q, k


def _sink(mix: Mix, ratio: int, whole: bool) -> str:
    if mix.attributes.sink_logit is None:
        return ""
    return ", self.sink_logit" if whole else f", self.sink_logit[{mix.first * ratio}:{(mix.last + 1) * ratio}]"


def _persistent(mix: Mix, whole: bool) -> str:
    """What a launch is given of the learned keys, where it has some: those of its KV groups."""
    if not _learns_keys(mix):
        return ""
    own = "" if whole else f"[:, {mix.first}:{mix.last + 1}]"
    return f", persistent=persistent_keys(self.persistent_key{own}, self.persistent_value{own}, call.batch.sequences)"


def _learns_keys(mix: Mix) -> bool:
    """Whether learned keys stand beside the sequence's: in every head group of a launch or in none."""
    return any(MIXERS[key.kind].own_keys(key) for variant in mix.variants for group in variant.groups for key in group.keys)


def needs(
    project: Project,
    a: Attributes,
    mixes: list[Mix],
    launches: tuple[Launch, ...],
    plans: tuple[str, ...],
    scorers: list[Scores],
) -> dict[str, set[str]]:
    """Runtime file -> what a class with projections and launches over keys needs from there."""
    needs: dict[str, set[str]] = {"mix": {"Mix", "Variant"}, "intervals": {"HeadGroup"}, "cache": {"LayerPlan", "Slots"}}
    needs = merged([needs, projecting.needs(of_softmax(a, own_qk=project.qk_layer is None), a)])
    if any("State(" in plan for plan in plans):
        needs["cache"].add("State")
    if a.kv_latent is not None:
        needs = merged([needs, {"latent": {"Expand"}, "layers": {"RMSNorm"}}])
    for scorer in scorers:
        needs.setdefault(scorer.file, set()).add(scorer.made)
    for mix, one, plan in zip(mixes, launches, plans, strict=True):
        text = repr(one) + plan + (rope_text(mix.attributes) or "")
        for file, names in WORDS.items():
            needs.setdefault(file, set()).update(name for name in names if f"{name}(" in text or f"{name}," in text)
        if _turns(mix):
            needs.setdefault("rotary", set()).add("rotate_by")
        if isinstance(mix.attributes.temperature, LogPosition):
            needs.setdefault("layers", set()).add("log_position")
        if _learns_keys(mix):
            needs.setdefault("keys", set()).add("persistent_keys")
    return {file: names for file, names in needs.items() if names}


WORDS = {
    "mix": ("Guard",),
    "intervals": ("Near", "FULL"),
    "sizes": ("Share",),
    "cache": ("Growing", "Ring"),
    "rotary": ("Rope", "LinearScale", "Yarn", "Llama3"),
    "attention_reference": ("Reference",),
    "selector": ("Selector", "Sublinear"),
    "pooled": ("Pooled",),
}
