"""Values as data and back: JSON has a field for each of a value's, and `kind`, `word` or `node` tells classes apart."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from attnc.compiler.value import Value

if TYPE_CHECKING:
    from pydantic import TypeAdapter

Anything = TypeVar("Anything", bound=Value)


class ToldApart:
    """In an annotation: the field whose word tells the classes of a union apart, so that data is read once and not for each."""

    def __init__(self, field: str) -> None:
        self.field = field

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        from pydantic import Discriminator

        return handler.generate_schema(Annotated[source, Discriminator(self.field)])


def named_class(base: type[Value], classes: Callable[[str], type[Value] | None], handler: Any) -> Any:
    """pydantic's schema of an open class: data goes to the class that its `kind` names."""
    from pydantic import BeforeValidator

    def read(data: Any) -> Value:
        if isinstance(data, base):
            return data
        word = data.get("kind") if isinstance(data, dict) else None
        owner = classes(str(word))
        if owner is None:
            raise ValueError(f"{word!r} names no {base.__name__.lower()}")
        made: Value = adapter(owner).validate_python(data)
        return made

    return handler.generate_schema(Annotated[Any, BeforeValidator(read)])


def to_data(value: Any) -> Any:
    """A value as JSON's dictionaries, lists, numbers, words and None."""
    if isinstance(value, Value):
        return {name: to_data(inner) for name, inner in vars(value).items()}
    if isinstance(value, tuple | list):
        return [to_data(inner) for inner in value]
    return {key: to_data(inner) for key, inner in value.items()} if isinstance(value, dict) else value


def to_json(value: Value, indent: int | None = None) -> str:
    """A value as JSON."""
    return json.dumps(to_data(value), indent=indent, ensure_ascii=False)


def from_data(owner: type[Anything], data: Any) -> Anything:
    """A value of class `owner`; pydantic's ValidationError where the data is no such value."""
    made: Anything = adapter(owner).validate_python(data)
    return made


def from_json(owner: type[Anything], text: str | bytes) -> Anything:
    """A value of class `owner`; pydantic's ValidationError where the text is no such value."""
    made: Anything = adapter(owner).validate_json(text)
    return made


@functools.cache
def adapter(owner: type[Anything]) -> TypeAdapter[Anything]:
    """What pydantic makes of a class; made when first used, because no spec is checked with it."""
    from pydantic import TypeAdapter

    return TypeAdapter(owner)
