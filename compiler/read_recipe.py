"""`recipe { }` and `driver NAME { }` as typed values, and what they need of the rest of the spec."""

from __future__ import annotations

from typing import TypeVar

from attnc.compiler.fields import fields
from attnc.compiler.place import Invalid, Place
from attnc.compiler.problems import nearest, words
from attnc.compiler.read_value import read_settings, together
from attnc.compiler.recipe import Recipe, Retrieve
from attnc.compiler.value import Value
from attnc.dsl import tree
from attnc.dsl.source import Span

Settings = TypeVar("Settings", bound=Value)

DRIVERS: dict[str, type[Retrieve]] = {"retrieve": Retrieve}


def read_recipe(item: tree.Recipe, place: Place) -> Recipe | None:
    """The recipe, or None after a mistake."""
    return _read(item.settings, Recipe, "recipe", item.span, place)


def read_driver(item: tree.Driver, place: Place) -> Retrieve | None:
    """The driver, or None after a mistake."""
    name = item.name.text
    if name not in DRIVERS:
        help_line = nearest(name, DRIVERS, f"write `driver {next(iter(DRIVERS))}`")
        place.problems.add("A100", f"there is no driver `{name}`", item.name.span, f"one of {words(DRIVERS)}", help_line)
        return None
    return _read(item.settings, DRIVERS[name], "driver", item.name.span, place)


def check_recipe(item: tree.Recipe, recipe: Recipe, kinds: frozenset[str], place: Place) -> None:
    """Reports what the recipe names and the spec has not; `kinds` are the words of all kinds in its layers."""
    if recipe.randomize and not place.budgets:
        message = "`randomize = budgets` draws budgets anew, but the spec has none"
        expected = "a `budget(lo..hi, default = x)` in the layers"
        place.problems.add("A112", message, _span(item, "randomize"), expected, "leave `randomize` out, or write a budget")
    for key in ("freeze", "train", "lora"):
        if "memory" in (getattr(recipe, key) or ()) and "memory" not in kinds:
            message = f"`{key}` names `memory`, but no layer has a memory"
            place.problems.add("A112", message, _span(item, key), "parts that the model has", f"take `memory` out of `{key}`")


def check_driver(item: tree.Driver, driver: Retrieve, layers: int, place: Place) -> None:
    """Reports a layer that the model has not."""
    if isinstance(driver.layer, int) and driver.layer >= layers:
        message = f"there is no layer {driver.layer}"
        expected = f"`last`, or a layer from 0 to {layers - 1}"
        place.problems.add("A202", message, _span(item, "layer"), expected, f"the last layer is {layers - 1}")


def _span(item: tree.Recipe | tree.Driver, key: str) -> Span:
    return next(setting.span for setting in item.settings if setting.key.text == key)


def _read(settings: tuple[tree.Setting, ...], owner: type[Settings], word: str, span: Span, place: Place) -> Settings | None:
    given = read_settings(settings, owner, word, place.at(word))
    if any(isinstance(value, Invalid) for value, _ in given.values()):
        return None
    missing = [field.key for field in fields(owner).values() if field.required and field.key not in given]
    for key in missing:
        place.problems.add("A105", f"the {word} does not say `{key}`", span, f"`{key}`", f"add `{key} = ...`")
    if missing:
        return None
    found = owner(**{key: value for key, (value, _) in given.items()})
    return found if together(found, {key: at for key, (_, at) in given.items()}, span, place.problems) else None
