"""Rotary positions of a config.json, as transformers 4 (`rope_theta`, `rope_scaling`) and 5 (`rope_parameters`) write them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from attnc.checkpoint.config import Config
from attnc.checkpoint.numbers import number

LAYER_TYPES = ("full_attention", "sliding_attention")

KEYS: dict[str, frozenset[str]] = {
    "default": frozenset(),
    "linear": frozenset({"factor"}),
    "llama3": frozenset({"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"}),
    "yarn": frozenset(
        {"factor", "original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim"}
        | {"truncate"}
    ),
}
"""What each kind of stretch may hold beside `rope_type`, `type`, `rope_theta` and `partial_rotary_factor`."""


@dataclass(frozen=True)
class Rope:
    """`base` and `scale` as the language writes them: `rope = base, rope_scale = scale`. No base: no positions."""

    base: float | None
    scale: str | None = None
    share: float = 1.0


def ropes(config: Config, thetas: Mapping[str, float], share: float = 1.0) -> dict[str, Rope]:
    """The rotary setting of each layer type. `thetas`: the family's default base for each layer type; `share`: the part of a
    head's channels that is rotated there unless the checkpoint says so, 1 where it cannot.

    Gemma 3 of transformers 4 keeps the base of its window layers in `rope_local_base_freq`, and stretches only full layers.
    """
    parameters = config.get("rope_parameters")
    key = "rope_parameters"
    if parameters is None:
        parameters, key = config.get("rope_scaling"), "rope_scaling"
    if parameters is not None and not isinstance(parameters, dict):
        raise config.refuse(key, "an object is expected")
    parameters = parameters or {}
    nested = {name: parameters[name] for name in LAYER_TYPES if isinstance(parameters.get(name), dict)}
    local = len(set(thetas.values())) > 1
    found = {}
    for name in LAYER_TYPES:
        base = config.get("rope_local_base_freq" if local and name == "sliding_attention" else "rope_theta")
        default = float(base) if base is not None else thetas[name]
        flat = {} if local and name == "sliding_attention" else parameters
        found[name] = _rope(config, key, nested.get(name, {} if nested else flat), default, share)
    return found


def _rope(config: Config, key: str, parameters: dict[str, Any], default: float, share: float) -> Rope:
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if kind not in KEYS:
        raise config.refuse(key, f"the language says {', '.join(KEYS)}", part=f"rope_type {kind!r}")
    known = KEYS[kind] | {"rope_type", "type", "rope_theta", "partial_rotary_factor"}
    for name, value in parameters.items():
        if name not in known and value is not None:
            raise config.refuse(key, f"a {kind} stretch has no such part", part=f"{name} {value!r}")
    part = parameters.get("partial_rotary_factor")
    if share == 1 and part not in (None, 1, 1.0):
        raise config.refuse(key, "only 1 is read", part=f"partial_rotary_factor {part!r}")
    if share != 1:
        part = config.positive("partial_rotary_factor", share) if part is None else part
        if isinstance(part, bool) or not isinstance(part, int | float) or not 0 < part <= 1:
            raise config.refuse(key, "a number from above 0 to 1 is expected", part=f"partial_rotary_factor {part!r}")
        share = float(part)
    base = parameters.get("rope_theta")
    return Rope(float(base) if base is not None else default, _scale(config, key, kind, parameters), share)


def _scale(config: Config, key: str, kind: str, parameters: dict[str, Any]) -> str | None:
    def part(name: str) -> str:
        value = parameters.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise config.refuse(key, f"a {kind} stretch needs the number {name}", part=f"{name} {value!r}")
        return number(value)

    if kind == "linear":
        return f"linear({part('factor')})"
    if parameters.get("original_max_position_embeddings") is None:
        # transformers takes the trained length where a checkpoint does not say the original one
        parameters = parameters | {"original_max_position_embeddings": config.get("max_position_embeddings")}
    if kind == "llama3":
        low, high = part("low_freq_factor"), part("high_freq_factor")
        original = part("original_max_position_embeddings")
        return f"llama3(factor = {part('factor')}, low = {low}, high = {high}, original = {original})"
    if kind == "yarn":
        _check_yarn(config, key, parameters)
        return f"yarn({part('factor')}, original = {part('original_max_position_embeddings')})"
    return None


def _check_yarn(config: Config, key: str, parameters: dict[str, Any]) -> None:
    """The language's YaRN is the paper's: beta 32 and 1, rounded bounds, and cos and sin times 0.1 log(factor) + 1."""
    factor = parameters.get("factor")
    usual = 0.1 * math.log(factor) + 1 if isinstance(factor, int | float) and factor > 1 else 1.0
    only = {
        "beta_fast": (None, 32),
        "beta_slow": (None, 1),
        "truncate": (None, True),
        "mscale": (None, 0),
        "mscale_all_dim": (None, 0),
    }
    for name, allowed in only.items():
        if parameters.get(name) not in allowed:
            raise config.refuse(key, f"only {allowed[1]} is read", part=f"{name} {parameters[name]!r}")
    given = parameters.get("attention_factor")
    if given is not None and not math.isclose(given, usual, rel_tol=1e-9):
        raise config.refuse(key, f"only {usual!r}, which follows from the factor, is read", part=f"attention_factor {given!r}")
