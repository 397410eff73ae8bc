"""Typed expression + inherited attributes -> mixer of the Spec. Sizes, groups and conditions are checked here."""

from __future__ import annotations

from dataclasses import dataclass, replace

from attnc.compiler.attributes import Attributes
from attnc.compiler.conditions import read_condition
from attnc.compiler.expressions import Attributed, Cases, Keys, Lone, Several, Typed
from attnc.compiler.groups import split
from attnc.compiler.mixer import Kind
from attnc.compiler.mixers import MIXERS
from attnc.compiler.model_settings import Given
from attnc.compiler.origin import one_line, origin
from attnc.compiler.overlay import check_keys, resolve_attributes
from attnc.compiler.part_names import part_names
from attnc.compiler.place import Place
from attnc.compiler.problems import one_of
from attnc.compiler.sharing import is_attention, one_launch, routes_plainly, share_weights
from attnc.compiler.spec import (
    Alternative,
    Attention,
    Chain,
    Choose,
    Gate,
    HeadCase,
    Heads,
    Mixer,
    Mixing,
    Model,
    Route,
    Router,
    Sum,
    When,
    WhenCase,
)
from attnc.compiler.tuning import ChooseArguments, GateArguments, RouteArguments
from attnc.compiler.value import Value
from attnc.compiler.walk import leaves
from attnc.dsl import tree
from attnc.dsl.source import Span


@dataclass(frozen=True)
class Scope:
    """What a mixer stands in: the model, its attributes, the settings around it (outermost first), and blocks around it."""

    model: Model
    inherited: Given
    place: Place
    settings: tuple[Given, ...] = ()
    inside: tuple[str, ...] = ()

    def attributes(self, keys: bool, span: Span) -> Attributes | None:
        """The attributes that hold here."""
        return resolve_attributes(self.model, self.inherited, self.settings, keys, span, self.place.problems)


def lower(typed: Typed, scope: Scope) -> Mixer | None:
    """The mixer, or None after a mistake."""
    match typed:
        case Keys():
            return _attention(typed, scope)
        case Lone():
            return _mixing(typed, scope)
        case Attributed(body=Lone(kind=kind), settings=settings) if _meaningless(kind, settings):
            key = _meaningless(kind, settings)[0]
            taken = sorted(MIXERS[kind.kind].attributes or ())
            message = f"`{key}` has no meaning for `{kind.kind}`, which has projections of its own"
            expected = one_of(taken, f"an attribute of `{kind.kind}`") if taken else f"`{kind.kind}` without attributes"
            scope.place.problems.add("A213", message, settings[key][1], expected, f"leave `{key}` out")
            return None
        case Attributed(body=body, settings=settings):
            return lower(body, replace(scope, settings=(*scope.settings, settings)))
        case Several():
            return _several(typed, scope)
        case Cases(word="heads"):
            return _heads(typed, scope)
        case Cases(word="when"):
            return _when(typed, scope)
        case Cases(word="choose"):
            return _choose(typed, scope)
        case Cases():
            return _route(typed, scope)
        case _:
            return None


def _meaningless(kind: Kind, settings: Given) -> list[str]:
    """The attributes given to a kind that mean nothing for it."""
    taken = MIXERS[kind.kind].attributes
    return [] if taken is None else [key for key in settings if key not in taken]


def _attention(typed: Keys, scope: Scope) -> Attention | None:
    attributes = scope.attributes(True, typed.node.span)
    if attributes is None or not check_keys(typed.kinds, attributes, typed.node.span, scope.place.problems):
        return None
    return Attention(keys=typed.kinds, attributes=attributes, origin=origin(typed.node))


def _mixing(typed: Lone, scope: Scope) -> Mixing | None:
    attributes = scope.attributes(False, typed.node.span)
    if attributes is None:
        return None
    if MIXERS[typed.kind.kind].causal_only and not attributes.causal:
        message = f"`{typed.kind.kind}` looks back only, but `causal = false` is set"
        help_line = "write a key set such as `window(n)`, or set `causal = true`"
        scope.place.problems.add("A300", message, typed.node.span, "a kind that sees both directions", help_line)
        return None
    return Mixing(kind=typed.kind, attributes=attributes, origin=origin(typed.node))


def _several(typed: Several, scope: Scope) -> Sum | Chain | Gate | None:
    span, problems = typed.node.span, scope.place.problems
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
    if shared and not share_weights([leaf for part in parts for leaf in leaves(part)], "gate", span, problems):
        return None
    if shared and not all(isinstance(part, Attention | Heads | When | Choose) for part in parts):
        message = f"`shared = [{', '.join(shared)}]` needs branches with projections of their own"
        expected = "branches that are softmax over key sets"
        problems.add("A208", message, span, expected, "leave `shared` out")
        return None
    return Gate(names=names, parts=parts, by=typed.arguments.by, shared=shared, origin=origin(typed.node))


def _heads(typed: Cases, scope: Scope) -> Mixer | None:
    span, problems = typed.node.span, scope.place.problems
    assert isinstance(typed.node, tree.Block | tree.Union)
    if "heads" in scope.inside:
        message = "`heads` within `heads`: a case is one owner of its KV groups"
        problems.add("A214", message, span, "a mixer without `heads`", "write one `heads` with more cases")
        return None
    attributes = scope.attributes(True, span)
    if attributes is None:
        return None
    block = _block_of(typed)
    runs = split(block, attributes.kv_heads, problems)
    lowered = [lower(body, replace(scope, inside=(*scope.inside, "heads"))) for _, body in typed.cases]
    if runs is None or any(mixer is None for mixer in lowered):
        return None
    mixers = [mixer for mixer in lowered if mixer is not None]
    every = [leaf for mixer in mixers for leaf in leaves(mixer)]
    if not _owned_by_heads(mixers, typed, scope) or not share_weights(every, "heads", span, problems, attributes):
        return None
    return Heads(cases=tuple(HeadCase(first=first, last=last, mixer=mixers[index]) for first, last, index in runs))


def _block_of(typed: Cases) -> tree.Block:
    """The block whose selectors the cases have, which a union may have been distributed over."""
    word = tree.Name(typed.word, typed.node.span)
    return tree.Block(word, (), tuple(case for case, _ in typed.cases), typed.node.span)


def _owned_by_heads(mixers: list[Mixer], typed: Cases, scope: Scope) -> bool:
    """Each case of `heads` is attention, so that all share q, k, v and o."""
    for mixer, (case, _) in zip(mixers, typed.cases, strict=True):
        if isinstance(mixer, Sum | Chain | Gate | Mixing | Route):
            message = f"a case of `heads` shares the layer's q, k, v and o, but `{one_line(case.body)}` has weights of its own"
            expected = "a key set, or `when` or `choose` between key sets"
            scope.place.problems.add(
                "A208", message, case.body.span, expected, "add it to the whole layer: `heads { ... } + B`"
            )
            return False
    return True


def _when(typed: Cases, scope: Scope) -> Mixer | None:
    span, problems = typed.node.span, scope.place.problems
    cases: list[WhenCase] = []
    sound, decided = True, False
    for case, body in typed.cases:
        at = scope.place.at(*typed.path, "when")
        is_else = isinstance(case.selector, tree.Else)
        condition = True if is_else else read_condition(case.selector, scope.model.dim, at)
        mixer = lower(body, replace(scope, inside=(*scope.inside, "when")))
        if condition is None or mixer is None:
            sound = False
        elif not decided and condition is not False:
            twice = condition is not True and any(condition == one.condition for one in cases)
            if twice:
                message = f"`{one_line(case.selector)}` was tested before, so this case is never taken"
                problems.add("A210", message, case.selector.span, "each condition once", "remove the case")
                sound = False
            cases.append(WhenCase(condition=None if condition is True else condition, mixer=mixer))
            decided = condition is True
    if sound and not decided:
        message = "`when` has no `else`, so nothing may hold"
        problems.add("A210", message, span, "a last case `else`", "add `else: full`, or what shall hold otherwise")
        return None
    if not sound or not share_weights([leaf for one in cases for leaf in leaves(one.mixer)], "when", span, problems):
        return None
    mixers = [case.mixer for case in cases]
    if len(cases) > 1 and not (is_attention(mixers, "when", span, problems) and one_launch(mixers, "when", span, problems)):
        return None
    return cases[0].mixer if len(cases) == 1 else When(cases=tuple(cases))


def _alternatives(typed: Cases, scope: Scope) -> tuple[Alternative, ...] | None:
    found = []
    for case, body in typed.cases:
        assert isinstance(case.selector, tree.Name)
        mixer = lower(body, replace(scope, inside=(*scope.inside, typed.word)))
        if mixer is not None:
            found.append(Alternative(name=case.selector.text, mixer=mixer))
    return tuple(found) if len(found) == len(typed.cases) else None


def _choose(typed: Cases, scope: Scope) -> Choose | None:
    span, problems = typed.node.span, scope.place.problems
    alternatives = _alternatives(typed, scope)
    assert isinstance(typed.arguments, ChooseArguments)
    if alternatives is None:
        return None
    every = [leaf for alternative in alternatives for leaf in leaves(alternative.mixer)]
    mixers = [alternative.mixer for alternative in alternatives]
    if not is_attention(mixers, "choose", span, problems) or not share_weights(every, "choose", span, problems):
        return None
    by = typed.arguments.by
    return Choose(per=typed.arguments.per, by=by.model_dump() if isinstance(by, Value) else None, alternatives=alternatives)


def _route(typed: Cases, scope: Scope) -> Route | None:
    span, problems = typed.node.span, scope.place.problems
    alternatives = _alternatives(typed, scope)
    arguments = typed.arguments
    assert isinstance(arguments, RouteArguments)
    assert arguments.per == "token", "other routes are not built yet"
    if alternatives is None:
        return None
    for alternative, (case, _) in zip(alternatives, typed.cases, strict=True):
        if not isinstance(alternative.mixer, Attention):
            message = f"`route(per = token)` sends keys, but `{one_line(case.body)}` is not a key set under one softmax"
            problems.add("A214", message, case.body.span, "a key set", "move the block around the `route`")
            return None
    every = [leaf for alternative in alternatives for leaf in leaves(alternative.mixer)]
    mixers = [alternative.mixer for alternative in alternatives]
    if not share_weights(every, "route", span, problems) or not one_launch(mixers, "route", span, problems):
        return None
    if not routes_plainly(every[0].attributes, span, problems):
        return None
    by = arguments.by.model_dump(exclude={"word"})
    return Route(per="token", router=Router(**by), alternatives=alternatives, origin=origin(typed.node))
