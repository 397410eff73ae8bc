"""`budget(lo..hi, default = x, per =, by =)`: a number that the tuner may move. The default stands for it until then."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from attnc.compiler.declare import Budgeted
from attnc.compiler.fields import Field, number
from attnc.compiler.origin import origin
from attnc.compiler.place import INVALID, Place, named
from attnc.compiler.spec import BudgetSite
from attnc.compiler.tuning import BudgetArguments
from attnc.compiler.value import Share
from attnc.dsl import tree

Read = Callable[[tree.Expression, Field, str, Place], Any]
ReadArguments = Callable[..., Any]

SHAPE = "budget(lo..hi, default = x)"


def read_budget(value: tree.Call, field: Field, owner: str, place: Place, read: Read, read_arguments: ReadArguments) -> Any:
    """The default of a budget, after recording its site; INVALID if it contradicts itself or may not stand here."""
    problems = place.problems
    if field.budgeted is None:
        message = f"`{field.key}` of {named(owner)} cannot be a budget"
        problems.add("A107", message, value.span, "a number", "write the number itself")
        return INVALID
    bounds = [a.value for a in value.arguments if a.key is None]
    defaults = [a.value for a in value.arguments if a.key is not None and a.key.text == "default"]
    rest = tuple(a for a in value.arguments if a.key is not None and a.key.text != "default")
    arguments = read_arguments("budget", rest, value.span, BudgetArguments, place)
    if len(bounds) != 1 or not isinstance(bounds[0], tree.Range) or not defaults:
        problems.add("A105", "a budget needs a range and a default", value.span, f"`{SHAPE}`", f"write `{SHAPE}`")
        return INVALID
    numbers = [read(end, field, owner, place) for end in (bounds[0].low, bounds[0].high, defaults[0])]
    if arguments is INVALID or any(one is INVALID for one in numbers):
        return INVALID
    if not _one_for_all(owner, arguments, value, place):
        return INVALID
    if not all(isinstance(one, int | float | Share) for one in numbers):
        problems.add("A103", "the default of a budget is a number", defaults[0].span, "a number", f"write `{SHAPE}`")
        return INVALID
    if not _ordered(numbers, value, place):
        return INVALID
    _record(value, numbers, field.budgeted, arguments, place.at(field.key))
    return numbers[2]


def _one_for_all(owner: str, arguments: BudgetArguments, value: tree.Call, place: Place) -> bool:
    """What decides about layers is one number for all of them, and what decides about a sequence is one for all its heads."""
    kinds = {"first": ("layer", "head"), "last": ("layer", "head"), "every": ("layer", "head"), "a condition": ("head",)}
    if arguments.per not in kinds.get(owner, ()):
        return True
    what = "heads" if owner == "a condition" else "layers"
    message = f"a budget of {named(owner)} is decided for all {what} at once, not per {arguments.per}"
    place.problems.add("A107", message, value.span, "a budget without `per`", "leave `per` out")
    return False


def _ordered(numbers: list[Any], value: tree.Call, place: Place) -> bool:
    """All of one sort, and lo <= default <= hi."""
    shares = {isinstance(one, Share) for one in numbers}
    if len(shares) > 1:
        message = "a budget mixes shares and numbers"
        expected = "three shares or three numbers"
        place.problems.add("A108", message, value.span, expected, "give lo, hi and the default with `%`, or none of them")
        return False
    low, high, default = map(amount, numbers)
    if low <= default <= high:
        return True
    unit = "%" if shares == {True} else ""
    if low > high:
        message, fix = "the budget's range ends before it begins", f"write `{number(high)}{unit}..{number(low)}{unit}`"
    else:
        near = number(min(max(default, low), high))
        message, fix = "the budget's default lies outside its range", f"write `default = {near}{unit}`"
    place.problems.add("A108", message, value.span, "lo <= default <= hi", fix)
    return False


def amount(value: int | float | Share) -> float:
    """The number in a value, per cent for a share."""
    return value.percent if isinstance(value, Share) else value


def _record(value: tree.Call, numbers: list[Any], budgeted: Budgeted, arguments: BudgetArguments, place: Place) -> None:
    """Adds the site; a second budget of the same path gets `_2`."""
    if value.span in place.budgets:
        return
    name, taken = ".".join(place.path), {site.path for site in place.budgets.values()}
    path = next(one for one in (name, *(f"{name}_{count}" for count in range(2, len(taken) + 3))) if one not in taken)
    low, high, default = map(amount, numbers)
    site = BudgetSite(
        path=path,
        low=low,
        high=high,
        default=default,
        share=isinstance(numbers[0], Share),
        when=budgeted.when,
        per=arguments.per,
        by=arguments.by,
        origin=origin(value),
    )
    place.budgets[value.span] = site
