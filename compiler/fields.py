"""The declared fields of a value class, as the checker reads them: types, bounds, place, budget."""

from __future__ import annotations

import functools
import types
import typing
from collections.abc import Callable
from dataclasses import MISSING, dataclass
from typing import Any, Literal, TypeVar, cast

from attnc.compiler.declare import Bounds, Budgeted, Divides, NotBuilt, Positional
from attnc.compiler.mixer import Kind
from attnc.compiler.value import Between, Share, Value

Marker = TypeVar("Marker")


@dataclass(frozen=True)
class Field:
    """One parameter. `key` is the word in a spec; `name` the field; `types` the members of its union."""

    key: str
    name: str
    types: tuple[Any, ...]
    bounds: Bounds | None
    budgeted: Budgeted | None
    divides: Divides | None
    not_built: NotBuilt | None
    positional: bool
    required: bool
    default: Any
    derived: Callable[[dict[str, Any]], Any] | None = None
    """The default from the parameters before it, where it depends on them."""

    def default_in(self, value: Value) -> Any:
        """What the field is in `value` unless it is given; None for a required one."""
        return self.derived(vars(value)) if self.derived else None if self.required else self.default

    @property
    def literals(self) -> tuple[Any, ...]:
        """The words and numbers that the field's Literal types name."""
        return tuple(word for member in self.types if typing.get_origin(member) is Literal for word in typing.get_args(member))

    def builds(self, value: Any) -> bool:
        """Whether this version of the compiler builds the value."""
        if self.not_built is None or (not self.required and value == self.default):
            return True
        refused = self.not_built.values
        return bool(refused) and not any(type(value) is one or value == one for one in refused)


@functools.cache
def fields(owner: type[Value]) -> dict[str, Field]:
    """The parameters of a value class by their words; its tag (`kind` or `word`) is left out."""
    found = {}
    hints = typing.get_type_hints(owner, include_extras=True)
    for name, declared in owner.__dataclass_fields__.items():
        if name in ("kind", "word"):
            continue
        metadata = typing.get_args(hints[name])[1:] if typing.get_origin(hints[name]) is typing.Annotated else ()
        derived = None if declared.default_factory is MISSING else declared.default_factory
        key = name.rstrip("_")  # `from_`, where Python has another use for the word
        found[key] = Field(
            key=key,
            name=name,
            types=_members(hints[name]),
            bounds=_marker(metadata, Bounds),
            budgeted=_marker(metadata, Budgeted),
            divides=_marker(metadata, Divides),
            not_built=_marker(metadata, NotBuilt),
            positional=_marker(metadata, Positional) is not None,
            required=declared.default is MISSING and derived is None,
            default=None if declared.default is MISSING else declared.default,
            derived=cast("Callable[[dict[str, Any]], Any] | None", derived),
        )
    return found


def tag(owner: type[Value]) -> str:
    """The word that names a value class in a spec: `yarn`."""
    word = owner.__dataclass_fields__.get("word") or owner.__dataclass_fields__["kind"]
    return str(word.default)


def options(members: tuple[Any, ...]) -> list[str]:
    """The words that a field takes."""
    found: list[str] = []
    for member in members:
        if typing.get_origin(member) is Literal:
            found += [str(word) for word in typing.get_args(member)]
        elif member is bool:
            found += ["true", "false"]
        elif member is type(None):
            found.append("none")
        elif is_value(member):
            found.append(tag(member))
    return found


def is_value(member: Any) -> bool:
    """Whether a type is a `word(...)` class."""
    return isinstance(member, type) and issubclass(member, Value) and member not in (Share, Between, Kind)


def expectation(field: Field) -> str:
    """What a field takes, in the user's words: `a whole number from 1 to 16777216, a share, or none`."""
    parts = []
    if int in field.types or float in field.types:
        parts.append(("a whole number" if float not in field.types else "a number") + _limits(field.bounds))
    if Share in field.types:
        low, high = (field.bounds.share_low, field.bounds.share_high) if field.bounds else (0, 100)
        parts.append(f"a share from {low:g}% to {high:g}%")
    if Between in field.types:
        parts.append("a range like `2..19`")
    if takes_keys(field.types):
        parts.append("a union of key sets")
    elif items(field.types):
        inner = [f"`{word}`" for word in options(items(field.types))]
        parts.append("a list" + (f" of {', '.join(inner)}" if inner else " of numbers"))
    parts += [f"`{word}`" for word in options(field.types)]
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} or {parts[-1]}"


def items(members: tuple[Any, ...]) -> tuple[Any, ...]:
    """The types of a list's items."""
    for member in members:
        if typing.get_origin(member) is tuple:
            return _members(typing.get_args(member)[0])
    return ()


def takes_keys(members: tuple[Any, ...]) -> bool:
    """Whether a field holds a union of key sets: its type is `tuple[Kind, ...]`."""
    return Kind in items(members)


def _limits(bounds: Bounds | None) -> str:
    return f" from {number(bounds.low)} to {number(bounds.high)}" if bounds else ""


def number(value: float) -> str:
    """A number as a user would write it."""
    return str(int(value)) if float(value).is_integer() and abs(value) < 1e9 else f"{value:g}".replace("e+", "e")


def _members(annotation: Any) -> tuple[Any, ...]:
    if typing.get_origin(annotation) is typing.Annotated:
        return _members(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return tuple(part for member in typing.get_args(annotation) for part in _members(member))
    return (annotation,)


def _marker(metadata: tuple[Any, ...], kind: type[Marker]) -> Marker | None:
    return next((item for item in metadata if isinstance(item, kind)), None)
