"""KV groups of a layer that are treated alike side by side: the order of the groups, and of the tensors that have them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import NamedTuple

from attnc.compiler.spec import Attention, HeadCase, Heads, Mixer, Spec
from attnc.compiler.walk import attentions

Orders = Mapping[str, tuple[int, ...]]
"""Number of a layer -> for each KV group of the built model that of the checkpoint."""

ROWS = {
    "q_proj.weight",
    "k_proj.weight",
    "v_proj.weight",
    "q_proj.bias",
    "k_proj.bias",
    "v_proj.bias",
    "q_conv.weight",
    "k_conv.weight",
    "v_conv.weight",
    "output_gate.weight",
    "sink_logit",
}
"""Tensors of a softmax whose first axis is made of heads, all of a KV group together."""

COLUMNS = {"o_proj.weight"}
SHARED = {"q_norm.weight", "k_norm.weight", "output_norm.weight", "o_proj.bias", "scale"}
"""Those that all heads share, whatever their order."""

PREFIX = "self_attn."


class Gathered(NamedTuple):
    """A spec whose equal KV groups are neighbours, and how they were moved."""

    spec: Spec
    orders: dict[str, tuple[int, ...]]


def gathered(spec: Spec, movable: Callable[[int], bool]) -> Gathered:
    """Moves the groups of layers that are one softmax with several key sets, where `movable` lets their tensors follow."""
    orders: dict[str, tuple[int, ...]] = {}
    known: dict[int, tuple[Mixer, tuple[int, ...] | None]] = {}
    layers = []
    for layer in spec.layers:
        if id(layer.mixer) not in known:
            known[id(layer.mixer)] = _side_by_side(layer.mixer)
        mixer, order = known[id(layer.mixer)]
        if order is not None and movable(layer.index):
            orders[str(layer.index)] = order
            layers.append(replace(layer, mixer=mixer))
        else:
            layers.append(layer)
    return Gathered(replace(spec, layers=tuple(layers)) if orders else spec, orders)


def follows(names: Iterable[str]) -> bool:
    """Whether all tensors of a layer's softmax are of heads in a known way, or of no heads; `names` below `self_attn`."""
    return set(names) <= ROWS | COLUMNS | SHARED


def _side_by_side(mixer: Mixer) -> tuple[Mixer, tuple[int, ...] | None]:
    """(the mixer with equal cases joined, the order of its groups); None where they lie so already, or cannot be moved."""
    if not isinstance(mixer, Heads) or not all(isinstance(case.mixer, Attention) for case in mixer.cases):
        return mixer, None
    if any(one.attributes.kv_latent is not None or one.attributes.qk_from for one in attentions(mixer)):
        return mixer, None
    kinds = list(dict.fromkeys(case.mixer for case in mixer.cases))
    if len(kinds) == len(mixer.cases):
        return mixer, None
    order: list[int] = []
    cases = []
    for kind in kinds:
        mine = [group for case in mixer.cases if case.mixer == kind for group in range(case.first, case.last + 1)]
        cases.append(HeadCase(first=len(order), last=len(order) + len(mine) - 1, mixer=kind))
        order += mine
    return Heads(cases=tuple(cases)), tuple(order)


def axis_of(name: str) -> tuple[str, int] | None:
    """(layer, axis) of a tensor that is made of heads."""
    words = name.split(".", 3)
    if words[:2] != ["model", "layers"] or len(words) < 4 or not words[3].startswith(PREFIX):
        return None
    own = words[3].removeprefix(PREFIX)
    return (words[2], 0) if own in ROWS else (words[2], 1) if own in COLUMNS else None


def inverse(order: tuple[int, ...]) -> tuple[int, ...]:
    """The order that undoes another."""
    return tuple(sorted(range(len(order)), key=order.__getitem__))
