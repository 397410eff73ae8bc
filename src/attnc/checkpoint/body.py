"""From a configuration to what a spec says: the body around the mixers, and one row for each layer."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from typing import Any

from attnc.checkpoint import spaces, states
from attnc.checkpoint.config import Config
from attnc.checkpoint.families import FAMILIES, GELU, Family
from attnc.checkpoint.numbers import number
from attnc.checkpoint.problem import problem
from attnc.checkpoint.rope import Rope, ropes
from attnc.checkpoint.row import Row
from attnc.dsl.diagnostic import SpecError, closest

ACTIVATIONS = {"silu": "swiglu", "swish": "swiglu", GELU: "geglu"}
"""The gate's activation in a config.json, and the feed-forward part that has it."""


@dataclass(frozen=True)
class Body:
    """`settings`: the model's settings in lines of the spec, without the rotary ones; `rows`: one for each layer."""

    settings: tuple[tuple[tuple[str, str], ...], ...]
    rows: tuple[Row, ...]


def body(config: Config) -> Body:
    """Read a configuration. Errors: A522 to A525, each naming the key and its value."""
    family = family_of(config)
    check_keys(config, family)
    layers = config.integer("num_hidden_layers")
    heads = config.integer("num_attention_heads")
    dim = config.integer("hidden_size")
    head_dim = config.integer("head_dim", family.defaults.get("head_dim", max(1, dim // heads)))
    shape = [
        ("vocab", str(config.integer("vocab_size"))),
        ("dim", str(dim)),
        ("layers", str(layers)),
        ("context", str(config.integer("max_position_embeddings", family.defaults["max_position_embeddings"]))),
    ]
    attention = [
        ("heads", str(heads)),
        ("kv_heads", str(config.integer("num_key_value_heads", family.defaults.get("num_key_value_heads", heads)))),
        ("head_dim", str(head_dim)),
    ]
    attention += [("qk_norm", "rms")] if family.qk_norm else []
    lines = (shape, _block(config, family), attention, _scales(config, family, dim, head_dim))
    return Body(tuple(tuple(line) for line in lines if line), rows(config, family, layers))


def family_of(config: Config) -> Family:
    """The family of a configuration. Errors: A522 where there is none."""
    found = config.get("model_type")
    if found not in FAMILIES:
        near = closest(str(found), FAMILIES) if found else ""
        expected = f"model types that can be imported: {', '.join(FAMILIES)}"
        raise problem(
            "A522", f"model_type = {found!r} cannot be imported", span=config.span("model_type"), help=near or expected
        )
    family = FAMILIES[found]
    named = config.get("architectures", [family.architecture])
    if family.architecture not in named:
        raise config.refuse("architectures", f"{family.architecture} is expected")
    return family


def check_keys(config: Config, family: Family) -> None:
    """Every key must be known, and have a value that can be said. Errors: A523 and A524, all of them at once."""
    found = []
    for key, value in config.values.items():
        if value is None:
            continue
        only = family.only(key)
        if not family.knows(key):
            found.append(_unknown(config, key, value))
        elif only is not None and value not in only:
            allowed = " or ".join(json.dumps(one) for one in only)
            found.append(config.refuse(key, f"{allowed} is expected" if allowed else "no such thing can be said"))
    if found:
        raise SpecError([diagnostic for error in found for diagnostic in error.diagnostics])


def _unknown(config: Config, key: str, value: Any) -> SpecError:
    text = repr(value) if len(repr(value)) <= 60 else repr(value)[:57] + "..."
    advice = "if it does not change what the model computes, remove it from the configuration and import again"
    return problem("A524", f"the config key {key} = {text} is not known", span=config.span(key), help=advice)


def _block(config: Config, family: Family) -> list[tuple[str, str]]:
    """The feed-forward part, the norms, the tied head and the biases."""
    activation = config.get(family.activation, family.defaults.get(family.activation))
    if family.activation == "hidden_act" and family.gemma:
        activation = GELU
    if activation not in ACTIVATIONS:
        raise config.refuse(family.activation, f"{', '.join(ACTIVATIONS)} can be said")
    epsilon = number(_epsilon(config.positive("rms_norm_eps", family.defaults["rms_norm_eps"])))
    found = [
        ("ffn", f"{ACTIVATIONS[activation]}({config.integer('intermediate_size')})"),
        ("norm", f"rms({epsilon}, centre = 1)" if family.gemma or family.centre else f"rms({epsilon})"),
    ]
    found += [("norm_place", "sandwich")] if family.sandwich else []
    found += [("tie", "true")] if config.flag("tie_word_embeddings", family.defaults["tie_word_embeddings"]) else []
    bias = _bias(config, family)
    return [*found, ("bias", bias)] if bias else found


def _epsilon(value: float) -> float:
    """GGUF keeps numbers in float32: the shortest decimal that is the same float32 is what was meant."""
    single = struct.unpack("f", struct.pack("f", value))[0]
    if single != value:
        return value
    for digits in range(1, 10):
        short = float(f"{value:.{digits}g}")
        if struct.unpack("f", struct.pack("f", short))[0] == single:
            return short
    return value


def _bias(config: Config, family: Family) -> str:
    if family.qkv_bias:
        return "qkv"
    if "mlp_bias" not in family.read:
        return ""
    attention, feed_forward = config.flag("attention_bias", False), config.flag("mlp_bias", False)
    if attention != feed_forward:
        raise config.refuse("attention_bias", f"it must equal mlp_bias, which is {str(feed_forward).lower()}")
    return "all" if attention else ""


def _scales(config: Config, family: Family, dim: int, head_dim: int) -> list[tuple[str, str]]:
    """What only Gemma has: scaled embeddings, capped scores and logits, another width in the score's scale."""
    if not family.gemma:
        return []
    found = [("embedding_scale", number(dim**0.5))]
    for key, setting in (("attn_logit_softcapping", "score_cap"), ("final_logit_softcapping", "logit_cap")):
        if key in family.read and _said(config, family, key) is not None:
            found.append((setting, number(config.positive(key, family.defaults.get(key)))))
    if "query_pre_attn_scalar" in family.read:
        scalar = config.positive("query_pre_attn_scalar", family.defaults["query_pre_attn_scalar"])
        found += [("score_scale", number(scalar**-0.5))] if scalar != head_dim else []
    return found


def _said(config: Config, family: Family, key: str) -> Any:
    """The value of a key that null turns off: a missing key has the family's default, a null one is none."""
    return config.values[key] if key in config.values else family.defaults.get(key)


def rows(config: Config, family: Family, layers: int) -> tuple[Row, ...]:
    """One row for each layer."""
    bases = {"full_attention": family.theta, "sliding_attention": family.local_theta or family.theta}
    positions = ropes(config, bases, family.rotated)
    if family.states:
        return states.rows(config, family, layers, positions["full_attention"])
    if family.spaces:
        return spaces.rows(config, family, layers, positions["full_attention"])
    rotated = _rotated(config, family, layers)
    kinds = _layer_types(config, family, layers, rotated)
    window = (
        f"window({config.integer('sliding_window', family.defaults.get('sliding_window'))})" if set(kinds) != {_FULL} else ""
    )
    return tuple(
        Row("full" if kind == _FULL else window, positions[kind] if has else Rope(None))
        for kind, has in zip(kinds, rotated, strict=True)
    )


_FULL, _WINDOW = "full_attention", "sliding_attention"


def _rotated(config: Config, family: Family, layers: int) -> list[bool]:
    """SmolLM3 leaves the positions out of some layers."""
    if "no_rope_layers" not in family.read:
        return [True] * layers
    listed = config.get("no_rope_layers")
    if listed is None:
        interval = config.integer("no_rope_layer_interval", family.defaults["no_rope_layer_interval"])
        return [(layer + 1) % interval != 0 for layer in range(layers)]
    if not isinstance(listed, list) or len(listed) < layers or any(one not in (0, 1) for one in listed):
        raise config.refuse("no_rope_layers", f"a list of {layers} numbers, 1 for a layer with positions, is expected")
    return [bool(one) for one in listed[:layers]]


def _layer_types(config: Config, family: Family, layers: int, rotated: list[bool]) -> list[str]:
    """Which layers see a window. A checkpoint says so in `layer_types`, or each family in its own older way."""
    if "sliding_window" not in family.read:
        return [_FULL] * layers
    windowed = _said(config, family, "sliding_window") is not None
    if "use_sliding_window" in family.read:
        windowed = windowed and config.flag("use_sliding_window", False)
    if "layer_types" in family.read and config.get("layer_types") is not None:
        return _listed(config, layers, windowed)
    if not windowed:
        return [_FULL] * layers
    if "max_window_layers" in family.read:
        first = config.get("max_window_layers", family.defaults["max_window_layers"])
        first = 0 if first == 0 else config.integer("max_window_layers", first)
        return [_WINDOW if layer >= first else _FULL for layer in range(layers)]
    if "no_rope_layers" in family.read:
        return [_FULL if has else _WINDOW for has in rotated]
    if family.sandwich:
        pattern = config.get("sliding_window_pattern", config.get("_sliding_window_pattern", 6 if family.local_theta else 2))
        return [_WINDOW if (layer + 1) % pattern else _FULL for layer in range(layers)]
    return [_WINDOW] * layers


def _listed(config: Config, layers: int, windowed: bool) -> list[str]:
    listed = config.get("layer_types")
    if not isinstance(listed, list) or len(listed) != layers:
        raise config.refuse("layer_types", f"a list of {layers} layer types is expected")
    for one in listed:
        if one not in (_FULL, _WINDOW):
            raise config.refuse("layer_types", f"{_FULL} and {_WINDOW} can be said", part=repr(one))
    if _WINDOW in listed and not windowed:
        raise config.refuse("layer_types", f"{_WINDOW} needs a sliding_window, which is turned off")
    return listed
