"""heads, when, choose and route: who owns which KV groups, which conditions decide, and what the cases have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from attnc.compiler.conditions import read_condition
from attnc.compiler.expressions import Cases, Typed
from attnc.compiler.groups import split
from attnc.compiler.origin import one_line
from attnc.compiler.part_names import part_names
from attnc.compiler.scope import Scope
from attnc.compiler.sharing import on_heads, same_groups, share_weights
from attnc.compiler.spec import (
    Alternative,
    Attention,
    Choose,
    Condition,
    HeadCase,
    Heads,
    Mixer,
    Route,
    When,
    WhenCase,
)
from attnc.compiler.tuning import ChooseArguments, Chunk, RouteArguments, Router
from attnc.compiler.walk import children, leaves
from attnc.dsl import tree

Lower = Callable[[Typed, Scope], Mixer | None]


def lower_block(typed: Cases, scope: Scope, lower: Lower) -> Mixer | None:
    """The block, or None after a mistake."""
    match typed.word:
        case "heads":
            return _heads(typed, scope, lower)
        case "when":
            return _when(typed, scope, lower)
        case "choose":
            return _choose(typed, scope, lower)
        case _:
            return _route(typed, scope, lower)


def _heads(typed: Cases, scope: Scope, lower: Lower) -> Mixer | None:
    span, problems = typed.node.span, scope.problems
    if "heads" in scope.inside:
        message = "`heads` within `heads`: a case is one owner of its KV groups"
        problems.add("A214", message, span, "a mixer without `heads`", "write one `heads` with more cases")
        return None
    attributes = scope.attributes(True, span)
    if attributes is None:
        return None
    runs = split(_block_of(typed), attributes.kv_heads, problems)
    inside = scope.within("heads")
    lowered = [lower(body, inside) for _, body in typed.cases]
    mixers = [mixer for mixer in lowered if mixer is not None]
    if runs is None or len(mixers) < len(lowered) or not _owned_by_heads(mixers, typed, scope):
        return None
    every = [leaf for mixer in mixers for leaf in leaves(mixer)]
    if not share_weights(every, "heads", span, problems, attributes):
        return None
    if not same_groups(every, "heads", span, problems, attributes.kv_heads):
        return None
    names = _names([body.name for _, body in typed.cases], mixers)
    cases = tuple(HeadCase(first=first, last=last, mixer=mixers[at], name=names[at]) for first, last, at in runs)
    return Heads(cases=cases)


def _names(words: list[str], mixers: list[Mixer]) -> list[str]:
    """What weights of cases' own are called; cases that are softmax alone have none."""
    own = [any(not isinstance(leaf, Attention) for leaf in _ends(mixer)) for mixer in mixers]
    return [name if has else "" for name, has in zip(part_names(words), own, strict=True)]


def _ends(mixer: Mixer) -> Iterator[Mixer]:
    """What a case comes to: itself, or what its blocks decide between."""
    if isinstance(mixer, Heads | When | Choose | Route):
        for inner in children(mixer):
            yield from _ends(inner)
    else:
        yield mixer


def _block_of(typed: Cases) -> tree.Block:
    """The block whose selectors the cases have, which a union may have been distributed over."""
    word = tree.Name(typed.word, typed.node.span)
    return tree.Block(word, (), tuple(case for case, _ in typed.cases), typed.node.span)


def _owned_by_heads(mixers: list[Mixer], typed: Cases, scope: Scope) -> bool:
    """Each case of `heads` is made of heads, so that all share q, k, v and o."""
    for mixer, (case, _) in zip(mixers, typed.cases, strict=True):
        if not on_heads(mixer):
            message = f"a case of `heads` shares the layer's q, k, v and o, but `{one_line(case.body)}` has weights of its own"
            expected = "a key set, a kind with a state a head, or `when` or `choose` between these"
            help_line = "add it to the whole layer: `heads { ... } + B`"
            scope.problems.add("A208", message, case.body.span, expected, help_line)
            return False
    return True


def _when(typed: Cases, scope: Scope, lower: Lower) -> Mixer | None:
    span, problems = typed.node.span, scope.problems
    found: list[tuple[Condition | None, Mixer]] = []
    taken: list[tuple[tree.Case, Typed]] = []
    sound, decided = True, False
    for case, body in typed.cases:
        at = scope.place.at(*typed.path, "when")
        is_else = isinstance(case.selector, tree.Else)
        condition = True if is_else else read_condition(case.selector, scope.model.dim, at)
        mixer = lower(body, scope.within("when"))
        if condition is None or mixer is None:
            sound = False
        elif not decided and condition is not False:
            if condition is not True and any(condition == one for one, _ in found):
                message = f"`{one_line(case.selector)}` was tested before, so this case is never taken"
                problems.add("A210", message, case.selector.span, "each condition once", "remove the case")
                sound = False
            found.append((None if condition is True else condition, mixer))
            taken.append((case, body))
            decided = condition is True
    if sound and not decided:
        message = "`when` has no `else`, so nothing may hold"
        problems.add("A210", message, span, "a last case `else`", "add `else: full`, or what shall hold otherwise")
        return None
    mixers = [mixer for _, mixer in found]
    if not sound or not share_weights([leaf for one in mixers for leaf in leaves(one)], "when", span, problems):
        return None
    if len(found) == 1:
        return mixers[0]
    names = _names([body.name for _, body in taken], mixers)
    cases = (WhenCase(condition=one, mixer=mixer, name=name) for (one, mixer), name in zip(found, names, strict=True))
    return When(cases=tuple(cases))


def _alternatives(typed: Cases, scope: Scope, lower: Lower) -> tuple[Alternative, ...] | None:
    found = []
    for case, body in typed.cases:
        assert isinstance(case.selector, tree.Name)
        mixer = lower(body, scope.within(typed.word))
        if mixer is not None:
            found.append(Alternative(name=case.selector.text, mixer=mixer))
    return tuple(found) if len(found) == len(typed.cases) else None


def _per_head(found: tuple[Alternative, ...], typed: Cases, scope: Scope) -> bool:
    """A decision for each head needs alternatives that are made of the same heads."""
    span = typed.node.span
    for alternative, (case, _) in zip(found, typed.cases, strict=True):
        if not on_heads(alternative.mixer):
            message = f"`{typed.word}(per = head)` decides for each head, but `{one_line(case.body)}` is not made of heads"
            expected = "a key set, a kind with a state a head, or a block of these"
            scope.problems.add("A208", message, case.body.span, expected, "write `per = layer`")
            return False
    every = [leaf for one in found for leaf in leaves(one.mixer)]
    return same_groups(every, typed.word, span, scope.problems)


def _choose(typed: Cases, scope: Scope, lower: Lower) -> Choose | None:
    alternatives = _alternatives(typed, scope, lower)
    assert isinstance(typed.arguments, ChooseArguments)
    if alternatives is None:
        return None
    every = [leaf for alternative in alternatives for leaf in leaves(alternative.mixer)]
    if not share_weights(every, "choose", typed.node.span, scope.problems):
        return None
    if typed.arguments.per == "head" and not _per_head(alternatives, typed, scope):
        return None
    return Choose(per=typed.arguments.per, by=typed.arguments.by, alternatives=alternatives)


def _route(typed: Cases, scope: Scope, lower: Lower) -> Route | None:
    span, problems = typed.node.span, scope.problems
    alternatives = _alternatives(typed, scope, lower)
    arguments = typed.arguments
    assert isinstance(arguments, RouteArguments)
    if alternatives is None:
        return None
    per = "chunk" if isinstance(arguments.per, Chunk) else arguments.per
    if per in ("token", "chunk") and not _takes_keys(alternatives, typed, per, scope):
        return None
    if not share_weights([leaf for one in alternatives for leaf in leaves(one.mixer)], "route", span, problems):
        return None
    if per == "head" and not _per_head(alternatives, typed, scope):
        return None
    by = arguments.by
    if isinstance(by, Router) and by.init and len(by.init) != len(alternatives):
        message = f"`init` starts {len(by.init)} logits, but the route has {len(alternatives)} alternatives"
        problems.add("A204", message, span, "a logit for each alternative", f"give `init` {len(alternatives)} numbers")
        return None
    chunk = arguments.per.n if isinstance(arguments.per, Chunk) else None
    return Route(per=per, chunk=chunk, by=by, alternatives=alternatives, origin=scope.origin(typed.node))


def _takes_keys(alternatives: tuple[Alternative, ...], typed: Cases, per: str, scope: Scope) -> bool:
    """Each token's key goes to one alternative, so each is one softmax or one state."""
    for alternative, (case, _) in zip(alternatives, typed.cases, strict=True):
        mixer = alternative.mixer
        if isinstance(mixer, Heads | When | Choose | Route) or not on_heads(mixer):
            message = f"`route(per = {per})` sends keys, but `{one_line(case.body)}` is not a key set under one softmax"
            help_line = "move the block around the `route`" if isinstance(case.body, tree.Block) else "write `per = layer`"
            scope.problems.add("A214", message, case.body.span, "a key set, or a kind with a state a head", help_line)
            return False
    return True
