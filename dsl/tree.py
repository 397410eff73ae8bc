"""The syntax tree: what was written, nothing more. No kind is known here.

Spans are left out of comparison, so two trees are equal when they say the same thing.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from attnc.dsl.source import Source, Span


@dataclass(frozen=True)
class Name:
    """A word: a kind, a mix, a key, a choice."""

    text: str
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True)
class Number:
    """`7`, `-0.85`, `1e-6`, or with `share` set `25%` (value 25)."""

    value: int | float
    share: bool
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True)
class Range:
    """`16..96`; both ends belong to it."""

    low: Number
    high: Number
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True)
class List:
    """`[q, k, 0..3]`."""

    items: tuple[Value, ...]
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True)
class Argument:
    """One item between parentheses, with a key or by place."""

    key: Name | None
    value: Expression
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True)
class Call:
    """`window(1024, aligned = 64)`."""

    name: Name
    arguments: tuple[Argument, ...]
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True)
class Setting:
    """`key = value` between braces."""

    key: Name
    value: Value
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True)
class Else:
    """The selector `else`."""

    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True)
class Compare:
    """The selector `length < 8192`."""

    left: Value
    operator: str
    right: Value
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True)
class Case:
    """`selector: expression` between braces."""

    selector: Selector
    body: Expression
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True)
class Block:
    """`heads`, `when`, `choose` or `route` with its cases."""

    word: Name
    arguments: tuple[Argument, ...]
    cases: tuple[Case, ...]
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True)
class Union:
    """`A | B`: key sets under one softmax."""

    parts: tuple[Expression, ...]
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True)
class With:
    """`A { key = value }`: attributes of A."""

    body: Expression
    settings: tuple[Setting, ...]
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True)
class Add:
    """`A + B`: outputs added."""

    parts: tuple[Expression, ...]
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True)
class Chain:
    """`A >> B`: B reads A's output."""

    parts: tuple[Expression, ...]
    span: Span = field(compare=False, repr=False)


Value = Number | Range | List | Name | Call
Expression = Value | Block | Union | With | Add | Chain
Selector = Else | Number | Range | List | Name | Call | Compare


@dataclass(frozen=True)
class Model:
    """`model NAME { settings }`."""

    name: Name
    settings: tuple[Setting, ...]
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True)
class Mix:
    """`mix NAME = expression`."""

    name: Name
    body: Expression
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True)
class Layers:
    """`layers { cases }`."""

    cases: tuple[Case, ...]
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True)
class Recipe:
    """`recipe { settings }`."""

    settings: tuple[Setting, ...]
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True)
class Driver:
    """`driver NAME { settings }`."""

    name: Name
    settings: tuple[Setting, ...]
    span: Span = field(compare=False, repr=False)


Item = Model | Mix | Layers | Recipe | Driver


@dataclass(frozen=True)
class File:
    """A whole spec, its items in the order written."""

    items: tuple[Item, ...]
    source: Source = field(compare=False, repr=False)
