"""The outline of a spec: its items, and the cases of `layers`."""

from __future__ import annotations

from lsprotocol import types

from attnc.compiler.origin import one_line
from attnc.dsl import tree
from attnc.dsl.source import Source
from attnc.lsp.document import items
from attnc.lsp.positions import Positions

Symbol = types.DocumentSymbol
Kind = types.SymbolKind
MOST_LETTERS = 80


def symbols(source: Source, at: Positions) -> list[Symbol]:
    """One for each item that can be read."""
    return [_symbol(item, at) for item in items(source)]


def _symbol(item: tree.Item, at: Positions) -> Symbol:
    whole = at.range(item.span)
    match item:
        case tree.Layers(cases=cases):
            inside = [
                Symbol(_shown(case.selector), Kind.Field, at.range(case.span), at.range(case.selector.span)) for case in cases
            ]
            return Symbol("layers", Kind.Namespace, whole, whole, children=inside)
        case tree.Recipe():
            return Symbol("recipe", Kind.Object, whole, whole)
        case tree.Mix(name=name, body=body):
            return Symbol(_name(name), Kind.Variable, whole, at.range(name.span), detail=_shown(body))
        case tree.Model(name=name) | tree.Driver(name=name):
            return Symbol(_name(name), Kind.Module, whole, at.range(name.span), detail=type(item).__name__.lower())


def _name(name: tree.Name) -> str:
    return name.text or "?"


def _shown(node: tree.Expression | tree.Selector) -> str:
    text = one_line(node) or "?"
    return text if len(text) <= MOST_LETTERS else text[: MOST_LETTERS - 3] + "..."
