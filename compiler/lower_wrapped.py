"""context, select and changes of the sequence: what they ask of what they hold, and of where they stand."""

from __future__ import annotations

from collections.abc import Callable

from attnc.compiler.expressions import Altered, Typed, Wrapped
from attnc.compiler.mixers import MIXERS
from attnc.compiler.part_names import part_names
from attnc.compiler.scope import Scope
from attnc.compiler.spec import Change, Context, Mixer, Mixing, Select
from attnc.compiler.tuning import ContextArguments, SelectArguments

Lower = Callable[[Typed, Scope], Mixer | None]


def lower_context(typed: Wrapped, scope: Scope, lower: Lower) -> Context | None:
    """`context(M, ...)`: M keeps the attributes of its own braces, the softmax has those around."""
    assert isinstance(typed.arguments, ContextArguments)
    span, segment = typed.node.span, typed.arguments.segment
    attributes = scope.attributes(True, span)
    memory = lower(typed.body, scope.within("context"))
    if attributes is None or memory is None:
        return None
    assert isinstance(memory, Mixing), "the reader lets nothing but a memory into a context"
    chunk = getattr(memory.kind, "chunk", 1)
    if segment % chunk:
        message = f"segment = {segment} is not a multiple of the memory's chunk = {chunk}"
        near = max(1, round(segment / chunk)) * chunk
        scope.problems.add("A204", message, span, "a segment of whole chunks", f"use {near} for `segment`")
        return None
    (name,) = part_names([typed.body.name])
    return Context(
        name=name,
        memory=memory,
        segment=segment,
        persistent=typed.arguments.persistent,
        attributes=attributes,
        origin=scope.origin(typed.node),
    )


def lower_select(typed: Wrapped, scope: Scope, lower: Lower) -> Select | None:
    """`select(A, ...)`: it ranks the tokens of a whole sequence, later ones among them."""
    assert isinstance(typed.arguments, SelectArguments)
    span, keep = typed.node.span, typed.arguments.keep
    if "select" in scope.inside:
        message = "`select` within `select`: the tokens that pass by the outer one never reach the inner one"
        scope.problems.add(
            "A214", message, span, "a mixer without `select`", "write one `select` with the product of the shares"
        )
        return None
    attributes = scope.attributes(True, span)
    mixer = lower(typed.body, scope.within("select"))
    if attributes is None or mixer is None:
        return None
    if attributes.causal:
        message = f"`select` ranks all tokens of a sequence to keep {keep}, so earlier outputs would depend on later tokens"
        help_line = "set `causal = false` in `model`, or leave `select` out"
        scope.problems.add("A309", message, span, "`causal = false`", help_line)
        return None
    (name,) = part_names([typed.body.name])
    return Select(name=name, mixer=mixer, keep=keep, by=typed.arguments.by, origin=scope.origin(typed.node))


def lower_change(typed: Altered, scope: Scope) -> Change | None:
    """`insert` and `merge`, whose places the reader has checked."""
    attributes = scope.attributes(True, typed.node.span)
    if attributes is None:
        return None
    broken = list(MIXERS[typed.kind.kind].fits(typed.kind, attributes, scope.model))
    for one in broken:
        scope.problems.add(one.code, one.message, typed.node.span, one.expected, one.help)
    return None if broken else Change(kind=typed.kind, origin=scope.origin(typed.node))
