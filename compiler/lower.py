"""Typed expression + inherited attributes -> mixer of the Spec. Sizes and attributes are checked here."""

from __future__ import annotations

from dataclasses import replace

from attnc.compiler.attributes import OF_ALL, Attributes
from attnc.compiler.expressions import Altered, Attributed, Cases, Keys, Lone, Several, Typed, Wrapped
from attnc.compiler.fields import fields
from attnc.compiler.lower_blocks import lower_block
from attnc.compiler.lower_wrapped import lower_change, lower_context, lower_select
from attnc.compiler.mixer import Kind
from attnc.compiler.mixers import MIXERS
from attnc.compiler.model_settings import Given
from attnc.compiler.overlay import check_keys
from attnc.compiler.part_names import part_names
from attnc.compiler.problems import one_of
from attnc.compiler.scope import Scope
from attnc.compiler.sharing import on_heads, share_weights
from attnc.compiler.spec import Attention, Chain, Choose, Gate, Heads, Mixer, Mixing, Sum, When
from attnc.compiler.tuning import GateArguments
from attnc.compiler.walk import leaves
from attnc.dsl.source import Span


def lower(typed: Typed, scope: Scope) -> Mixer | None:
    """The mixer, or None after a mistake."""
    match typed:
        case Keys():
            return _attention(typed, scope)
        case Lone():
            return _mixing(typed, scope)
        case Altered():
            return lower_change(typed, scope)
        case Attributed(body=Lone(kind=kind), settings=settings) if _meaningless(kind, settings):
            _report_meaningless(kind, settings, scope)
            return None
        case Attributed(body=body, settings=settings):
            return _attributed(body, settings, scope)
        case Several():
            return _several(typed, scope)
        case Wrapped(word="context"):
            return lower_context(typed, scope, lower)
        case Wrapped():
            return lower_select(typed, scope, lower)
        case Cases():
            return lower_block(typed, scope, lower)
        case _:
            return None


def _attributed(body: Typed, settings: Given, scope: Scope) -> Mixer | None:
    """A mixer under braces."""
    match body:
        case Several(word="chain"):
            return _chain(body, settings, scope)
        case Attributed(body=Several(word="chain") as chain, settings=inner):
            return _chain(chain, {**settings, **inner}, scope)
        case _:
            return lower(body, scope.under(settings))


def _meaningless(kind: Kind, settings: Given) -> list[str]:
    """The attributes given to a kind that mean nothing for it."""
    takes = MIXERS[kind.kind].takes
    return [] if takes is None else [key for key in settings if key not in takes(kind) | OF_ALL]


def _report_meaningless(kind: Kind, settings: Given, scope: Scope) -> None:
    key, takes = _meaningless(kind, settings)[0], MIXERS[kind.kind].takes
    assert takes is not None, "a kind without a list takes every attribute"
    taken = sorted(takes(kind) - OF_ALL)
    message = f"`{key}` has no meaning for `{kind.kind}`"
    expected = one_of(taken, f"an attribute of `{kind.kind}`") if taken else f"`{kind.kind}` without attributes"
    scope.problems.add("A213", message, settings[key][1], expected, f"leave `{key}` out")


def _attention(typed: Keys, scope: Scope) -> Attention | None:
    attributes = scope.attributes(True, typed.node.span)
    if attributes is None or not check_keys(typed.kinds, attributes, typed.node.span, scope.problems):
        return None
    span = typed.node.span
    sound = [_looks_on(kind, attributes, span, scope) and _fits(kind, attributes, span, scope) for kind in typed.kinds]
    if not all(sound):
        return None
    return Attention(keys=typed.kinds, attributes=attributes, origin=scope.origin(typed.node))


def _mixing(typed: Lone, scope: Scope) -> Mixing | None:
    span = typed.node.span
    attributes = scope.attributes(False, span)
    if attributes is None:
        return None
    attributes = _taken(typed.kind, attributes)
    if not _looks_on(typed.kind, attributes, span, scope) or not _fits(typed.kind, attributes, span, scope):
        return None
    return Mixing(kind=typed.kind, attributes=attributes, origin=scope.origin(typed.node))


def _taken(kind: Kind, attributes: Attributes) -> Attributes:
    """The attributes without what a kind inherits and has no use for: a `scale` of the model is none of a `conv`."""
    takes = MIXERS[kind.kind].takes
    if takes is None:
        return attributes
    plain = {key: field.default for key, field in fields(Attributes).items() if not field.required} | {"rope": None}
    return replace(attributes, **{key: value for key, value in plain.items() if key not in takes(kind) | OF_ALL})


def _looks_on(kind: Kind, attributes: Attributes, span: Span, scope: Scope) -> bool:
    """No kind that looks back only stands where both directions are seen."""
    if attributes.causal or not MIXERS[kind.kind].looks_back(kind):
        return True
    message = f"`{kind.kind}` looks back only, but `causal = false` is set"
    help_line = "write a key set such as `window(n)`, or set `causal = true`"
    scope.problems.add("A300", message, span, "a kind that sees both directions", help_line)
    return False


def _fits(kind: Kind, attributes: Attributes, span: Span, scope: Scope) -> bool:
    """What a kind asks of its attributes and of the model holds."""
    broken = list(MIXERS[kind.kind].fits(kind, attributes, scope.model))
    for one in broken:
        scope.problems.add(one.code, one.message, span, one.expected, one.help)
    return not broken


def _several(typed: Several, scope: Scope) -> Sum | Chain | Gate | None:
    lowered = [lower(part, scope) for part in typed.parts]
    parts = tuple(part for part in lowered if part is not None)
    if len(parts) < len(lowered):
        return None
    names = part_names([part.name for part in typed.parts])
    if typed.word == "sum":
        return Sum(names=names, parts=parts)
    if typed.word == "chain":
        return Chain(names=names, parts=parts)
    assert isinstance(typed.arguments, GateArguments)
    shared = typed.arguments.shared
    if shared and not _shares(parts, shared, typed, scope):
        return None
    return Gate(names=names, parts=parts, by=typed.arguments.by, shared=shared, origin=scope.origin(typed.node))


BEFORE, BEHIND = ("activation", "input_ema"), ("output_norm", "output_gate", "scale")
"""Attributes of a chain that stand before its first mixer, and those that stand behind its last."""


def _chain(typed: Several, settings: Given, scope: Scope) -> Chain | None:
    """Braces around a chain: what stands before the projections holds for its first mixer, and what stands behind the kind for
    its last, whose output gate then reads what the chain reads; all else for every mixer in it.
    """
    mixers = [part for part in typed.parts if not isinstance(part, Altered)]
    lowered = [
        lower(part, scope.under(scope.kept(_share(settings, part is mixers[0], part is mixers[-1])))) for part in typed.parts
    ]
    parts = tuple(part for part in lowered if part is not None)
    if len(parts) < len(lowered):
        return None
    last = typed.parts[-1]
    own = isinstance(last, Attributed) and "output_gate" in last.settings
    gated = settings.get("output_gate", (None, None))[0] is not None and not own
    return Chain(names=part_names([part.name for part in typed.parts]), parts=parts, gated=gated)


def _share(settings: Given, first: bool, last: bool) -> Given:
    away = (() if first else BEFORE) + (() if last else BEHIND)
    return {key: value for key, value in settings.items() if key not in away}


def _shares(parts: tuple[Mixer, ...], shared: tuple[str, ...], typed: Several, scope: Scope) -> bool:
    """The branches of a gate have the projections that they shall share, of the same shapes."""
    span = typed.node.span
    if not all(isinstance(part, Attention | Heads | When | Choose) or on_heads(part) for part in parts):
        message = f"`shared = [{', '.join(shared)}]` needs branches with projections of their own"
        expected = "branches that are softmax over key sets"
        scope.problems.add("A208", message, span, expected, "leave `shared` out")
        return False
    return share_weights([leaf for part in parts for leaf in leaves(part)], "gate", span, scope.problems)
