"""What every typed stage is made of: frozen values, shares of a length, and the place a value came from."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, overload

from pydantic import BaseModel, ConfigDict


class Broken(NamedTuple):
    """A rule between the parameters of a value that does not hold.

    `key` is the parameter to point at, "" for the whole value; the rest is as in a diagnostic.
    """

    key: str
    message: str
    expected: str
    help: str
    code: str = "A112"


class Value(BaseModel):
    """A frozen, strict pydantic model; equality and hashing by content."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

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
