"""The budgets in a spec's text: where they stand, what may be drawn for them, and the text with other values."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any, NamedTuple

from attnc.compiler.spec import BudgetSite, Spec
from attnc.dsl import tree
from attnc.dsl.format import print_expression


class Site(NamedTuple):
    """One `budget(low..high)` of the text: `number` in the order written, `path` as the spec has it, `per` layer, head or
    (empty) all at once.
    """

    number: int
    path: str
    low: float
    high: float
    whole: bool
    share: bool
    per: str
    default: float


Draw = Mapping[int, float]
"""Number of a site -> its value."""


def drawn(site: Site, source: random.Random) -> float:
    """A uniform number of the site's range, both ends included."""
    return source.randint(int(site.low), int(site.high)) if site.whole else source.uniform(site.low, site.high)


def sites(file: tree.File, spec: Spec) -> Iterator[Site]:
    """The budgets that may move while training, in the order written; those of shapes keep their defaults."""
    known: dict[tuple[int, str], list[BudgetSite]] = {}
    for site in spec.budgets:
        known.setdefault((site.origin.line, site.origin.text), []).append(site)
    for number, call in enumerate(_calls(file)):
        alike = known.get((call.span.line, print_expression(call)), [])
        # where a line repeats itself each has a path of its own
        found = alike[0] if len(alike) == 1 else alike.pop(0) if alike else None
        if found is None or found.when != "tuned":
            continue
        numbers = (found.low, found.high, found.default)
        whole = all(isinstance(one, int) or float(one).is_integer() for one in numbers) and not found.share
        yield Site(number, found.path, found.low, found.high, whole, found.share, found.per or "", found.default)


def _calls(node: Any) -> Iterator[tree.Call]:
    """Every `budget(...)` of a tree, in the order written."""
    if isinstance(node, tree.Call) and node.name.text == "budget":
        yield node
    elif is_dataclass(node) and not isinstance(node, type):
        for field in fields(node):
            if field.name not in ("span", "source"):
                yield from _calls(getattr(node, field.name))
    elif isinstance(node, tuple):
        for one in node:
            yield from _calls(one)


def with_values(file: tree.File, draw: Draw) -> tree.File:
    """The tree with other defaults of its budgets."""
    calls = {id(call): draw[number] for number, call in enumerate(_calls(file)) if number in draw}

    def changed(node: Any) -> Any:
        if isinstance(node, tree.Call) and id(node) in calls:
            given = tuple(
                replace(one, value=_number(one.value, calls[id(node)])) if one.key and one.key.text == "default" else one
                for one in node.arguments
            )
            return replace(node, arguments=given)
        if isinstance(node, tuple):
            return tuple(map(changed, node))
        if not is_dataclass(node) or isinstance(node, type):
            return node
        inner = {f.name: getattr(node, f.name) for f in fields(node) if f.name not in ("span", "source")}
        new = {name: changed(value) for name, value in inner.items()}
        return replace(node, **new) if any(new[name] is not inner[name] for name in inner) else node

    made: tree.File = changed(file)
    return made


def _number(old: Any, value: float) -> tree.Number:
    assert isinstance(old, tree.Number), "the default of a budget is a number"
    return replace(old, value=int(value) if float(value).is_integer() and isinstance(old.value, int) else value)
