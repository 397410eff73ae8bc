"""gate, context and select; and which types `|`, `+`, `>>`, braces and blocks take: key sets, mixers, changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from attnc.compiler.expressions import Altered, Attributed, Lone, Several, Typed, Wrapped, Wrong, change_in, type_of
from attnc.compiler.origin import one_line
from attnc.compiler.place import Invalid, Place
from attnc.compiler.read_value import read_arguments
from attnc.compiler.tuning import ContextArguments, GateArguments, SelectArguments
from attnc.dsl import tree
from attnc.dsl.excerpt import quoted

Read = Callable[[tree.Expression, Any, Place], Typed]

OPERATORS = ("gate", "context", "select")
"""Words that join or hold mixers, and are written like kinds."""


def read_operator(node: tree.Name | tree.Call, names: Any, place: Place, read: Read) -> Typed:
    """`gate(A, B, ...)`, `context(M, ...)` or `select(A, ...)`."""
    arguments = () if isinstance(node, tree.Name) else node.arguments
    word = node.text if isinstance(node, tree.Name) else node.name.text
    numbers = [one for one in arguments if one.key is None and isinstance(one.value, tree.Number | tree.Range | tree.List)]
    if numbers and word != "gate":
        _not_by_place(word, numbers[0], place)
        return Wrong(node, word)
    inner = tuple(read(argument.value, names, place) for argument in arguments if argument.key is None)
    rest = tuple(argument for argument in arguments if argument.key is not None)
    if word == "gate":
        return _gate(node, inner, rest, place)
    if len(inner) != 1:
        what = "one memory" if word == "context" else "one mixer"
        message = f"`{word}` holds {what}, but has {len(inner)}"
        shape = "context(memory(...), segment = n)" if word == "context" else "select(A, keep = 50%, by = gumbel)"
        place.problems.add("A105", message, node.span, f"{what} by place, the rest by key", f"write `{shape}`")
        return Wrong(node, word)
    owner: type[ContextArguments | SelectArguments] = ContextArguments if word == "context" else SelectArguments
    typed = read_arguments(word, rest, node.span, owner, place)
    sound = _is_memory(inner[0], node, place) if word == "context" else unchanging(inner, f"`{word}`", node, place)
    if isinstance(typed, Invalid) or not sound or isinstance(inner[0], Wrong):
        return Wrong(node, word)
    return Wrapped("context" if word == "context" else "select", inner[0], typed, word, node)


def _not_by_place(word: str, argument: tree.Argument, place: Place) -> None:
    """Reports a number given by place to an operator, which takes its mixer so and the rest by key."""
    key = "segment" if word == "context" else "keep"
    shown = one_line(argument.value)
    message = f"`{word}` takes {quoted(shown)} by its key, not by place"
    place.problems.add("A102", message, argument.span, f"`{key} = ...`", f"write `{key} = {shown}`")


def _gate(node: tree.Name | tree.Call, branches: tuple[Typed, ...], rest: tuple[tree.Argument, ...], place: Place) -> Typed:
    typed = read_arguments("gate", rest, node.span, GateArguments, place)
    if len(branches) < 2:
        message = f"`gate` weighs branches, but has {len(branches)}"
        place.problems.add("A105", message, node.span, "two or more mixers", "write `gate(A, B)`")
        return Wrong(node, "gate")
    if isinstance(typed, Invalid) or not unchanging(branches, "`gate`", node, place):
        return Wrong(node, "gate")
    if typed.by == "product" and len(branches) != 2:
        message = f"`by = product` multiplies two branches, not {len(branches)}"
        place.problems.add("A213", message, node.span, "two mixers", "use `by = sigmoid` or `softmax`")
        return Wrong(node, "gate")
    return Several("gate", branches, typed, "gate", node)


def _is_memory(typed: Typed, node: tree.Expression, place: Place) -> bool:
    """A context holds `memory(...)`, perhaps with attributes."""
    inner = typed
    while isinstance(inner, Attributed):
        inner = inner.body
    if isinstance(inner, Wrong) or (isinstance(inner, Lone) and inner.kind.kind == "memory"):
        return True
    what = "a key set" if type_of(inner) == "keys" else "no memory"
    message = f"`context` reads from a memory and teaches it, but {quoted(one_line(typed.node))} is {what}"
    help_line = "write `context(memory(linear), segment = n)`"
    place.problems.add("A216", message, _where(typed, node).span, "`memory(...)`, or a mix of it", help_line)
    return False


def not_keys(part: Typed, written: tree.Expression, place: Place, where: str = "`|` joins key sets") -> None:
    """Reports a mixer or a change where `|` or an argument wants a key set; `where` says so."""
    shown = quoted(one_line(written))
    other = "write `A + B` to add outputs" if "|" in where else "write a key set such as `window(n)`"
    if isinstance(part, Altered):
        message, code = f"`{part.kind.kind}` changes the sequence; {where}", "A215"
        help_line = f"write `{one_line(part.node)} >> A`, where A is the rest"
        place.problems.add(code, message, written.span, "a key set", help_line)
        return
    if isinstance(part, Attributed):
        message = f"{shown} is a mixer, because it has attributes; {where}"
        help_line = (
            "put the attributes after the whole union: `(A | B) { key = value }`" if "|" in where else "leave the braces out"
        )
    elif isinstance(part, Lone):
        message = f"`{part.kind.kind}` is a mixer; {where}"
        help_line = other
    else:
        message = f"{shown} is a mixer; {where}"
        help_line = other
    place.problems.add("A203", message, written.span, "a key set", help_line)


def takes_settings(typed: Typed, node: tree.With, place: Place) -> bool:
    """Attributes belong to a mixer, not to a change of the sequence."""
    if not isinstance(typed, Altered):
        return True
    message = f"`{typed.kind.kind}` changes the sequence and has no attributes"
    help_line = f"give them to the mixer after it: `{one_line(typed.node)} >> A {{ ... }}`"
    place.problems.add("A213", message, node.settings[0].span, "a mixer before the brace", help_line)
    return False


def unchanging(inner: tuple[Typed, ...], where: str, node: tree.Expression, place: Place) -> bool:
    """No change of the sequence stands in parts of a layer: all later layers work on the new sequence."""
    for typed in inner:
        change = change_in(typed)
        if change is not None:
            word = change.kind.kind
            message = f"`{word}` changes the sequence for the whole layer and all later ones, so it cannot stand in {where}"
            help_line = f"put it first in the layer: `{one_line(change.node)} >> (...)`"
            place.problems.add("A215", message, _where(typed, node).span, "a part that leaves the sequence as it is", help_line)
            return False
    return True


def changes_come_first(linked: tuple[Typed, ...], node: tree.Expression, place: Place) -> bool:
    """`insert(...) >> A >> B`: changes before the first mixer, and a mixer after them."""
    first = next((at for at, typed in enumerate(linked) if type_of(typed) != "change"), len(linked))
    if first == len(linked):
        message = "the chain changes the sequence, but nothing reads the new one"
        help_line = f"add what the layer does: `{one_line(node)} >> full`"
        place.problems.add("A215", message, _where(linked[-1], node).span, "a mixer at the end of the chain", help_line)
        return False
    late = linked[first + 1 :] if first == 0 else linked[first:]
    for typed in late:
        change = change_in(typed)
        if change is not None:
            message = f"`{change.kind.kind}` changes the sequence for the whole layer, so it comes before its first mixer"
            expected = "changes, then mixers"
            help_line = f"move `{one_line(change.node)}` to the front of the chain, or into the next layer"
            place.problems.add("A215", message, _where(typed, node).span, expected, help_line)
            return False
    return True


def changes_something(typed: Typed, place: Place) -> bool:
    """Whether a layer is more than a change; reports it if not."""
    if not isinstance(typed, Altered):
        return True
    message = f"`{typed.kind.kind}` makes a new sequence, but the layer does nothing with it"
    help_line = f"add what the layer does: `{one_line(typed.node)} >> full`"
    place.problems.add("A215", message, typed.node.span, "a mixer after the change", help_line)
    return False


def _where(typed: Typed, node: tree.Expression) -> tree.Expression:
    """Where a part is written in `node`; a mix is written elsewhere, so then it is the whole node."""
    inside = node.span.source == typed.node.span.source and node.span.start <= typed.node.span.start <= node.span.end
    return typed.node if inside else node
