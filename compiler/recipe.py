"""`recipe { }` and `driver NAME { }`: carried to the built folder as plain data, after their words are checked."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from attnc.compiler.declare import Bounds, Positional
from attnc.compiler.place import INVALID, Place
from attnc.compiler.problems import nearest, words
from attnc.compiler.read_value import read_settings
from attnc.compiler.value import Share, Value
from attnc.dsl import tree

Part = Literal["all", "attention", "ffn", "embedding", "norm", "memory", "router", "q", "k", "v", "o"]
Weight = Annotated[float, Bounds(0, 1e6)]


class Lagrangian(Value):
    """`lagrangian(sparsity = 45%)`."""

    word: Literal["lagrangian"] = "lagrangian"
    sparsity: Share


class Kl(Value):
    """`kl(weight = 1)`."""

    word: Literal["kl"] = "kl"
    weight: Weight = 1.0


class Mse(Value):
    """`mse(weight = 1)`."""

    word: Literal["mse"] = "mse"
    weight: Weight = 1.0


class Hidden(Value):
    """`hidden(weight = 1)`."""

    word: Literal["hidden"] = "hidden"
    weight: Weight = 1.0


class AttentionMap(Value):
    """`attention(weight = 1)`."""

    word: Literal["attention"] = "attention"
    weight: Weight = 1.0


class Recipe(Value):
    """How the model is trained."""

    freeze: tuple[Part, ...] | None = None
    train: tuple[Part, ...] | None = None
    lora: tuple[Part, ...] | None = None
    loss: tuple[Literal["lm"] | Lagrangian, ...] | None = None
    distill: tuple[Kl | Mse | Hidden | AttentionMap, ...] | None = None
    teacher: Literal["full"] | None = None
    randomize: Literal["budgets"] | None = None


class LastTokens(Value):
    """`last(128)`."""

    word: Literal["last"] = "last"
    n: Annotated[int, Positional(), Bounds(1, 65536)]


class Retrieve(Value):
    """`driver retrieve`: reads a long text in windows around the model, keeping sentences (InfiniRetri, arXiv 2502.12962)."""

    window: Annotated[int, Bounds(1, 2**24)]
    layer: Annotated[Literal["last"] | int, Bounds(0, 1023)] = "last"
    queries: Literal["question"] | LastTokens = "question"
    smooth: Annotated[int, Bounds(1, 65536)] = 1
    top_k: Annotated[int, Bounds(1, 65536)]
    expand: Literal["sentence", "none"] = "sentence"


DRIVERS: dict[str, type[Value]] = {"retrieve": Retrieve}


def read_recipe(item: tree.Recipe, place: Place) -> dict[str, Any] | None:
    """The recipe's settings as plain data, or None after a mistake."""
    given = read_settings(item.settings, Recipe, "recipe", place.at("recipe"))
    if any(value is INVALID for value, _ in given.values()):
        return None
    return Recipe(**{key: value for key, (value, _) in given.items()}).model_dump(exclude_unset=True)


def read_driver(item: tree.Driver, place: Place) -> dict[str, Any] | None:
    """The driver's name and settings as plain data, or None after a mistake."""
    name = item.name.text
    if name not in DRIVERS:
        help_line = nearest(name, DRIVERS, f"write `driver {next(iter(DRIVERS))}`")
        place.problems.add("A100", f"there is no driver `{name}`", item.name.span, f"one of {words(DRIVERS)}", help_line)
        return None
    given = read_settings(item.settings, DRIVERS[name], "driver", place.at("driver"))
    if any(value is INVALID for value, _ in given.values()):
        return None
    missing = [key for key, info in DRIVERS[name].model_fields.items() if info.is_required() and key not in given]
    for key in missing:
        place.problems.add("A105", f"`driver {name}` does not say `{key}`", item.name.span, f"`{key}`", f"add `{key} = ...`")
    if missing:
        return None
    return {"name": name, **DRIVERS[name](**{key: value for key, (value, _) in given.items()}).model_dump()}
