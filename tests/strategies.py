"""Random legal values and specs, drawn from the bounds that kinds and attributes declare."""

from __future__ import annotations

import typing
from dataclasses import dataclass
from typing import Any, Literal

from hypothesis import strategies as st
from state_strategies import state_mixers

from attnc.compiler.attributes import Attributes
from attnc.compiler.fields import Field, fields, is_value
from attnc.compiler.mixer import Kind
from attnc.compiler.mixers import MIXERS
from attnc.compiler.overlay import block_size
from attnc.compiler.print_value import print_keys, print_value
from attnc.compiler.tuning import Router
from attnc.compiler.value import Share

SHARES = (5, 10, 25, 40, 50, 75, 100)


def numbers(field: Field, largest: int) -> st.SearchStrategy[int]:
    """Whole numbers within a field's bounds, at most `largest`."""
    assert field.bounds is not None
    return st.integers(int(field.bounds.low), min(int(field.bounds.high), largest))


@st.composite
def kinds(draw: st.DrawFn, name: str, largest: int = 40, shares: bool = True) -> Kind:
    """A value of one kind; token counts are at most `largest`, so that small sequences can tell values apart."""
    owner = MIXERS[name].parameters
    given: dict[str, object] = {}
    divisors = {field.name: field for field in fields(owner).values() if field.divides}
    for field in fields(owner).values():
        if field.name in divisors:
            continue
        if int in field.types and Share in field.types and shares and draw(st.integers(0, 3)) == 0:
            given[field.name] = Share(percent=draw(st.sampled_from(SHARES)))
        elif int in field.types:
            given[field.name] = draw(numbers(field, largest))
        elif Share in field.types:
            given[field.name] = Share(percent=draw(st.sampled_from((0, *SHARES))))
    for name_, field in divisors.items():
        assert field.divides is not None
        whole = given[field.divides.field]
        if isinstance(whole, int):
            part = draw(st.integers(1, max(1, largest // 4)))
            given[name_] = part
            given[field.divides.field] = max(1, whole // part) * part
    return owner(**given)


def key_sets(largest: int = 40, shares: bool = True) -> st.SearchStrategy[Kind]:
    """A static key set of the sequence's own keys."""
    keys = [(name, mixer) for name, mixer in MIXERS.items() if mixer.type == "keys" and mixer.built and mixer.positional]
    static = [name for name, mixer in keys if not mixer.own_keys(mixer.examples[0])]
    return st.sampled_from(static).flatmap(lambda name: kinds(name, largest, shares))


@st.composite
def values(draw: st.DrawFn, field: Field, largest: int = 64) -> Any:
    """Any value that a field takes and this version builds."""
    members = [member for member in field.types if field.not_built is None or member not in field.not_built.values]
    member = draw(st.sampled_from(members))
    if typing.get_origin(member) is Literal:
        refused = field.not_built.values if field.not_built else ()
        return draw(st.sampled_from([word for word in typing.get_args(member) if word not in refused]))
    if member is type(None):
        return None
    if member is bool:
        return draw(st.booleans())
    if is_value(member):
        return member(**{inner.key: draw(values(inner, largest)) for inner in fields(member).values()})
    bounds = field.bounds
    assert bounds is not None, field
    if member is int:
        return draw(st.integers(int(bounds.low), min(int(bounds.high), max(largest, int(bounds.low)))))
    assert member is float, member
    return float(draw(st.sampled_from([x for x in (0.25, 0.5, 1.0, 1.5, 2.0, 10000.0) if bounds.low <= x <= bounds.high])))


@dataclass(frozen=True)
class Sizes:
    """Which specs are drawn: small ones, so that building and running them is quick."""

    layers: int = 3
    tokens: int = 24
    widths: tuple[int, ...] = (8, 16)
    groups: int = 4
    ratios: tuple[int, ...] = (1, 2, 3)
    blocks: bool = True
    """heads, when and choose"""
    branches: bool = True
    """sums, chains, gates, convolutions"""
    states: bool = False
    """matrix states, beside convolutions"""
    route: bool = False
    shares: bool = True
    causal: bool | None = True
    """None draws both"""
    rich: bool = False
    """attributes in cases of heads and around blocks, `when` inside heads, q and k taken over, scales and caps of the model"""


DRAWN = (
    "rope",
    "rope_scale",
    "positions",
    "qk_norm",
    "short_conv",
    "share_qk",
    "score",
    "temperature",
    "sink_logit",
    "output_norm",
    "output_gate",
    "scale",
)
"""Attributes that a random mixer may set; the others are shapes, or the spec's own business."""


OF_ONE_SOFTMAX = ("rope", "rope_scale", "positions", "score", "temperature", "sink_logit")
"""Attributes in which head groups of one layer may differ."""

OF_PROJECTIONS = ("qk_norm", "short_conv", "output_norm", "output_gate", "scale")
"""Attributes that all head groups of a layer share, and that contradict nothing."""

OF_MODELS = ("embedding_scale", "residual_scale", "logit_scale", "logit_cap", "score_cap", "score_scale")


@st.composite
def settings_of(draw: st.DrawFn, keys: tuple[Kind, ...], ratio: int, names: tuple[str, ...] = DRAWN) -> dict[str, Any]:
    """Attributes for a union that do not contradict it or one another."""
    given = {name: draw(values(fields(Attributes)[name])) for name in draw(st.lists(st.sampled_from(names), max_size=3))}
    if given.get("share_qk") and (ratio > 1 or any(MIXERS[key.kind].own_keys(key) for key in keys)):
        del given["share_qk"]
    sizes = {size for key in keys if (size := block_size(key))}
    if given.get("positions") == "chunk" and [type(size) for size in sizes] != [int]:
        del given["positions"]
    if given.get("score", "softmax") != "softmax":
        given.pop("sink_logit", None)
    if given.get("score") == "uniform":
        given.pop("temperature", None)
    scale = given.get("rope_scale")
    if scale is not None and scale.word == "llama3" and scale.low >= scale.high:
        del given["rope_scale"]
    if given.get("rope") == 1:  # with yarn, whichever brace that stands in, base 1 has no wavelengths
        given["rope"] = 2.0
    return given


@st.composite
def unions(draw: st.DrawFn, sizes: Sizes, learned: bool = True) -> tuple[Kind, ...]:
    """One to three key sets under one softmax; learned keys never alone, and never in one case of several."""
    found = draw(st.lists(key_sets(sizes.tokens, sizes.shares), min_size=1, max_size=2, unique=True))
    if learned and draw(st.integers(0, 5)) == 0:
        found.append(draw(kinds("persistent", 3)))
    return tuple(found)


@st.composite
def attentions(draw: st.DrawFn, sizes: Sizes, ratio: int) -> str:
    """A union, mostly with attributes."""
    keys = draw(unions(sizes))
    given = draw(settings_of(keys, ratio))
    return with_settings(print_keys(keys), given)


def with_settings(text: str, given: dict[str, Any]) -> str:
    """`text { key = value }`."""
    return f"{text} {{ {', '.join(f'{key} = {print_value(value)}' for key, value in given.items())} }}" if given else text


@st.composite
def groups_split(draw: st.DrawFn, kv_heads: int) -> list[str]:
    """Selectors that cover KV groups 0..kv_heads-1 in order, the last one `else`."""
    cuts = sorted(draw(st.sets(st.integers(1, kv_heads - 1), min_size=1, max_size=2)))
    ends = [0, *cuts]
    return [f"{first}..{last - 1}" for first, last in zip(ends, cuts, strict=False)] + ["else"]


@st.composite
def mixers(draw: st.DrawFn, sizes: Sizes, kv_heads: int, ratio: int, depth: int = 2) -> str:
    """A mixer of any shape."""
    shapes = ["attention"] * 3
    if depth and sizes.blocks:
        shapes += ["when", "choose"] + ["heads"] * (kv_heads > 1)
    if depth and sizes.branches:
        shapes += ["sum", "chain", "gate", "conv"] + ["states"] * 3 * sizes.states
    if sizes.route:
        shapes += ["route"]
    shape = draw(st.sampled_from(shapes))
    inner = mixers(sizes, kv_heads, ratio, depth - 1)
    union = unions(sizes, learned=False).map(print_keys)
    if shape == "attention":
        return draw(attentions(sizes, ratio))
    if shape == "heads":
        case = head_cases(sizes) if sizes.rich else union
        block = f"heads {{ {', '.join(f'{group}: {draw(case)}' for group in draw(groups_split(kv_heads)))} }}"
        return with_settings(block, draw(settings_of((), ratio, OF_PROJECTIONS))) if sizes.rich else block
    if shape == "when":
        lengths = draw(st.integers(1, 2 * sizes.tokens))
        condition = draw(st.sampled_from([f"length < {lengths}", "phase == decode", "phase == train", "phase == prefill"]))
        block = f"when {{ {condition}: {draw(union)}, else: {draw(union)} }}"
        around = tuple(name for name in DRAWN if name not in ("positions", "share_qk"))
        return with_settings(block, draw(settings_of((), ratio, around))) if sizes.rich else block
    if shape == "choose":
        return f"choose(per = {draw(st.sampled_from(('layer', 'head')))}) {{ a: {draw(union)}, b: {draw(union)} }}"
    if shape == "route":
        estimator = draw(values(fields(Router)["estimator"]))
        return f"route(per = token, by = router(linear, estimator = {estimator})) {{ a: {draw(union)}, b: {draw(union)} }}"
    if shape == "states":
        return draw(state_mixers())
    if shape == "conv":
        return print_value(draw(kinds("conv", 4)))
    if shape == "gate":
        by = draw(st.sampled_from(("sigmoid", "softmax", "product")))
        shared = ", shared = [q]" if draw(st.booleans()) else ""
        return f"gate({draw(union)}, {draw(union)}, by = {by}{shared})"
    sign = " + " if shape == "sum" else " >> "
    return sign.join(f"({draw(inner)})" for _ in range(2))


@st.composite
def head_cases(draw: st.DrawFn, sizes: Sizes) -> str:
    """What a few head groups see, with attributes of their own or decided by `when`."""
    keys = draw(unions(sizes, learned=False))
    if draw(st.integers(0, 3)) == 0:
        return f"when {{ length < {draw(st.integers(1, 2 * sizes.tokens))}: {print_keys(keys)}, else: full }}"
    return with_settings(print_keys(keys), draw(settings_of(keys, 1, OF_ONE_SOFTMAX)))


@st.composite
def spec_texts(draw: st.DrawFn, sizes: Sizes | None = None) -> str:
    """A whole legal spec."""
    sizes = sizes or Sizes()
    causal = draw(st.booleans()) if sizes.causal is None else sizes.causal
    sizes = sizes if causal else Sizes(**{**vars(sizes), "branches": False})
    width, kv_heads = draw(st.sampled_from(sizes.widths)), draw(st.integers(1, sizes.groups))
    ratio = draw(st.sampled_from(sizes.ratios))
    layers = draw(st.integers(1, sizes.layers))
    settings: dict[str, Any] = {
        "vocab": 64,
        "dim": draw(st.sampled_from((16, 24))),
        "layers": layers,
        "heads": kv_heads * ratio,
        "kv_heads": kv_heads,
        "head_dim": width,
        "ffn": draw(st.sampled_from(("swiglu(32)", "geglu(32)", "gelu(32)", "relu(32)", "none"))),
        "norm": draw(st.sampled_from(("rms(1e-6)", "rms(1e-5, centre = 1)", "layer(1e-5)"))),
        "norm_place": draw(st.sampled_from(("pre", "sandwich"))),
        "tie": draw(st.booleans()),
        "bias": draw(st.sampled_from(("none", "qkv", "all"))),
        "causal": causal,
    }
    if draw(st.booleans()):
        settings |= {"value_dim": draw(st.sampled_from(sizes.widths)), "rope_dim": draw(st.integers(1, width // 2)) * 2}
    if sizes.rich:
        settings |= {name: draw(st.sampled_from((0.5, 1.5, 2.0))) for name in draw(st.sets(st.sampled_from(OF_MODELS)))}
    body = ", ".join(f"{key} = {print_value(value)}" for key, value in settings.items())
    count = draw(st.integers(1, layers))
    names = [str(layer) for layer in range(count - 1)] + ["else" if count > 1 else "all"]
    rules = [draw(mixers(sizes, kv_heads, ratio)) for _ in names]
    if (
        sizes.rich
        and len(rules) > 1
        and rules[-2].startswith(("heads", "full", "window", "sink", "stride"))
        and draw(st.booleans())
    ):
        rules[-1] = f"({rules[-2]}) {{ qk_from = previous }}"
    cases = "\n".join(f"  {name}: {rule}" for name, rule in zip(names, rules, strict=True))
    return f"model drawn {{ {body} }}\nlayers {{\n{cases}\n}}\n"
