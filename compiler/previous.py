"""`qk_from = previous`: q and k of the nearest earlier layer with its own, which must see the same keys with the same heads."""

from __future__ import annotations

from attnc.compiler.attributes import Attributes
from attnc.compiler.lower import leaves
from attnc.compiler.problems import Problems
from attnc.compiler.spec import Attention, Chain, Gate, Layer, Mixer, Sum
from attnc.dsl.source import Span

SAME = ("heads", "kv_heads", "head_dim", "rope", "rope_dim", "rope_scale", "positions", "causal", "score", "temperature")
"""What one set of attention weights depends on beside the keys."""


def check_previous(layers: tuple[Layer, ...], spans: list[Span], problems: Problems) -> None:
    """Reports layers that take q and k from nowhere, or from a layer that sees other keys."""
    own: int | None = None
    reported: set[Span] = set()
    for layer in layers:
        found = attentions(layer.mixer)
        takes = [one for one in found if one.attributes.qk_from]
        span = spans[layer.index]
        if takes and span not in reported:
            if own is None:
                message = f"layer {layer.index} takes q and k from an earlier layer, but none before it has its own"
                help_line = "let an earlier layer compute q and k, or leave `qk_from` out"
                problems.add("A209", message, span, "an earlier layer with attention of its own", help_line)
                reported.add(span)
            else:
                different = _difference(attentions(layers[own].mixer), found)
                if different:
                    message = f"layer {layer.index} takes q and k from layer {own}, but {different}"
                    notes = [("layer with q and k of its own", spans[own])]
                    help_line = "let both layers see the same keys with the same heads"
                    problems.add("A209", message, span, "the same key sets and heads in both", help_line, notes)
                    reported.add(span)
        if found and not takes:
            own = layer.index


def attentions(mixer: Mixer) -> list[Attention]:
    """All attentions of a layer, in the order written."""
    if isinstance(mixer, Sum | Chain | Gate):
        return [one for part in mixer.parts for one in attentions(part)]
    return [leaf for leaf in leaves(mixer) if isinstance(leaf, Attention)]


def _difference(owner: list[Attention], taker: list[Attention]) -> str:
    if len(owner) != len(taker):
        return f"one has {len(owner)} attentions and the other {len(taker)}"
    for one, other in zip(owner, taker, strict=True):
        if one.keys != other.keys:
            return f"one sees `{one.origin.text}` and the other `{other.origin.text}`"
        key = _unequal(one.attributes, other.attributes)
        if key:
            return f"{key} is {getattr(one.attributes, key)} in one and {getattr(other.attributes, key)} in the other"
    return ""


def _unequal(one: Attributes, other: Attributes) -> str:
    return next((key for key in SAME if getattr(one, key) != getattr(other, key)), "")
