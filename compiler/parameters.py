"""Every learned tensor of a spec: its name in checkpoints, its shape, and how it starts. Known without torch.

Tensors that Llama-like models have carry Llama's names; others lie beside their projections, or under `mixer.{part}`.
"""

from __future__ import annotations

from dataclasses import replace
from math import prod

from attnc.compiler.attributes import Attributes, LearnedScale
from attnc.compiler.graph import Apply, Combine, Condense, Graph, Mix, Node, Project, RouteTokens, Smooth
from attnc.compiler.mixer import Weight, convolution
from attnc.compiler.mixers import MIXERS
from attnc.compiler.spec import Model, Spec
from attnc.compiler.streams import Streams, channels, of_softmax


def parameters(spec: Spec, graph: Graph) -> tuple[Weight, ...]:
    """All tensors, in the order of the modules."""
    model = spec.model
    found = [Weight(name="model.embed_tokens.weight", shape=(model.vocab, model.dim))]
    for layer in spec.layers:
        prefix = f"model.layers.{layer.index}"
        inside = [*norms(model), *feed_forward(model)]
        nodes = [node for _, node in graph.nodes(layer.index)]
        borrowed = tuple(name for node in nodes for name in _borrowed(node))
        for node in nodes:
            inside += [weight for weight in of_node(node, model) if not weight.name.startswith(borrowed)]
        found += [replace(weight, name=f"{prefix}.{weight.name}") for weight in inside]
    found += norm("model.norm", model)
    if not model.tie:
        found.append(Weight(name="lm_head.weight", shape=(model.vocab, model.dim)))
    return tuple(found)


def total(weights: tuple[Weight, ...]) -> int:
    """How many numbers they hold."""
    return sum(prod(weight.shape) for weight in weights)


def place(node: Node) -> str:
    """Where below a layer the tensors of a node lie: `self_attn` for a layer's only projections, else `mixer.{part}`; a kind of
    some heads lies in its projections' place, below `states`.
    """
    if isinstance(node, Apply) and node.runs:
        return f"{f'mixer.{node.scope}' if node.scope else 'self_attn'}.states.{node.name}"
    if node.scope:
        return f"mixer.{node.scope}"
    return f"mixer.{node.kind.kind}" if isinstance(node, Apply) else "self_attn"


def norm(name: str, model: Model) -> list[Weight]:
    """A norm's weight, and bias for a layer norm; a weight that is added to one starts at zero."""
    starts = Weight(name=f"{name}.weight", shape=(model.dim,), start=_one(model))
    if model.norm.kind == "rms":
        return [starts]
    return [starts, Weight(name=f"{name}.bias", shape=(model.dim,), start=0.0)]


def norms(model: Model) -> list[Weight]:
    """The norms of one layer."""
    names = ["input_layernorm"]
    sandwich = model.norm_place == "sandwich"
    if sandwich or model.feed_forward is not None:
        names += ["post_attention_layernorm"]
    if sandwich and model.feed_forward is not None:
        names += ["pre_feedforward_layernorm", "post_feedforward_layernorm"]
    return [weight for name in names for weight in norm(name, model)]


def feed_forward(model: Model) -> list[Weight]:
    """The feed-forward part of one layer."""
    if model.feed_forward is None:
        return []
    width, bias = model.feed_forward.width, model.bias == "all"
    gated = model.feed_forward.kind in ("swiglu", "geglu")
    found = linear("mlp.gate_proj", model.dim, width, bias=bias) if gated else []
    return [*found, *linear("mlp.up_proj", model.dim, width, bias=bias), *linear("mlp.down_proj", width, model.dim, bias=bias)]


def linear(name: str, inside: int, outside: int, *, bias: bool, start: tuple[float, float] = (0.0, 0.02)) -> list[Weight]:
    """A linear map [outside, inside] with its bias."""
    weight = Weight(name=f"{name}.weight", shape=(outside, inside), start=start)
    return [weight, Weight(name=f"{name}.bias", shape=(outside,), start=0.0)] if bias else [weight]


def of_node(node: Node, model: Model) -> list[Weight]:
    """The tensors of one graph node, named from the layer on."""
    prefix = place(node)
    match node:
        case Project():
            return [replace(w, name=f"{prefix}.{w.name}") for w in projections(node, model)]
        case Mix():
            return [replace(w, name=f"{prefix}.{w.name}") for w in of_mix(node, model)]
        case Condense(kind=kind, attributes=attributes):
            found = MIXERS[kind.kind].weights(kind, attributes, model)
            return [replace(w, name=f"{prefix}.{w.name}") for w in found]
        case Smooth(attributes=attributes):
            return [replace(w, name=f"{prefix}.input_ema.{w.name}") for w in average(attributes, model)]
        case Apply():
            return [replace(w, name=f"{prefix}.{w.name}") for w in of_apply(node, model)]
        case RouteTokens(attributes=attributes, names=names):
            router = Weight(name=f"{prefix}.router.weight", shape=(len(names), model.dim))
            return [router, Weight(name=f"{prefix}.join.weight", shape=(attributes.heads * len(names), model.dim))]
        case Combine(how="gate", by="product", names=names):
            return [Weight(name=f"{_gate(node)}.{name}_norm.weight", shape=(model.dim,), start=1.0) for name in names]
        case Combine(how="gate", names=names):
            return [Weight(name=f"{_gate(node)}.weight", shape=(len(names), model.dim))]
        case _:
            return []


def _gate(node: Combine) -> str:
    return f"mixer.{node.scope}.gate" if node.scope else "mixer.gate"


def _borrowed(node: Node) -> list[str]:
    """Projections that branches of a gate take from its first branch: the beginnings of their names."""
    if not isinstance(node, Combine) or not node.shared:
        return []
    inside = f"mixer.{node.scope}." if node.scope else "mixer."
    return [f"{inside}{name}.{letter}_proj." for name in node.names[1:] for letter in node.shared]


def projections(node: Project, model: Model) -> list[Weight]:
    """q, k, v and o with what stands between them."""
    a = node.attributes
    if a.kv_latent is not None:
        return latent(a, model)
    streams = of_softmax(a, own_qk=node.qk_layer is None)
    return [*into(streams, a, model), *between(streams, a, model), *_sink(a), *_scale(a, model)]


def into(streams: Streams, a: Attributes, model: Model) -> list[Weight]:
    """The projections of x, and o."""
    bias, found = model.bias in ("qkv", "all"), []
    own = (0.0, 0.02) if a.init_qk is None else (float(a.init_qk.mean), float(a.init_qk.std))
    for name, size in channels(streams).items():
        found += linear(f"{name}_proj", model.dim, size, bias=bias, start=(0.0, 0.02) if name == "v" else own)
    return [*found, *linear("o_proj", a.heads * a.value_dim, model.dim, bias=model.bias == "all")]


def of_apply(node: Apply, model: Model) -> list[Weight]:
    """Of a kind that is a mixer by itself; one that lowers to states has projections like a softmax's beside its own."""
    declared, a = MIXERS[node.kind.kind], node.attributes
    own = declared.weights(node.kind, a, model)
    if declared.plain is not None:
        width = declared.plain(node.kind, a, model).width
        gate = [] if a.output_gate is None else linear("output_gate", model.dim, width, bias=False)
        return [*own, *gate, *_scale(a, model)]
    lower = declared.scanned or declared.taught
    if lower is None:
        return list(own)
    streams = lower(node.kind, a, model).streams
    if node.runs:
        return [*between(streams, a, model), *own]
    return [*into(streams, a, model), *between(streams, a, model), *own, *_scale(a, model)]


def latent(a: Attributes, model: Model) -> list[Weight]:
    """Projections of `kv_latent`, under the names of DeepSeek-V2 (arXiv 2405.04434): in `q_proj` each head's own channels come
    before the rotated ones, in `kv_b_proj` its key before its value.
    """
    assert a.kv_latent is not None, "asked only where there is a latent"
    bias, out_bias = model.bias in ("qkv", "all"), model.bias == "all"
    return [
        *linear("q_proj", model.dim, a.heads * a.key_width, bias=bias),
        *linear("kv_a_proj_with_mqa", model.dim, a.kv_latent + a.rotated_key, bias=bias),
        Weight(name="kv_a_layernorm.weight", shape=(a.kv_latent,), start=_one(model)),
        *linear("kv_b_proj", a.kv_latent, a.kv_heads * (a.head_dim + a.value_dim), bias=False),
        *linear("o_proj", a.heads * a.value_dim, model.dim, bias=out_bias),
        *between({}, a, model),
        *_sink(a),
        *_scale(a, model),
    ]


def between(streams: Streams, a: Attributes, model: Model) -> list[Weight]:
    """Short convolutions, norms of q and k, output norm and gate."""
    found: list[Weight] = []
    if a.short_conv is not None:
        found += [convolution(f"{name}_conv", size, a.short_conv) for name, size in channels(streams).items()]
    if a.qk_norm == "rms":
        normed = (name for name in streams if name != "v")
        found += [Weight(name=f"{name}_norm.weight", shape=(a.head_dim,), start=_one(model)) for name in normed]
    if a.output_norm is not None:
        found.append(Weight(name="output_norm.weight", shape=(a.value_dim,), start=1.0))
    if a.output_gate is not None:
        found += linear("output_gate", model.dim, a.heads * a.value_dim, bias=False)
    return found


def _sink(a: Attributes) -> list[Weight]:
    return [] if a.sink_logit is None else [Weight(name="sink_logit", shape=(a.heads,), start=0.0)]


def _scale(a: Attributes, model: Model) -> list[Weight]:
    return [Weight(name="scale", shape=(model.dim,), start=float(a.scale.init))] if isinstance(a.scale, LearnedScale) else []


def of_mix(node: Mix, model: Model) -> list[Weight]:
    """What the key sets of a softmax learn."""
    found: list[Weight] = []
    seen = set()
    for key in (key for variant in node.variants for group in variant.groups for key in group.keys):
        if key not in seen:
            seen.add(key)
            found += MIXERS[key.kind].weights(key, node.attributes, model)
    return found


def average(a: Attributes, model: Model) -> list[Weight]:
    """Mega's moving average of the input (arXiv 2209.10655), with its published beginnings but for the signs of beta."""
    assert a.input_ema is not None, "asked only where there is one"
    shape = (model.dim, a.input_ema)
    found = [Weight(name=name, shape=shape, start=(0.0, 0.2)) for name in ("delta", "alpha")]
    found += [Weight(name="beta", shape=shape, start=(1.0, 0.02)), Weight(name="gamma", shape=shape, start=(0.0, 1.0))]
    return [*found, Weight(name="omega", shape=(model.dim,), start=(0.0, 1.0))]


def _one(model: Model) -> float:
    """Where a norm's weight begins: one that is added to the centre begins at nothing."""
    return 1.0 - model.norm.centre
