"""What a layer takes over from the nearest earlier one: q and k (`qk_from = previous`), or a choice (`from = previous`).

Neither reaches over a change of the sequence: the tokens before it are others.
"""

from __future__ import annotations

from attnc.compiler.attributes import Attributes
from attnc.compiler.fields import fields
from attnc.compiler.mixer import Kind
from attnc.compiler.print_value import print_value
from attnc.compiler.problems import Problems
from attnc.compiler.spec import PHASES, Attention, Chain, Change, Choose, Gate, Layer, Mixer, Sum
from attnc.compiler.walk import attentions, children, default_leaves, every, first_leaf
from attnc.dsl.source import Span

SAME = ("heads", "kv_heads", "head_dim", "rope", "rope_dim", "rope_scale", "positions", "causal", "score", "temperature")
"""What one set of attention weights depends on beside the keys."""


def check_previous(layers: tuple[Layer, ...], spans: list[Span], problems: Problems) -> None:
    """Reports layers that take something from nowhere, or q and k from a layer that sees other keys."""
    own: Layer | None = None
    choice: Layer | None = None
    reported: set[Span] = set()
    for layer in layers:
        if any(isinstance(one, Change) for one in every(layer.mixer)):
            own = choice = None
        found = held(layer.mixer)
        takes = any(one.attributes.qk_from for one in found)
        span = spans[layer.index]
        before = len(problems.found)
        if takes and span not in reported:
            _check(layer, own, span, None if own is None else spans[own.index], problems)
        if choice is None and span not in reported:
            _check_choice(layer, found, span, problems)
        reported |= {span} if len(problems.found) > before else set()
        if found and not takes:
            own = layer
        if any(makes_choice(kind) for one in found for kind in one.keys):
            choice = layer


def held(mixer: Mixer) -> list[Attention]:
    """The attentions of a layer with every `choose` at its default: the tuner offers no layer what it cannot have."""
    if isinstance(mixer, Attention):
        return [mixer]
    inner = children(mixer)[:1] if isinstance(mixer, Choose) else children(mixer)
    return [one for part in inner for one in held(part)]


def takes_choice(kind: Kind) -> bool:
    """Whether a kind takes over the choice of an earlier layer."""
    field = fields(type(kind)).get("from")
    return field is not None and getattr(kind, field.name) is not None


def makes_choice(kind: Kind) -> bool:
    """Whether a layer of this kind has a choice that a later one may take over: its own, or its largest weights."""
    return kind.kind == "full" or ("from" in fields(type(kind)) and not takes_choice(kind))


def _check_choice(layer: Layer, found: list[Attention], span: Span, problems: Problems) -> None:
    """Reports a layer that takes a choice, where none before it makes one."""
    if any(makes_choice(kind) for one in found for kind in one.keys):
        return
    if any(takes_choice(kind) for one in found for kind in one.keys):
        message = f"layer {layer.index} takes over an earlier layer's choice, but none before it makes one"
        help_line = "let an earlier layer be `full` or choose for itself, or leave `from` out"
        problems.add("A209", message, span, "an earlier layer that is `full` or has a `routed` of its own", help_line)


def _check(layer: Layer, own: Layer | None, span: Span, owner: Span | None, problems: Problems) -> None:
    """Reports what is wrong with a layer that takes q and k."""
    if own is None or owner is None:
        message = f"layer {layer.index} takes q and k from an earlier layer, but none before it has its own"
        help_line = "let an earlier layer compute q and k, or leave `qk_from` out"
        problems.add("A209", message, span, "an earlier layer with attention of its own", help_line)
        return
    if in_branches(layer.mixer) or in_branches(own.mixer):
        return  # whose q and k are meant is for the reference to say
    different = _difference(layer, own)
    if different:
        notes = [("layer with q and k of its own", owner)]
        message = f"layer {layer.index} takes q and k from layer {own.index}, but {different}"
        help_line = "let both layers see the same keys with the same heads"
        problems.add("A209", message, span, "the same key sets and heads in both", help_line, notes)


def in_branches(mixer: Mixer) -> bool:
    """Whether a layer has several sets of q and k."""
    return any(isinstance(one, Sum | Chain | Gate) for one in every(mixer))


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
