"""`qk_from = previous`: q and k of the nearest earlier layer with its own, which must see the same keys with the same heads."""

from __future__ import annotations

from attnc.compiler.attributes import Attributes
from attnc.compiler.print_value import print_value
from attnc.compiler.problems import Problems
from attnc.compiler.spec import PHASES, Chain, Gate, Layer, Mixer, Sum
from attnc.compiler.walk import attentions, default_leaves, first_leaf
from attnc.dsl.source import Span

SAME = ("heads", "kv_heads", "head_dim", "rope", "rope_dim", "rope_scale", "positions", "causal", "score", "temperature")
"""What one set of attention weights depends on beside the keys."""


def check_previous(layers: tuple[Layer, ...], spans: list[Span], problems: Problems) -> None:
    """Reports layers that take q and k from nowhere, or from a layer that sees other keys."""
    own: Layer | None = None
    reported: set[Span] = set()
    for layer in layers:
        found = attentions(layer.mixer)
        takes = any(one.attributes.qk_from for one in found)
        span = spans[layer.index]
        if takes and span not in reported:
            found_here = len(problems.found)
            _check(layer, own, span, None if own is None else spans[own.index], problems)
            reported |= {span} if len(problems.found) > found_here else set()
        if found and not takes:
            own = layer


def _check(layer: Layer, own: Layer | None, span: Span, owner: Span | None, problems: Problems) -> None:
    """Reports what is wrong with a layer that takes q and k."""
    if own is None or owner is None:
        message = f"layer {layer.index} takes q and k from an earlier layer, but none before it has its own"
        help_line = "let an earlier layer compute q and k, or leave `qk_from` out"
        problems.add("A209", message, span, "an earlier layer with attention of its own", help_line)
        return
    notes = [("layer with q and k of its own", owner)]
    if any(isinstance(one.mixer, Sum | Chain | Gate) for one in (layer, own)):
        message = (
            f"`qk_from = previous` between layers of several branches is not built yet (layers {own.index}, {layer.index})"
        )
        problems.add("A101", message, span, "layers that are one mixer each", "leave `qk_from` out", notes)
        return
    different = _difference(layer, own)
    if different:
        message = f"layer {layer.index} takes q and k from layer {own.index}, but {different}"
        help_line = "let both layers see the same keys with the same heads"
        problems.add("A209", message, span, "the same key sets and heads in both", help_line, notes)


def _difference(layer: Layer, own: Layer) -> str:
    taker, owner = attentions(layer.mixer), attentions(own.mixer)
    if len(owner) != len(taker):
        return f"one has {len(owner)} key sets and the other {len(taker)}"
    for one, other in zip(owner, taker, strict=True):
        if one.keys != other.keys:
            return f"one sees `{one.origin.text}` and the other `{other.origin.text}`"
        key = _unequal(one.attributes, other.attributes)
        if key:
            values = (print_value(getattr(a.attributes, key)) for a in (one, other))
            return f"{key} is {' in one and '.join(values)} in the other"
    if _groups(layer.mixer) != _groups(own.mixer):
        return "their key sets belong to other KV groups"
    return ""


def _unequal(one: Attributes, other: Attributes) -> str:
    return next((key for key in SAME if getattr(one, key) != getattr(other, key)), "")


def _groups(mixer: Mixer) -> list[tuple[int, int]]:
    """Who owns which KV groups."""
    last = first_leaf(mixer).attributes.kv_heads - 1
    return [(leaf.first, leaf.last) for leaf in default_leaves(mixer, 0, last, frozenset(PHASES))]
