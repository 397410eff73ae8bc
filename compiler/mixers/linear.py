"""`linear(update = add, decay = none, ...)`: one matrix state per head: decay, then erase, then write, then read.

One form for linear attention (arXiv 2006.16236), BASED (2402.18668), RetNet (2307.08621), Lightning (2401.04658), GLA
(2312.06635), HGRN-2 (2404.07904), DeltaNet (2406.06484), gated DeltaNet (2412.06464) and Kimi's delta attention (2510.26692).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from attnc.compiler.attributes import OF_INPUT, OF_OUTPUT, OF_PROJECTIONS, OF_ROTATION
from attnc.compiler.declare import Bounds
from attnc.compiler.families import Channels, Recurrence
from attnc.compiler.mixer import Kind, Mixer, Weight
from attnc.compiler.mixers.channels import channel_states
from attnc.compiler.mixers.features import Feature, Taylor, feature_width
from attnc.compiler.mixers.recurrence import recurrence
from attnc.compiler.scanned import Scanned
from attnc.compiler.streams import Streams, channels
from attnc.compiler.value import Broken

GATES = ("scalar", "vector")
"""Decays that depend on the token."""


FORMS: dict[str | None, Literal["none", "head", "scalar", "vector"]] = {
    None: "none",
    "slopes": "head",
    "retention": "head",
    "scalar": "scalar",
    "vector": "vector",
}
"""How a launch is told of each decay."""


class Linear(Kind):
    """`linear(update = delta, decay = scalar)`: S <- decay S, then erase, then S += write k v, read S q.

    `update`      `add`; `delta`: what S holds for k is erased first.
    `decay`       `none`; fixed per head: `slopes` (Lightning), `retention` (RetNet); gates of the token, one a head
                  (`scalar`) or one a channel (`vector`).
    `feature`     feature map of q and k; `normalize = sum` divides by the sum of its products.
    `key`         `one_minus_decay`: the gate is the key too (HGRN-2).
    `lower_bound` under the gate; `learned`: rises with depth.
    `erase`, `write`, `beta`  delta only: strengths per head or per channel; upper bound of the write strength.
    `state`       `vector`: h <- f h + (1 - f) v, element by element (HGRN).
    """

    kind: Literal["linear"] = "linear"
    update: Literal["add", "delta"] = "add"
    decay: Literal["slopes", "retention", "scalar", "vector"] | None = None
    feature: Feature | Taylor | None = None
    normalize: Literal["sum"] | None = None
    key: Literal["projected", "one_minus_decay"] = "projected"
    lower_bound: Annotated[float | Literal["learned"], Bounds(0, 1)] = 0.0
    erase: Literal["scalar", "vector"] = "scalar"
    write: Literal["scalar", "vector"] = "scalar"
    beta: Literal[1, 2] = 1
    state: Literal["matrix", "vector"] = "matrix"


def _rules(kind: Linear) -> Iterator[Broken]:
    delta_only = {"erase": kind.erase != "scalar", "write": kind.write != "scalar", "beta": kind.beta != 1}
    for key, given in delta_only.items():
        if given and kind.update != "delta":
            message = f"`{key}` belongs to the delta rule, but update is `add`"
            yield Broken(key, message, "`update = delta`", f"write `update = delta`, or leave `{key}` out")
    needs_gate = {"key": kind.key == "one_minus_decay", "lower_bound": kind.lower_bound != 0, "state": kind.state == "vector"}
    for key, given in needs_gate.items():
        if given and kind.decay not in GATES:
            shown = f"`{key} = {getattr(kind, key)}`"
            message = f"{shown} needs a gate, but decay is `{kind.decay or 'none'}`"
            yield Broken(key, message, "`decay = scalar` or `vector`", f"write `decay = vector`, or leave `{key}` out")
    if kind.normalize and kind.update == "delta":
        message = "the delta rule erases, so products of q and k have no sum to divide by"
        yield Broken("normalize", message, "`update = add`", "leave `normalize` out")
    if kind.state == "vector":
        of_products = {
            "update": kind.update != "add",
            "feature": kind.feature is not None,
            "normalize": kind.normalize is not None,
        }
        for key, given in of_products.items():
            if given:
                message = f"`state = vector` has no products of q and k, so `{key}` has no meaning"
                yield Broken(key, message, "`state = matrix`", f"leave `{key}` out")


def _state(kind: Linear, attributes: Any, _model: Any) -> dict[str, tuple[int, ...]]:
    """The state of every head, and the sum of its keys where it normalises."""
    heads, width = attributes.heads, attributes.value_dim
    if kind.state == "vector":
        return {"state": (heads, width)}
    keys = feature_width(kind.feature, attributes.head_dim)
    return {"state": (heads, keys, width)} | ({"sum": (heads, keys)} if kind.normalize else {})


def streams(kind: Linear, attributes: Any) -> Streams:
    """q and k have `qk_heads` heads, v has `kv_heads`, k no more than those; a gate that is the key leaves k out."""
    a = attributes
    made = {"q": (a.qk_heads, a.head_dim), "k": (min(a.qk_heads, a.kv_heads), a.head_dim), "v": (a.kv_heads, a.value_dim)}
    if kind.key == "one_minus_decay" or kind.state == "vector":
        del made["k"]
    if kind.state == "vector":
        del made["q"]
    return made


def _recent(kind: Linear, attributes: Any, _model: Any) -> dict[str, tuple[int, ...]]:
    """The last inputs of the convolutions on q, k and v."""
    if attributes.short_conv is None:
        return {}
    return {f"{key}_conv": (attributes.short_conv - 1, width) for key, width in channels(streams(kind, attributes)).items()}


def _gate(kind: Linear) -> Literal["none", "slopes", "retention", "softplus", "sigmoid"]:
    """Where decays come from. What speaks of the gate's own value (a bound under it, a key or a new state made of it) has the
    sigmoid of HGRN; every other gate is Mamba-2's, of which GLA's sigmoid(x)^(1 / 16) is the case A = 1 / 16.
    """
    match kind.decay:
        case None:
            return "none"
        case "slopes" | "retention":
            return kind.decay
        case "scalar" | "vector":
            by_value = kind.key == "one_minus_decay" or kind.lower_bound != 0 or kind.state == "vector"
            return "sigmoid" if by_value else "softplus"


def _weights(kind: Linear, attributes: Any, model: Any) -> tuple[Weight, ...]:
    """The gate's map of the token, with its rate and offset a head; the strengths' maps; those of feature maps."""
    heads, found = attributes.heads, []
    rows = attributes.value_dim if kind.state == "vector" else feature_width(kind.feature, attributes.head_dim)
    gates, gate = heads if kind.decay == "scalar" else heads * rows, _gate(kind)
    if kind.decay in GATES:
        found.append(Weight(name="decay_proj.weight", shape=(gates, model.dim)))
    if gate == "softplus":
        found.append(Weight(name="A_log", shape=(heads,), start=("even", 0.01 if kind.decay == "scalar" else 1.0, 16.0, "log")))
        found.append(Weight(name="dt_bias", shape=(gates,), start=("log_even", 1e-3, 0.1, "inverse_softplus")))
    if kind.lower_bound == "learned":
        found.append(Weight(name="lower_bound.weight", shape=(gates,), start=0.0))
    if kind.update == "delta":
        erase = heads if kind.erase == "scalar" else heads * rows
        write = heads if kind.write == "scalar" else heads * attributes.value_dim
        found.append(Weight(name="erase_proj.weight", shape=(erase, model.dim)))
        if not _one_strength(kind):
            found.append(Weight(name="write_proj.weight", shape=(write, model.dim)))
    return (*found, *_of_feature(kind, attributes))


def _of_feature(kind: Linear, attributes: Any) -> list[Weight]:
    """What feature maps learn (Hedgehog: a map of each head) or draw once (FAVOR+: directions for all heads)."""
    width = attributes.head_dim
    if kind.feature == "favor":
        return [
            Weight(
                name="favor",
                shape=(feature_width("favor", width), width),
                start=("orthogonal", 0.0, 1.0, "plain"),
                learned=False,
            )
        ]
    if kind.feature != "hedgehog":
        return []
    mapped = [(name, heads) for name, (heads, _) in streams(kind, attributes).items() if name != "v"]
    return [
        Weight(name=f"{name}_feature", shape=(heads, width, width), start=("identity", 0.0, 1.0, "plain"))
        for name, heads in mapped
    ]


def _one_strength(kind: Linear) -> bool:
    """Two scalars are one strength."""
    return (kind.erase, kind.write) == ("scalar", "scalar")


def _scanned(kind: Linear, attributes: Any, _model: Any) -> Scanned:
    """The launch of matrix states, or of channel states."""
    if kind.state == "vector":
        return _of_vectors(kind, attributes)
    width, gate = attributes.head_dim, _gate(kind)
    of_exp = isinstance(kind.feature, Taylor) or kind.feature == "favor"  # products of features stand for exp(q . k / sqrt(D))
    family = Recurrence(
        decay=FORMS[kind.decay],
        update=kind.update,
        erase=kind.erase,
        write=kind.write,
        normalize=kind.normalize == "sum",
        key_width=feature_width(kind.feature, width),
        value_width=attributes.value_dim,
    )
    return Scanned(
        family=family,
        heads=attributes.heads,
        streams=streams(kind, attributes),
        scale=1.0 if of_exp or kind.normalize else width**-0.5,
        inner_scale=width**-0.5 if of_exp else 1.0,
        feature=kind.feature,
        decay=gate,
        lower=kind.lower_bound,
        key="decay" if kind.key == "one_minus_decay" else "projected",
        beta=kind.beta,
        one_strength=_one_strength(kind),
        causal=attributes.causal,
        formula=recurrence,
    )


def _of_vectors(kind: Linear, attributes: Any) -> Scanned:
    """The launch of states that are as wide as values."""
    width = attributes.value_dim
    return Scanned(
        family=Recurrence(decay=FORMS[kind.decay], key_width=width, value_width=width),
        heads=attributes.heads,
        streams=streams(kind, attributes),
        scale=1.0,
        decay=_gate(kind),
        lower=kind.lower_bound,
        formula=channel_states,
        channels=Channels(write=False, read=False, state=1),
    )


def _takes(kind: Linear) -> frozenset[str]:
    """A gate that is the key is not rotated, and then neither is q; a state that is a vector has neither."""
    turned = OF_ROTATION if kind.key == "projected" and kind.state == "matrix" else frozenset()
    return OF_INPUT | OF_PROJECTIONS | {"qk_heads"} | turned | OF_OUTPUT


def _looks_back(kind: Linear) -> bool:
    """Only plain sums over all keys have no order."""
    return kind.update == "delta" or kind.decay is not None or kind.state == "vector"


MIXER = Mixer(
    name="linear",
    type="mixer",
    parameters=Linear,
    make_examples=lambda: (
        Linear(),
        Linear(update="delta", decay="scalar"),
        Linear(update="delta", decay="vector", erase="vector", write="vector", beta=2),
        Linear(feature=Taylor(n=2), normalize="sum"),
        Linear(decay="vector", key="one_minus_decay", lower_bound="learned"),
        Linear(decay="vector", state="vector"),
    ),
    reference=recurrence,
    scanned=_scanned,
    weights=_weights,
    state=_state,
    float32_state=True,
    recent=_recent,
    takes=_takes,
    rules=_rules,
    looks_back=_looks_back,
    per_head=True,
)
