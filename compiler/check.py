"""Tree -> Spec. Everything wrong with a file is reported at once."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import TypeVar

from attnc.compiler.landmarks import check_landmarks
from attnc.compiler.lower import lower
from attnc.compiler.mixers import MIXERS
from attnc.compiler.model_settings import read_model
from attnc.compiler.origin import file_name, origin
from attnc.compiler.overlay import resolve_attributes
from attnc.compiler.place import Place, step
from attnc.compiler.previous import check_previous
from attnc.compiler.problems import Problems
from attnc.compiler.read_expression import Names, read_expression
from attnc.compiler.read_operator import changes_something
from attnc.compiler.read_recipe import check_driver, check_recipe, read_driver, read_recipe
from attnc.compiler.scope import Scope
from attnc.compiler.selectors import owners
from attnc.compiler.spec import Layer, Mixer, Spec
from attnc.compiler.walk import kinds
from attnc.dsl import tree
from attnc.dsl.diagnostic import Diagnostic, SpecError
from attnc.dsl.format import print_file
from attnc.dsl.parse import parse
from attnc.dsl.source import Source, Span

Item = TypeVar("Item", tree.Model, tree.Layers, tree.Recipe, tree.Driver)
TAKEN = ("gate", "context", "select", "budget", "all", "none", "first", "last", "every", "true", "false")
"""Words of the language that a mix may not take beside the kinds."""


def check(file: tree.File, overrides: Mapping[str, str] | None = None) -> Spec:
    """The checked spec. Raises SpecError with every mistake found.

    `overrides` are `--set` settings, `{"model.KEY": "VALUE"}`: each replaces one setting of the model before checking.
    """
    place = Place(Problems())
    file = _overridden(file, overrides or {}, place.problems)
    model_item, layers_item = _one(file, tree.Model), _one(file, tree.Layers)
    assert model_item is not None, "the parser asks for a model"
    assert layers_item is not None, "the parser asks for layers"
    model, inherited = read_model(model_item, place)
    names = _mixes(file, place)
    paths = [place.at("layers", step(case.selector, index)) for index, case in enumerate(layers_item.cases)]
    bodies = [read_expression(case.body, names, at) for case, at in zip(layers_item.cases, paths, strict=True)]
    recipe_item, driver_item = _one(file, tree.Recipe), _one(file, tree.Driver)
    recipe = read_recipe(recipe_item, place) if recipe_item else None
    driver = read_driver(driver_item, place) if driver_item else None
    layers: tuple[Layer, ...] = ()
    if model is not None:
        scope = Scope(model, inherited, place)
        mixers = [lower(body, scope) if changes_something(body, place) else None for body in bodies]
        layers = _layers(layers_item, mixers, model.layers, place)
        words = frozenset(kind.kind for mixer in mixers if mixer is not None for kind, _ in kinds(mixer))
        if recipe_item is not None and recipe is not None and layers:
            check_recipe(recipe_item, recipe, words, place)
        if driver_item is not None and driver is not None:
            check_driver(driver_item, driver, model.layers, place)
    if place.problems.found:
        raise SpecError(place.problems.found)
    assert model is not None
    return Spec(
        model=model,
        defaults=resolve_attributes(model, inherited, (), True, model_item.span, Problems()),
        layers=layers,
        budgets=tuple(place.budgets.values()),
        recipe=recipe,
        driver=driver,
        file=file_name(file.source),
        text=print_file(file),
    )


def check_names(file: tree.File) -> tuple[Diagnostic, ...]:
    """Mistakes of names, arguments and settings, each found without the rest of its file, which may lack parts."""
    place = Place(Problems())
    try:
        for item in file.items:
            match item:
                case tree.Model():
                    read_model(item, place)
                case tree.Recipe():
                    read_recipe(item, place)
                case tree.Driver():
                    read_driver(item, place)
        names = _mixes(file, place)
        for layers in (item for item in file.items if isinstance(item, tree.Layers)):
            for case in layers.cases:
                read_expression(case.body, names, place)
    except SpecError as error:  # so many mistakes that looking for more has ended
        return error.diagnostics
    return tuple(place.problems.found)


def _one(file: tree.File, kind: type[Item]) -> Item | None:
    return next((item for item in file.items if isinstance(item, kind)), None)


def _mixes(file: tree.File, place: Place) -> Names:
    """All mixes, each read where it is defined."""
    mixes = [item for item in file.items if isinstance(item, tree.Mix)]
    names = Names(later={mix.name.text: mix for mix in mixes})
    for mix in mixes:
        word = mix.name.text
        if word in MIXERS or word in TAKEN:
            message = f"a mix cannot be called `{word}`, which is a word of the language"
            place.problems.add("A109", message, mix.name.span, "a name of its own", f"call it `my_{word}`")
        typed = read_expression(mix.body, replace(names, reading=word), place.at("mix", word))
        del names.later[word]
        names.mixes[word] = typed
    return names


def _layers(item: tree.Layers, mixers: list[Mixer | None], count: int, place: Place) -> tuple[Layer, ...]:
    """One row a layer; layers of one rule hold the same mixer object."""
    rules = owners(item.cases, count, place.at("layers"))
    if rules is None or any(mixer is None for mixer in mixers):
        return ()
    origins = [origin(case) for case in item.cases]
    found = []
    for index, rule in enumerate(rules):
        mixer = mixers[rule]
        assert mixer is not None
        found.append(Layer(index=index, mixer=mixer, origin=origins[rule]))
    spans = [item.cases[rule].span for rule in rules]
    check_previous(tuple(found), spans, place.problems)
    check_landmarks(tuple(found), spans, place.problems)
    return tuple(found)


def _overridden(file: tree.File, overrides: Mapping[str, str], problems: Problems) -> tree.File:
    """The file with settings of its model replaced, or added."""
    for key, value in overrides.items():
        source = Source(f"--set {key}", value)
        whole = Span(source, 0, len(value))
        found = re.fullmatch(r"model\.([a-z][a-z0-9_]*)", key)
        setting = _setting(found.group(1), value, source) if found else None
        if setting is None:
            message = f"`--set {key}` does not name a setting of the model with a value"
            problems.add("A111", message, whole, "`model.KEY=VALUE` with one value", "write `--set model.layers=12`")
            continue
        items = tuple(_with_setting(item, setting) if isinstance(item, tree.Model) else item for item in file.items)
        file = replace(file, items=items)
    return file


def _setting(key: str, value: str, source: Source) -> tree.Setting | None:
    """The setting `key = value`, if `value` is one value; its spans point into the value as the user gave it."""
    before = f"model x {{ {key} = "
    text = Source(source.name, f"{before}{value}\n }} layers {{ all: full }}")
    try:
        file = parse(text)
    except SpecError:
        return None
    model = _one(file, tree.Model)
    if model is None or len(model.settings) != 1 or len(file.items) != 2:
        return None
    return model.settings[0]


def _with_setting(model: tree.Model, setting: tree.Setting) -> tree.Model:
    key = setting.key.text
    kept = tuple(setting if one.key.text == key else one for one in model.settings)
    if all(one.key.text != key for one in model.settings):
        kept = (*kept, setting)
    return replace(model, settings=kept)
