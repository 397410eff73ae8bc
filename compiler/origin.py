"""Where a checked value comes from: file, line, and its text on one line, printed from the tree."""

from __future__ import annotations

from attnc.compiler.value import Origin
from attnc.dsl import tree
from attnc.dsl.format import print_expression

LONGEST = 160
"""Longer texts are cropped: they are comments in generated code and cells of tables."""


def origin(node: tree.Expression | tree.Case) -> Origin:
    """The origin of a piece of syntax."""
    text = one_line(node)
    shown = text if len(text) <= LONGEST else text[: LONGEST - 3] + "..."
    return Origin(file=node.span.source.name, line=node.span.line, text=shown)


def one_line(node: tree.Expression | tree.Case | tree.Selector) -> str:
    """Syntax as `attnc fmt` spells it, without breaks."""
    if isinstance(node, tree.Case):
        return f"{print_expression(node.selector)}: {print_expression(node.body)}"
    return print_expression(node)
