"""What every typed stage is made of: frozen values, shares of a length, and the place a value came from."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import MISSING, Field, FrozenInstanceError, dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, dataclass_transform, overload


class Broken(NamedTuple):
    """A rule between the parameters of a value that does not hold.

    `key` is the parameter to point at, "" for the whole value; the rest is as in a diagnostic.
    """

    key: str
    message: str
    expected: str
    help: str
    code: str = "A112"


def derived(*, default_factory: Callable[[dict[str, Any]], Any]) -> Any:
    """A field whose default follows from the fields before it, given by name."""
    return field(default_factory=default_factory)  # type: ignore[arg-type]  # Value calls it, with what it knows


@dataclass_transform(eq_default=False, frozen_default=True, kw_only_default=True, field_specifiers=(field, derived))
class Value:
    """A frozen dataclass by keywords; equality and hashing by content; as JSON by compiler/data.py.

    Its methods are written here once, since `dataclass` compiles them anew for each of about a hundred classes, and reading
    a spec should take no longer than a key press.
    """

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]
    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    def __init_subclass__(cls) -> None:
        dataclass(init=False, repr=False, eq=False, match_args=False)(cls)

    def __init__(self, **given: Any) -> None:
        values = self.__dict__
        for name, declared in self.__dataclass_fields__.items():
            if name in given:
                values[name] = given.pop(name)
            elif declared.default is not MISSING:
                values[name] = declared.default
            elif declared.default_factory is not MISSING:
                values[name] = declared.default_factory(values)  # type: ignore[call-arg]  # see `derived`
            elif declared.init:
                raise TypeError(f"{type(self).__name__} needs `{name}`")
        if given:
            raise TypeError(f"{type(self).__name__} has no {', '.join(map(repr, given))}")
        self.__post_init__()

    def __post_init__(self) -> None:
        """What a class makes of its values as they come in, from a spec as from JSON."""

    def __setattr__(self, name: str, value: Any) -> None:
        raise FrozenInstanceError(f"cannot assign to field {name!r}")

    def __delattr__(self, name: str) -> None:
        raise FrozenInstanceError(f"cannot delete field {name!r}")

    def __eq__(self, other: object) -> bool:
        return self is other or (type(self) is type(other) and self.__dict__ == other.__dict__)

    if TYPE_CHECKING:
        __hash__: ClassVar[Any]  # mypy takes a method for that of the class itself, which is a key of caches
    else:

        def __hash__(self) -> int:
            return hash((type(self), *self.__dict__.values()))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self.__dict__.items())})"

    def broken(self) -> Iterable[Broken]:
        """The rules between parameters that do not hold."""
        return ()


class Share(Value):
    """`25%`: a part of something whose size is known only while running, mostly the sequence's length."""

    percent: float

    def of(self, length: int) -> int:
        """The share of `length`, rounded down, at least 1."""
        return max(1, int(length * self.percent / 100))

    def __str__(self) -> str:
        return f"{self.percent:g}%"


Tokens = int | Share


class Text(str):
    """A number that is known only while a built model runs, as Python source."""

    __slots__ = ()


@overload
def tokens_of(count: Tokens, length: int) -> int: ...
@overload
def tokens_of(count: Tokens, length: int | Text) -> int | Text: ...
def tokens_of(count: Tokens, length: int | Text) -> int | Text:
    """`count` as a number of tokens of a sequence of `length`; as source where the length is source."""
    if isinstance(count, Share):
        return Text(f"share({count.percent!r}, {length})") if isinstance(length, Text) else count.of(length)
    return count


@overload
def part_of(number: int, share: Share) -> int: ...
@overload
def part_of(number: int | Text, share: Share) -> int | Text: ...
def part_of(number: int | Text, share: Share) -> int | Text:
    """A share of a number of tokens, rounded down, 0 allowed; as source where the number is source."""
    if isinstance(number, Text):
        return Text(f"int({number} * {share.percent!r} / 100)")
    return int(number * share.percent / 100)


class Between(Value):
    """`2..19`: a range of whole numbers; both ends belong to it."""

    low: int
    high: int


class Origin(Value):
    """The `.attn` line that a value comes from; `text` is printed from the tree, so it holds nothing but checked words."""

    file: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}  {self.text}"
