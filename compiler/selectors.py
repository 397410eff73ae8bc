"""Which layers a rule owns: numbers, ranges, first, last, every, lists of these, else, all. Every layer exactly once."""

from __future__ import annotations

from itertools import groupby
from typing import Annotated, Literal

from attnc.compiler import field_words
from attnc.compiler.declare import Bounds, Budgeted, Positional
from attnc.compiler.fields import tag
from attnc.compiler.origin import one_line
from attnc.compiler.place import Invalid, Place
from attnc.compiler.problems import nearest, words
from attnc.compiler.read_value import read_call
from attnc.compiler.value import Between, Value
from attnc.dsl import tree
from attnc.dsl.excerpt import quoted
from attnc.dsl.problems import MOST
from attnc.dsl.source import Span

Count = Annotated[int, Positional(), Bounds(1, 1024), Budgeted("training")]


class First(Value):
    """`first(4)`: the first n layers."""

    word: Literal["first"] = "first"
    n: Count


class Last(Value):
    """`last(3)`: the last n layers."""

    word: Literal["last"] = "last"
    n: Count


class Every(Value):
    """`every(6)`: the last of every n; `at = k` or `at = [j, k]` counts from 0, `in = 2..19` within that range."""

    word: Literal["every"] = "every"
    n: Count
    at: Annotated[int | tuple[int, ...] | None, Bounds(0, 1023)] = None
    in_: Annotated[Between | None, Bounds(0, 1023)] = None


SELECTORS: tuple[type[Value], ...] = (First, Last, Every)
EXPECTED = "a layer, a range, `first(n)`, `last(n)`, `every(n)`, a list of these, `else` or `all`"


def owners(cases: tuple[tree.Case, ...], layers: int, place: Place) -> list[int] | None:
    """For each layer the index of its case, or None after a mistake: two rules, no rule, no such layer."""
    picked = [None if isinstance(case.selector, tree.Else) else _picked(case.selector, layers, place) for case in cases]
    if not _lone(cases, place):
        return None
    owner: dict[int, int] = {}
    clashes: dict[tuple[int, int], list[int]] = {}
    for index, chosen in enumerate(picked):
        for layer in chosen or ():
            if owner.setdefault(layer, index) != index:
                clashes.setdefault((owner[layer], index), []).append(layer)
        if len(clashes) > MOST:  # more than are reported
            break
    for (first, second), both in clashes.items():
        message = f"{_shown(both)} {'has' if len(both) == 1 else 'have'} two rules"
        notes = [("the first one is here", cases[first].span)]
        left = ranges([layer for layer in picked[second] or () if owner[layer] == second])
        written = f"[{left}]" if "," in left else left
        leave = f"write `{written}` here" if left else "remove this rule"
        help_line = f"{leave}, or take {_shown(both)} out of the first"
        place.problems.add("A200", message, cases[second].selector.span, "one rule for each layer", help_line, notes)
    others = next((index for index, case in enumerate(cases) if isinstance(case.selector, tree.Else)), None)
    wrong = [
        case for case, chosen in zip(cases, picked, strict=True) if chosen is None and not isinstance(case.selector, tree.Else)
    ]
    if clashes or wrong:
        return None
    missing = [layer for layer in range(layers) if layer not in owner]
    if others is not None:
        owner |= dict.fromkeys(missing, others)
    elif missing:
        message = f"{_shown(missing)} {'has' if len(missing) == 1 else 'have'} no rule"
        span = Span(cases[0].span.source, cases[0].span.start, cases[-1].span.end)
        place.problems.add(
            "A201", message, span, f"rules for layers 0 to {layers - 1}", "add `else: full`, or what they shall do"
        )
        return None
    return [owner[layer] for layer in range(layers)]


def _lone(cases: tuple[tree.Case, ...], place: Place) -> bool:
    """`all` stands by itself; reports it otherwise."""
    lone = [case.selector for case in cases if isinstance(case.selector, tree.Name) and case.selector.text == "all"]
    if not lone or len(cases) == 1:
        return True
    other = any(isinstance(case.selector, tree.Else) for case in cases)
    help_line = "write its layers, or remove one of the two" if other else "write `else`"
    fix = None if other else "else"
    place.problems.add("A200", "`all` has other rules beside it", lone[0].span, "a lone rule", help_line, fix=fix)
    return False


def _picked(selector: tree.Selector, layers: int, place: Place) -> list[int] | None:
    """The layers of one selector, in order, each once; at least one."""
    found = _numbers(selector, layers, place)
    if found is not None and not found:
        message = f"`{one_line(selector)}` picks none of the {layers} layers"
        place.problems.add(
            "A202", message, selector.span, f"a layer from 0 to {layers - 1}", "remove the rule, or pick other layers"
        )
        return None
    return found


def _numbers(selector: tree.Selector, layers: int, place: Place) -> list[int] | None:
    match selector:
        case tree.Number():
            number = _layer(selector, layers, place)
            return None if number is None else [number]
        case tree.Range(low=low, high=high):
            ends = (_layer(low, layers, place), _layer(high, layers, place))
            return None if ends[0] is None or ends[1] is None else list(range(ends[0], ends[1] + 1))
        case tree.List(items=items):
            parts = [_picked(item, layers, place) for item in items]
            whole = [part for part in parts if part is not None]
            return sorted({layer for part in whole for layer in part}) if len(whole) == len(parts) else None
        case tree.Name(text="all"):
            return list(range(layers))
        case tree.Name() | tree.Call():
            return _call(selector, layers, place)
        case _:
            shown = quoted(one_line(selector))
            place.problems.add(
                "A103", f"{shown} does not select layers", selector.span, EXPECTED, "write a range such as `0..3`"
            )
            return None


def _layer(number: tree.Number, layers: int, place: Place) -> int | None:
    """A layer's number."""
    if not number.share and isinstance(number.value, int) and 0 <= number.value < layers:
        return number.value
    message = f"there is no layer {one_line(number)}"
    help_line = f"the last layer is {layers - 1}" if not number.share else "use `every(n)` for a part of the layers"
    place.problems.add("A202", message, number.span, f"a layer from 0 to {layers - 1}", help_line)
    return None


def _call(selector: tree.Name | tree.Call, layers: int, place: Place) -> list[int] | None:
    name = selector if isinstance(selector, tree.Name) else selector.name
    known = {tag(owner): owner for owner in SELECTORS}
    if name.text not in known:
        meant = field_words.SELECTORS.get(name.text, "")
        otherwise = nearest(name.text, (*known, "all"), f"write one of {words(known)}")
        help_line = f"write `{meant}`" if meant else otherwise
        place.problems.add("A100", f"there is no selector `{name.text}`", name.span, EXPECTED, help_line, fix=meant or None)
        return None
    typed = read_call(selector, known[name.text], place)
    if isinstance(typed, Invalid) or not _in_reach(selector, typed, layers, place):
        return None
    if isinstance(typed, First | Last) and typed.n > layers:
        message = f"`{one_line(selector)}` picks more than the {layers} layers"
        place.problems.add("A202", message, selector.span, f"at most {layers}", f"write `{name.text}({layers})`, or `all`")
        return None
    if isinstance(typed, First):
        return list(range(typed.n))
    if isinstance(typed, Last):
        return list(range(layers - typed.n, layers))
    assert isinstance(typed, Every)
    return _every(typed, selector, layers, place)


def _in_reach(selector: tree.Name | tree.Call, typed: Value, layers: int, place: Place) -> bool:
    """Every number that a budget may move to selects layers of the model, not only its default."""
    found = [one.value for one in ([] if isinstance(selector, tree.Name) else selector.arguments)]
    ends = [end for one in found if isinstance(one, tree.Call) for end in one.arguments if isinstance(end.value, tree.Range)]
    for end in ends:
        assert isinstance(end.value, tree.Range)
        low, high = end.value.low, end.value.high
        if high.value > layers:
            message = f"the budget reaches {one_line(high)} layers, and the model has {layers}"
            help_line = f"write `{one_line(low)}..{layers}`"
            place.problems.add("A202", message, end.span, f"at most {layers}", help_line)
            return False
        places = typed.at if isinstance(typed, Every) and typed.at is not None else 0
        last = max(places) if isinstance(places, tuple) else places
        if last >= low.value:
            message = f"`at = {last}` lies outside a group of {one_line(low)} layers, which the budget may come to"
            help_line = f"write `{last + 1}..{one_line(high)}`, or a smaller `at`"
            place.problems.add("A202", message, end.span, f"groups of more than {last} layers", help_line)
            return False
    return True


def _every(typed: Every, selector: tree.Name | tree.Call, layers: int, place: Place) -> list[int] | None:
    low, high = (typed.in_.low, typed.in_.high) if typed.in_ else (0, layers - 1)
    if high >= layers:
        message = f"there is no layer {high}"
        place.problems.add("A202", message, selector.span, f"`in` within 0..{layers - 1}", f"the last layer is {layers - 1}")
        return None
    places = (typed.n - 1,) if typed.at is None else (typed.at,) if isinstance(typed.at, int) else typed.at
    outside = [at for at in places if at >= typed.n]
    if outside:
        message = f"`at = {outside[0]}` lies outside a group of {typed.n} layers"
        place.problems.add(
            "A202", message, selector.span, f"`at` from 0 to {typed.n - 1}", f"the last of a group is {typed.n - 1}"
        )
        return None
    return sorted({layer for layer in range(low, high + 1) if (layer - low) % typed.n in places})


def ranges(numbers: list[int]) -> str:
    """`0..3, 7`: whole numbers in order, runs as ranges."""
    runs = [[n for _, n in run] for _, run in groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0])]
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}..{run[-1]}" for run in runs)


def _shown(layers: list[int]) -> str:
    return f"layer {layers[0]}" if len(layers) == 1 else f"layers {ranges(layers)}"
