"""From grammar rules to the tree: one method for each rule of dsl/grammar.lark, called when the parser has read the rule.

`children` are the rule's parts in order, punctuation included; every part has a span.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from attnc.dsl import tree
from attnc.dsl.source import Span
from attnc.dsl.words import Word

Children = list[Any]
Node = TypeVar("Node")


@dataclass(frozen=True)
class Sequence(Generic[Node]):
    """What stands between a pair of brackets; the span covers the brackets."""

    items: tuple[Node, ...]
    span: Span


def span_of(children: Children) -> Span:
    """From the first part's first character to the last part's last one."""
    first, last = children[0].span, children[-1].span
    return Span(first.source, first.start, last.end)


def _sequence(children: Children) -> Sequence[Any]:
    return Sequence(tuple(child for child in children if not isinstance(child, Word)), span_of(children))


def _operands(children: Children) -> tuple[tree.Expression, ...]:
    return tuple(children[::2])


class Builder:
    """Has no state; the methods are looked up by name."""

    def NAME(self, word: Word) -> tree.Name:  # noqa: N802, D102
        return tree.Name(word.text, word.span)

    def NUMBER(self, word: Word) -> tree.Number:  # noqa: N802, D102
        assert word.value is not None
        return tree.Number(word.value, word.text.endswith("%"), word.span)

    def start(self, children: Children) -> tuple[tree.Item, ...]:  # noqa: D102
        return tuple(children)

    def model(self, children: Children) -> tree.Model:  # noqa: D102
        _, name, settings = children
        return tree.Model(name, settings.items, span_of(children))

    def mix(self, children: Children) -> tree.Mix:  # noqa: D102
        _, name, _, body = children
        return tree.Mix(name, body, span_of(children))

    def layers(self, children: Children) -> tree.Layers:  # noqa: D102
        return tree.Layers(children[1].items, span_of(children))

    def recipe(self, children: Children) -> tree.Recipe:  # noqa: D102
        return tree.Recipe(children[1].items, span_of(children))

    def driver(self, children: Children) -> tree.Driver:  # noqa: D102
        _, name, settings = children
        return tree.Driver(name, settings.items, span_of(children))

    settings = staticmethod(_sequence)
    cases = staticmethod(_sequence)
    args = staticmethod(_sequence)

    def setting(self, children: Children) -> tree.Setting:  # noqa: D102
        key, _, value = children
        return tree.Setting(key, value, span_of(children))

    def case(self, children: Children) -> tree.Case:  # noqa: D102
        selector, _, body = children
        return tree.Case(selector, body, span_of(children))

    def selector(self, children: Children) -> tree.Selector:  # noqa: D102
        match children:
            case [Word() as word]:
                return tree.Else(word.span)
            case [left, Word() as operator, right]:
                return tree.Compare(left, operator.text, right, span_of(children))
        value: tree.Value = children[0]
        return value

    def attributed(self, children: Children) -> tree.With:  # noqa: D102
        body, settings = children
        return tree.With(body, settings.items, span_of(children))

    def chain(self, children: Children) -> tree.Chain:  # noqa: D102
        return tree.Chain(_operands(children), span_of(children))

    def add(self, children: Children) -> tree.Add:  # noqa: D102
        return tree.Add(_operands(children), span_of(children))

    def join(self, children: Children) -> tree.Union:  # noqa: D102
        return tree.Union(_operands(children), span_of(children))

    def group(self, children: Children) -> tree.Expression:  # noqa: D102
        expression: tree.Expression = children[1]
        return expression

    def block(self, children: Children) -> tree.Block:  # noqa: D102
        word, cases = children[0], children[-1]
        arguments = children[1].items if len(children) == 3 else ()
        return tree.Block(tree.Name(word.text, word.span), arguments, cases.items, span_of(children))

    def range(self, children: Children) -> tree.Range:  # noqa: D102
        return tree.Range(children[0], children[2], span_of(children))

    def list(self, children: Children) -> tree.List:  # noqa: D102
        return tree.List(_sequence(children).items, span_of(children))

    def call(self, children: Children) -> tree.Call:  # noqa: D102
        name, arguments = children
        return tree.Call(name, arguments.items, span_of(children))

    def arg(self, children: Children) -> tree.Argument:  # noqa: D102
        return tree.Argument(None, children[0], span_of(children))

    def named(self, children: Children) -> tree.Argument:  # noqa: D102
        key, _, value = children
        return tree.Argument(key, value, span_of(children))

    def key(self, children: Children) -> tree.Name:  # noqa: D102
        word: Word | tree.Name = children[0]
        return tree.Name(word.text, word.span)
