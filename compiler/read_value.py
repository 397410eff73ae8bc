"""Syntax value -> typed value, by the declaration of the field that it fills."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, TypeVar

from attnc.compiler.advice import about_key, about_value, as_argument, as_attribute, as_inner, by_key, sample
from attnc.compiler.budgets import read_budget
from attnc.compiler.fields import Field, expectation, fields, is_value, items, number, tag, takes_keys
from attnc.compiler.mixer import Kind
from attnc.compiler.mixers import MIXERS
from attnc.compiler.origin import one_line
from attnc.compiler.place import INVALID, Invalid, Place, named
from attnc.compiler.print_value import print_value
from attnc.compiler.problems import Problems, one_of
from attnc.compiler.value import Between, Share, Value
from attnc.dsl import tree
from attnc.dsl.diagnostic import reworded
from attnc.dsl.excerpt import quoted
from attnc.dsl.source import Span

Anything = TypeVar("Anything", bound=Value)
NO_ARGUMENTS: Mapping[str, str] = MappingProxyType({})


def read(value: tree.Expression, field: Field, owner: str, place: Place) -> Any:
    """The typed value that `value` writes for `field` of `owner`, or INVALID after reporting why not."""
    if takes_keys(field.types) and not _is_none(value, field):
        assert place.mixes is not None, f"{owner}.{field.key} is a union, read outside of any kind"
        return place.mixes.keys(value, place.at(field.key))
    match value:
        case tree.Number():
            result = _number(value, field, owner, place)
        case tree.Range(low=low, high=high) if Between in field.types:
            result = _range(low, high, field, owner, place)
        case tree.List(items=parts) if items(field.types):
            inner = replace(field, types=items(field.types))
            read_parts = [read(part, inner, owner, place) for part in parts]
            result = INVALID if INVALID in read_parts else tuple(read_parts)
        case tree.Call(name=tree.Name(text="budget")):
            result = read_budget(value, field, owner, place, read, read_arguments)
        case tree.Name(text=word) | tree.Call(name=tree.Name(text=word)):
            result = _word(value, word, field, owner, place)
        case _:
            result = _mismatch(value, field, owner, place)
    return result


def read_call(value: tree.Name | tree.Call, owner: type[Anything], place: Place) -> Anything | Invalid:
    """`yarn(32, original = 4096)` as a value of class `owner`, whose word was already recognised."""
    word = value.text if isinstance(value, tree.Name) else value.name.text
    arguments = () if isinstance(value, tree.Name) else value.arguments
    return read_arguments(word, arguments, value.span, owner, place)


def read_arguments(
    word: str, arguments: tuple[tree.Argument, ...], span: Span, owner: type[Anything], place: Place
) -> Anything | Invalid:
    """Arguments by place and by key as a value of class `owner`; every one is read before INVALID is returned."""
    declared = fields(owner)
    by_place = [field for field in declared.values() if field.positional]
    given: dict[str, Any] = {}
    read_from: list[tuple[Field, tree.Argument]] = []
    sound = True
    keys = {argument.key.text for argument in arguments if argument.key is not None}
    for argument in arguments:
        found = _argument_field(argument, word, owner, by_place, keys | set(given), place.problems)
        if found is None:
            sound = False
            continue
        if found.key in given:
            message = f"`{found.key}` of `{word}` is given by place and by key"
            place.problems.add("A106", message, argument.span, "each once", f"remove one `{found.key}`")
            sound = False
            continue
        given[found.key] = read(argument.value, found, word, place.at(word))
        read_from.append((found, argument))
        sound &= given[found.key] is not INVALID
    missing = [field for field in declared.values() if field.required and field.key not in given]
    if missing and sound:
        _report_missing(word, missing, span, place.problems)
        sound = False
    if not sound:
        return INVALID
    result = owner(**{declared[key].name: value for key, value in given.items()})
    where = {found.key: argument.span for found, argument in read_from}
    sound = _divides(result, word, span, place.problems)
    return result if together(result, where, span, place.problems) and sound else INVALID


def _report_missing(word: str, missing: list[Field], span: Span, problems: Problems) -> None:
    """Required arguments that are not there."""
    numeric = [field.positional and (int in field.types or float in field.types) for field in missing]
    names = ["a number" if number else f"`{field.key}`" for field, number in zip(missing, numeric, strict=True)]
    values = ["..." if number else sample(field) for field, number in zip(missing, numeric, strict=True)]
    shown = [value if field.positional else f"{field.key} = {value}" for field, value in zip(missing, values, strict=True)]
    by_key = not any(field.positional for field in missing)
    help_line = f"add {' and '.join(f'`{one}`' for one in shown)}" if by_key else f"write `{word}({', '.join(shown)})`"
    expected = f"`{missing[0].key}`: {expectation(missing[0])}"
    problems.add("A105", f"`{word}` needs {' and '.join(names)}", span, expected, help_line)


def read_settings(
    settings: tuple[tree.Setting, ...], owner: type[Value], word: str, place: Place, arguments: Mapping[str, str] = NO_ARGUMENTS
) -> dict[str, tuple[Any, Span]]:
    """`{ key = value }` by the fields of `owner`: key -> typed value and the span of its setting; INVALID values are kept.

    `arguments` belong into the parentheses of what stands before the braces: key -> its word.
    """
    declared = fields(owner)
    given: dict[str, tuple[Any, Span]] = {}
    for setting in settings:
        key = setting.key.text
        if key not in declared:
            advice = about_key(key, declared, [one.key.text for one in settings], as_argument(key, arguments))
            expected = one_of(declared, f"a key of {word}")
            place.problems.add("A102", f"{word} has no key `{key}`", setting.key.span, expected, advice.help, fix=advice.fix)
        else:
            given[key] = (read(setting.value, declared[key], word, place), setting.span)
    return given


def _argument_field(
    argument: tree.Argument, word: str, owner: type[Value], by_place: list[Field], given: Collection[str], problems: Problems
) -> Field | None:
    """The field that an argument fills; by place, the first that is left. Takes it out of `by_place`."""
    declared = fields(owner)
    if argument.key is None:
        if by_place:
            return by_place.pop(0)
        if declared:
            further = " further" if any(field.positional for field in declared.values()) else ""
            message, expected = f"`{word}` takes no{further} argument by place", one_of(declared, f"a key of `{word}`")
            help_line = by_key(argument.value, (field for field in declared.values() if field.key not in given))
        else:
            message, expected, help_line = f"`{word}` takes no arguments", "no arguments", f"write `{word}`"
        problems.add("A102", message, argument.span, expected, help_line)
        return None
    key = argument.key.text
    if key not in declared:
        expected = one_of(declared, f"a key of `{word}`") if declared else "no arguments"
        advice = about_key(key, declared, given, as_attribute(key, owner) or as_inner(key, declared))
        problems.add("A102", f"`{word}` has no key `{key}`", argument.key.span, expected, advice.help, fix=advice.fix)
        return None
    if declared[key] in by_place:
        by_place.remove(declared[key])
    return declared[key]


def _number(value: tree.Number, field: Field, owner: str, place: Place) -> Any:
    if value.share:
        if Share not in field.types:
            return _mismatch(value, field, owner, place)
        low, high = (field.bounds.share_low, field.bounds.share_high) if field.bounds else (0.0, 100.0)
        return Share(percent=float(value.value)) if in_bounds(value, low, high, field, owner, place) else INVALID
    whole = isinstance(value.value, int)
    if whole and value.value in field.literals:
        return value.value
    if not (float in field.types or (whole and int in field.types)):
        return _mismatch(value, field, owner, place)
    low, high = (field.bounds.low, field.bounds.high) if field.bounds else (-(2.0**53), 2.0**53)
    if not in_bounds(value, low, high, field, owner, place):
        return INVALID
    return value.value if int in field.types and whole else float(value.value)


def in_bounds(value: tree.Number, low: float, high: float, field: Field, owner: str, place: Place) -> bool:
    """Whether a number lies in low..high; reports it if not."""
    if low <= value.value <= high:
        return True
    unit = "%" if value.share else ""
    bounds = f"{number(low)}{unit} to {number(high)}{unit}"
    bound = low if math.isnan(value.value) or value.value < low else high
    place.problems.add(
        "A104",
        f"`{field.key}` of {named(owner)} must lie in {bounds}",
        value.span,
        expectation(field),
        f"the nearest value allowed is `{number(bound)}{unit}`",
    )
    return False


def _range(low: tree.Number, high: tree.Number, field: Field, owner: str, place: Place) -> Any:
    ends = (low.value, high.value)
    if low.share or high.share or not all(isinstance(end, int) for end in ends):
        return _mismatch(low if low.share else high, field, owner, place)
    bounds = field.bounds
    assert bounds is not None, f"{owner}.{field.key} is a range without bounds"
    sound = [in_bounds(end, bounds.low, bounds.high, field, owner, place) for end in (low, high)]
    if not all(sound):
        return INVALID
    return Between(low=int(ends[0]), high=int(ends[1]))


def _word(value: tree.Name | tree.Call, word: str, field: Field, owner: str, place: Place) -> Any:
    """A word with or without arguments: `none`, `true`, one of some words, or a `word(...)` class."""
    classes = {tag(member): member for member in field.types if is_value(member)}
    if word in classes:
        return read_call(value, classes[word], place.at(field.key))
    if isinstance(value, tree.Name):
        if word == "none" and type(None) in field.types:
            return None
        if word in ("true", "false") and bool in field.types:
            return word == "true"
        if word in field.literals:
            return word
        kinds = place.mixes.kinds(word) if place.mixes is not None else ()
        if len(kinds) == 1 and type(kinds[0]) in classes.values():
            return kinds[0]
    return _mismatch(value, field, owner, place)


def _mismatch(value: tree.Expression, field: Field, owner: str, place: Place) -> Invalid:
    message = f"`{field.key}` of {named(owner)} cannot be {quoted(one_line(value))}"
    advice = about_value(value, field)
    fix = reworded(value.span, advice.fix) if advice.fix else None
    place.problems.add("A103", message, value.span, expectation(field), advice.help, fix=fix)
    return INVALID


def _is_none(value: tree.Expression, field: Field) -> bool:
    return isinstance(value, tree.Name) and value.text == "none" and type(None) in field.types


def together(value: Value, where: dict[str, Span], span: Span, problems: Problems) -> bool:
    """The declared rules between the parameters of a value hold; `where` says which argument gave what."""
    of_kind = MIXERS[value.kind].rules(value) if isinstance(value, Kind) else ()
    broken = [*value.broken(), *of_kind]
    for one in broken:
        problems.add(one.code, one.message, where.get(one.key, span), one.expected, one.help)
    return not broken


def _divides(value: Value, word: str, span: Span, problems: Problems) -> bool:
    """The declared `Divides` of a value class hold."""
    for field in fields(type(value)).values():
        if field.divides is None:
            continue
        part, whole = getattr(value, field.name), getattr(value, field.divides.field)
        if part == 1 or (isinstance(whole, int) and whole % part == 0):
            continue
        shown = f"{field.key} = {part} does not divide {field.divides.field} = {whole} of `{word}`"
        help_line = f"write a number of tokens for `{field.divides.field}`"
        if isinstance(whole, int):
            better = replace(value, **{field.divides.field: max(part, round(whole / part) * part)})
            help_line = f"write `{print_value(better)}`"
        problems.add("A204", shown, span, f"{field.divides.field} a multiple of {field.key}", help_line)
        return False
    return True
