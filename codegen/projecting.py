"""The class of one set of projections: x -> q, k, v -> its launches -> o, in the order that the language fixes."""

from __future__ import annotations

from attnc.codegen import latent
from attnc.codegen.launching import Masks, launch, plan_text, rope_text, scale
from attnc.codegen.parts import Launch, Names, Part
from attnc.compiler.attributes import Attributes, LearnedScale, LogPosition
from attnc.compiler.graph import Apply, Graph, Mix, Project, RouteTokens
from attnc.compiler.kept import chunk_size
from attnc.compiler.mixers import MIXERS
from attnc.compiler.parameters import of_mix, place
from attnc.compiler.spec import Model


def hands_on(graph: Graph, layer: int) -> bool:
    """Whether a later layer takes over this layer's q and k."""
    return any(
        data["carries"] == "qk" for name, _ in graph.nodes(layer) for _, _, data in graph.network.out_edges(name, data=True)
    )


def source_layer(graph: Graph, layer: int) -> int | None:
    """The earlier layer whose q and k this one takes over."""
    found = (node.qk_layer for _, node in graph.nodes(layer) if isinstance(node, Project))
    return next((source for source in found if source is not None), None)


def attention(graph: Graph, layer: int, scope: str, names: Names, model: Model, visible: Masks) -> Part:
    """The class of a scope's Project node with all Mix nodes that read it."""
    project = next(node for _, node in graph.nodes(layer) if isinstance(node, Project) and node.scope == scope)
    mixes = [(name, node) for name, node in graph.nodes(layer) if isinstance(node, Mix) and node.scope == scope]
    covered = sorted(group for _, mix in mixes for group in range(mix.first, mix.last + 1))
    assert covered == list(range(project.attributes.kv_heads)), f"the launches of layer {layer} cover each KV group once"
    kinds = [key.kind for _, mix in mixes for variant in mix.variants for group in variant.groups for key in group.keys]
    class_name = names.new(kinds, "Attention")
    many = len(mixes) > 1
    launches = tuple(
        launch(mix, f"{class_name}.{at}" if many else class_name, model, visible) for at, (_, mix) in enumerate(mixes)
    )
    a = project.attributes
    attend = [*_project(project, a, hands_on(graph, layer)), *_launches(mixes, a)]
    if a.kv_latent is not None:
        assert not many, "one launch reads a latent for all heads"
        attend = latent.body(a)
    body = [*attend, *_output(a)]
    origins = dict.fromkeys(str(group.origin) for _, mix in mixes for variant in mix.variants for group in variant.groups)
    plans = tuple(plan_text(mix, project, at) for at, (_, mix) in enumerate(mixes))
    return Part(
        name=class_name,
        place=place(project).split(".")[0],
        template="attention.py.j2",
        summary=_summary(a),
        origins=tuple(origins),
        modules=(*_modules(project, a, model), *_ropes(mixes), *_learned([mix for _, mix in mixes], model)),
        body=tuple(body),
        plans=plans,
        slots=len(mixes),
        mixes=launches,
        launches={one.name: name for one, (name, _) in zip(launches, mixes, strict=True)},
        needs=_needs(project, a, [mix for _, mix in mixes], launches),
        source=project.qk_layer is not None,
    )


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
        *_project(project, a, handed=False),
        *turn,
        f'chosen = routes(self.router(x), "{node.router.estimator}", self.training)  # [T, {count}], one-hot',
        f"weights = self.join(x).unflatten(-1, ({a.heads}, {count})).softmax(dim=-1)  # [T, H, {count}]",
        "o = self.route(q, k, v, chosen, weights, call.batch, call.slot(self.slot))  # [T, H, E]",
        *_output(a),
    )
    width = a.value_dim + count
    needs = {"route": {"TokenRoute", "routes"}, "intervals": {"HeadGroup"}, "cache": {"LayerPlan", "Slots", "Growing"}}
    if turn:
        needs["rotary"] = {"Rope", "rotate_by", *(name for name in _WORDS["rotary"] if f"{name}(" in rope[0])}
    if a.qk_norm is not None:
        needs["layers"] = {"RMSNorm" if a.qk_norm == "rms" else "l2_norm"}
    return Part(
        name=names.new([], "RoutedAttention"),
        place=place(project).split(".")[0],
        template="attention.py.j2",
        summary=_summary(a),
        origins=(str(node.origin),),
        modules=(*_modules(project, a, model), *rope, *more),
        body=body,
        plans=(f"LayerPlan((Slots(0, {a.kv_heads - 1}, Growing()),), key_width={a.head_dim}, value_width={width})",),
        slots=1,
        needs=needs,
    )


def _summary(a: Attributes) -> str:
    shared = "" if a.heads == a.kv_heads else f" on {a.kv_heads} key and value heads"
    width = f"width {a.head_dim}" if a.head_dim == a.value_dim else f"widths {a.head_dim} and {a.value_dim}"
    return f"{a.heads} query heads{shared}, {width}."


def _modules(project: Project, a: Attributes, model: Model) -> list[str]:
    """The projections, and what stands between them and the output."""
    return [*(_projections(project, a, model) if a.kv_latent is None else latent.modules(a, model)), *_after(a, model)]


def _projections(project: Project, a: Attributes, model: Model) -> list[str]:
    bias, out_bias = model.bias in ("qkv", "all"), model.bias == "all"
    own = project.qk_layer is None
    lines = []
    if own:
        lines.append(f"self.q_proj = nn.Linear({model.dim}, {a.heads} * {a.head_dim}, bias={bias})")
        if not a.share_qk:
            lines.append(f"self.k_proj = nn.Linear({model.dim}, {a.kv_heads} * {a.head_dim}, bias={bias})")
    lines.append(f"self.v_proj = nn.Linear({model.dim}, {a.kv_heads} * {a.value_dim}, bias={bias})")
    lines.append(f"self.o_proj = nn.Linear({a.heads} * {a.value_dim}, {model.dim}, bias={out_bias})")
    if a.short_conv is not None:
        widths = {"q": f"{a.heads} * {a.head_dim}", "k": f"{a.kv_heads} * {a.head_dim}"} if own else {}
        if a.share_qk:
            widths.pop("k", None)
        widths["v"] = f"{a.kv_heads} * {a.value_dim}"
        lines += [f"self.{name}_conv = ShortConv({width}, {a.short_conv})" for name, width in widths.items()]
    if a.qk_norm == "rms" and own:
        centre = ", centre=1" if model.norm.centre else ""
        lines += [
            f"self.{name}_norm = RMSNorm({a.head_dim}, {model.norm.epsilon!r}{centre})" for name in ("q", "k")[: 2 - a.share_qk]
        ]
    return lines


def _after(a: Attributes, model: Model) -> list[str]:
    """What stands between the launches and the output, and learned numbers of each head."""
    lines = []
    if a.output_norm is not None:
        lines.append(f"self.output_norm = RMSNorm({a.value_dim}, {model.norm.epsilon!r})")
    if a.output_gate is not None:
        lines.append(f"self.output_gate = nn.Linear({model.dim}, {a.heads} * {a.value_dim}, bias=False)")
    if a.sink_logit is not None:
        lines.append(f"self.sink_logit = nn.Parameter(torch.zeros({a.heads}))")
    if isinstance(a.scale, LearnedScale):
        lines.append(f"self.scale = nn.Parameter(torch.full(({model.dim},), {float(a.scale.init)!r}))")
    return lines


def _learned(mixes: list[Mix], model: Model) -> list[str]:
    """Learned tensors of the key sets."""
    weights = {weight.name: weight for mix in mixes for weight in of_mix(mix, model)}
    return [f"self.{name} = nn.Parameter(torch.zeros{weight.shape!r})" for name, weight in weights.items()]


def _project(project: Project, a: Attributes, handed: bool) -> list[str]:
    """From x to q [T, H, D], k [T, G, D], v [T, G, E], before positions."""
    own = project.qk_layer is None
    lines = [f"x = F.{a.activation}(x)"] if a.activation else []
    flat = {"v": "self.v_proj(x)"}
    if own:
        flat = {"q": "self.q_proj(x)"} | ({} if a.share_qk else {"k": "self.k_proj(x)"}) | flat
    heads = {"q": (a.heads, a.head_dim, "H, D"), "k": (a.kv_heads, a.head_dim, "G, D"), "v": (a.kv_heads, a.value_dim, "G, E")}
    for name, text in flat.items():
        if a.short_conv is not None:
            lines.append(f'{name} = convolve(self.{name}_conv, {text}, call, self.slot, "{name}_conv")  # [T, channels]')
        count, width, letters = heads[name]
        lines.append(f"{name} = {text if a.short_conv is None else name}.unflatten(-1, ({count}, {width}))  # [T, {letters}]")
    if own:
        lines += _norms(a)
        if a.share_qk:
            lines.append("k = q")
    else:
        lines.append('q, k = call.handed["q"], call.handed["k"]  # of the nearest earlier layer with its own')
    if handed and own:
        lines.append('call.handed["q"], call.handed["k"] = q, k')
    return lines


def _norms(a: Attributes) -> list[str]:
    names = ("q",) if a.share_qk else ("q", "k")
    match a.qk_norm:
        case "rms":
            return [f"{name} = self.{name}_norm({name})" for name in names]
        case "l2":
            return [f"{name} = l2_norm({name})" for name in names]
        case _:
            return []


def _launches(mixes: list[tuple[str, Mix]], a: Attributes) -> list[str]:
    """Positions, then each launch over its heads; several launches are joined along the heads."""
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
        learned = _persistent(mix)
        outputs.append(f"o{suffix}")
        slot = "self.slot" if at == 0 else f"self.slot + {at}"
        lines.append(f"o{suffix} = self.mixes[{at}]({q}, {k}, {v}, call.batch, call.slot({slot}){sink}{learned})  # [T, H, E]")
    if len(outputs) > 1:
        lines.append(f"o = torch.cat(({', '.join(outputs)}), dim=1)  # [T, H, E]")
    return lines


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


def _persistent(mix: Mix) -> str:
    """Learned keys stand beside the sequence's, in every head group of a launch or in none."""
    learned = any(MIXERS[key.kind].own_keys(key) for variant in mix.variants for group in variant.groups for key in group.keys)
    return ", persistent=persistent_keys(self.persistent_key, self.persistent_value, call.batch.sequences)" if learned else ""


def _output(a: Attributes) -> list[str]:
    """output_norm per head, times output_gate of x, o, scale."""
    lines = []
    if a.output_norm is not None:
        lines.append("o = self.output_norm(o)")
    lines.append("o = o.flatten(-2)  # [T, heads * E]")
    if a.output_gate is not None:
        gate = {"sigmoid": "torch.sigmoid({})", "silu": "F.silu({})", "linear": "{}"}[a.output_gate]
        lines.append(f"o = o * {gate.format('self.output_gate(x)')}")
    scale = ""
    if isinstance(a.scale, LearnedScale):
        scale = "self.scale * "
    elif a.scale != 1:
        scale = f"{float(a.scale)!r} * "
    lines.append(f"return {scale}self.o_proj(o)")
    return lines


def _needs(project: Project, a: Attributes, mixes: list[Mix], launches: tuple[Launch, ...]) -> dict[str, set[str]]:
    needs: dict[str, set[str]] = {"mix": {"Mix", "Variant"}, "intervals": {"HeadGroup"}, "cache": {"LayerPlan", "Slots"}}
    if a.short_conv is not None:
        needs |= {"stateful": {"convolve"}}
        needs["cache"].add("State")
        needs.setdefault("layers", set()).add("ShortConv")
    if a.qk_norm == "l2" and project.qk_layer is None:
        needs.setdefault("layers", set()).add("l2_norm")
    if a.qk_norm == "rms" or a.output_norm is not None or a.kv_latent is not None:
        needs.setdefault("layers", set()).add("RMSNorm")
    if a.kv_latent is not None:
        needs["latent"] = {"Expand"}
    for mix, one in zip(mixes, launches, strict=True):
        text = repr(one) + plan_text(mix, project, 0) + (rope_text(mix.attributes) or "")
        for file, names in _WORDS.items():
            needs.setdefault(file, set()).update(name for name in names if f"{name}(" in text or f"{name}," in text)
        if _turns(mix):
            needs.setdefault("rotary", set()).add("rotate_by")
        if isinstance(mix.attributes.temperature, LogPosition):
            needs.setdefault("layers", set()).add("log_position")
        if _persistent(mix):
            needs.setdefault("keys", set()).add("persistent_keys")
    return {file: names for file, names in needs.items() if names}


_WORDS = {
    "mix": ("Guard",),
    "intervals": ("Near", "FULL"),
    "sizes": ("Share",),
    "cache": ("Growing", "Ring"),
    "rotary": ("Rope", "LinearScale", "Yarn", "Llama3"),
    "attention_reference": ("Reference",),
}
