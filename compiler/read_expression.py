"""Syntax expression -> typed expression: names resolved, arguments read, types checked."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from attnc.compiler.advice import arguments_of
from attnc.compiler.attributes import Attributes
from attnc.compiler.expressions import (
    Altered,
    Attributed,
    Cases,
    Keys,
    Lone,
    Several,
    Typed,
    Wrong,
    join,
    renamed,
    size_and_depth,
    type_of,
)
from attnc.compiler.field_words import KINDS
from attnc.compiler.mixer import Kind
from attnc.compiler.mixers import MIXERS
from attnc.compiler.origin import one_line
from attnc.compiler.place import INVALID, Invalid, Place, step
from attnc.compiler.problems import nearest
from attnc.compiler.read_operator import OPERATORS, changes_come_first, not_keys, read_operator, takes_settings, unchanging
from attnc.compiler.read_value import read_arguments, read_settings
from attnc.compiler.tuning import ChooseArguments, RouteArguments
from attnc.dsl import tree
from attnc.dsl.diagnostic import closest
from attnc.dsl.excerpt import quoted

MOST_KINDS = 256
MOST_LEVELS = 64


@dataclass
class Names:
    """The mixes defined so far, in the order of the file, those to come, and the one that is being read."""

    mixes: dict[str, Typed] = field(default_factory=dict)
    later: dict[str, tree.Mix] = field(default_factory=dict)
    reading: str = ""

    def keys(self, value: tree.Expression, place: Place) -> tuple[Kind, ...] | Invalid:
        """The union that an argument writes, or INVALID after reporting that it is none."""
        typed = read_expression(value, self, place)
        if isinstance(typed, Keys):
            return typed.kinds
        if type_of(typed) == "keys":
            message = f"{quoted(one_line(value))} differs from head to head or case to case, and an argument is one union"
            place.problems.add("A203", message, value.span, "one union of key sets", "write the union without the block")
        elif type_of(typed) != "wrong":
            not_keys(typed, value, place, "the argument is a union of key sets")
        return INVALID

    def kinds(self, word: str) -> tuple[Kind, ...]:
        """The union that a mix is; empty where there is no such mix, or it is something else."""
        typed = self.mixes.get(word)
        return typed.kinds if isinstance(typed, Keys) else ()


def read_expression(node: tree.Expression, names: Names, place: Place) -> Typed:
    """The typed expression of `node`; Wrong parts stand where mistakes were reported."""
    match node:
        case tree.Name() | tree.Call():
            typed = _named(node, names, place)
        case tree.Union():
            typed = _union(node, names, place)
        case tree.With(body=body, settings=settings):
            inner = read_expression(body, names, place)
            given = read_settings(settings, Attributes, "a mixer", place, arguments_of(body))
            typed = Attributed(inner, given, inner.name, node) if takes_settings(inner, node, place) else Wrong(node)
        case tree.Add(parts=parts):
            added = tuple(read_expression(part, names, place) for part in parts)
            sound = unchanging(added, "a sum", node, place)
            typed = Several("sum", added, None, "sum", node) if sound else Wrong(node)
        case tree.Chain(parts=parts):
            linked = tuple(read_expression(part, names, place) for part in parts)
            sound = changes_come_first(linked, node, place)
            typed = Several("chain", linked, None, "chain", node) if sound else Wrong(node)
        case tree.Block():
            typed = _block(node, names, place)
        case _:
            message = f"{quoted(one_line(node))} is not a mixer"
            place.problems.add("A103", message, node.span, "a kind, a mix or a block", "write a kind such as `full`")
            typed = Wrong(node)
    return _limited(typed, place)


def _limited(typed: Typed, place: Place) -> Typed:
    size, depth = size_and_depth(typed)
    if size <= MOST_KINDS and depth <= MOST_LEVELS:
        return typed
    expected = f"at most {MOST_KINDS} kinds, {MOST_LEVELS} levels deep"
    message = f"the expression has {size} kinds, {depth} levels deep, once its mixes are filled in"
    place.problems.add("A110", message, typed.node.span, expected, "use fewer mixes within mixes")
    return Wrong(typed.node)


def _named(node: tree.Name | tree.Call, names: Names, place: Place) -> Typed:
    """A kind, a mix or `gate(...)`."""
    name = node if isinstance(node, tree.Name) else node.name
    word, arguments = name.text, () if isinstance(node, tree.Name) else node.arguments
    if word in MIXERS:
        kind = read_arguments(word, arguments, node.span, MIXERS[word].parameters, replace(place, mixes=names))
        if isinstance(kind, Invalid):
            return Wrong(node, word)
        if MIXERS[word].type == "change":
            return Altered(kind, word, node)
        return Keys((kind,), word, node) if MIXERS[word].type == "keys" else Lone(kind, word, node)
    if word in names.mixes:
        if arguments:
            message = f"the mix `{word}` takes no arguments"
            place.problems.add("A102", message, node.span, f"`{word}` alone", f"write `{word}`, or a kind with arguments")
            return Wrong(node, word)
        return renamed(names.mixes[word], word)
    if word in OPERATORS:
        return read_operator(node, names, place, read_expression)
    _unknown(name, names, place)
    return Wrong(node, word)


def _unknown(name: tree.Name, names: Names, place: Place) -> None:
    word, problems = name.text, place.problems
    known = (*MIXERS, *names.mixes, *OPERATORS)
    if names.reading == word:
        message = f"the mix `{word}` names itself"
        problems.add("A100", message, name.span, "a kind, or a mix defined above", "write what it shall be")
    elif word in names.later:
        notes = [("defined here", names.later[word].name.span)]
        message = f"the mix `{word}` is used before it is defined"
        problems.add("A100", message, name.span, "a mix defined above", f"move `mix {word}` up", notes)
    elif word == "budget":
        message = "a budget stands for a number, not for a mixer"
        problems.add("A103", message, name.span, "a kind, a mix or a block", "write it as an argument: `window(budget(...))`")
    else:
        written = f"it is written `{KINDS[word]}` here" if word in KINDS else ""
        otherwise = nearest(word, known, f"define it above: `mix {word} = ...`")
        help_line = closest(word, names.mixes) or written or otherwise
        expected = "a kind such as `full` or `window(1024)`, or a mix defined above"
        problems.add("A100", f"there is no kind or mix `{word}`", name.span, expected, help_line)


def _union(node: tree.Union, names: Names, place: Place) -> Typed:
    parts = [read_expression(part, names, place) for part in node.parts]
    for part, written in zip(parts, node.parts, strict=True):
        if type_of(part) in ("mixer", "change"):
            not_keys(part, written, place)
            return Wrong(node)
    if any(type_of(part) == "wrong" for part in parts):  # blocks too: another case of theirs may be a mixer
        return Wrong(node)
    typed = parts[0]
    for part in parts[1:]:
        typed = _limited(join(typed, part, node), place)
    return typed


def _block(node: tree.Block, names: Names, place: Place) -> Typed:
    word = node.word.text
    arguments: ChooseArguments | RouteArguments | None = None
    sound = True
    if word in ("choose", "route"):
        owner: type[ChooseArguments | RouteArguments] = ChooseArguments if word == "choose" else RouteArguments
        read = read_arguments(word, node.arguments, node.span, owner, place)
        arguments = None if isinstance(read, Invalid) else read
        sound = _names_only(node, place) and arguments is not None
    inside = [place.at(word, step(case.selector, index)) for index, case in enumerate(node.cases)]
    cases = tuple((case, read_expression(case.body, names, at)) for case, at in zip(node.cases, inside, strict=True))
    sound = unchanging(tuple(body for _, body in cases), f"`{word}`", node, place) and sound
    return Cases(word, arguments, cases, word, node, place.path) if sound else Wrong(node, word)


def _names_only(node: tree.Block, place: Place) -> bool:
    """The cases of choose and route are named, each differently."""
    seen: dict[str, tree.Name] = {}
    for case in node.cases:
        selector = case.selector
        if not isinstance(selector, tree.Name):
            message = f"a case of `{node.word.text}` is a name, not {quoted(one_line(selector))}"
            place.problems.add("A103", message, selector.span, "a name, such as `dense`", "give the alternative a name")
            return False
        if selector.text in seen:
            notes = [("first used here", seen[selector.text].span)]
            message = f"two alternatives are called `{selector.text}`"
            place.problems.add("A106", message, selector.span, "each name once", "rename one", notes)
            return False
        seen[selector.text] = selector
    if len(seen) < 2:
        message = f"`{node.word.text}` decides between alternatives, but has one"
        place.problems.add("A105", message, node.span, "two or more cases", "add an alternative, or write it without the block")
        return False
    return True
