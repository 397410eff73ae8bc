"""Where a checked value comes from: file, line, and its text on one line, printed from the tree."""

from __future__ import annotations

import re
from pathlib import PurePath

from attnc.compiler.value import Origin
from attnc.dsl import tree
from attnc.dsl.format import print_expression
from attnc.dsl.source import Source, Span

LONGEST = 160
"""Longer texts are cropped: they are comments in generated code and cells of tables."""


def origin(node: tree.Expression | tree.Case) -> Origin:
    """The origin of a piece of syntax."""
    text = one_line(node)
    shown = text if len(text) <= LONGEST else text[: LONGEST - 3] + "..."
    return Origin(file=file_name(node.span.source), line=node.span.line, text=shown)


def span_of(one: Origin) -> Span:
    """A span for diagnostics about a checked spec: the origin's line, which holds its text alone."""
    source = Source(one.file, "\n" * (one.line - 1) + one.text)
    return Span(source, one.line - 1, len(source.text))


def file_name(source: Source) -> str:
    """The name of a spec's file without its folder, so that the same spec gives the same code wherever it lies.

    Nothing but plain letters, digits and a few signs: the name is printed into generated code.
    """
    return re.sub(r"[^A-Za-z0-9._<>()+ -]", "_", PurePath(source.name).name) or "_"


def one_line(node: tree.Expression | tree.Case | tree.Selector) -> str:
    """Syntax as `attnc fmt` spells it, without breaks."""
    if isinstance(node, tree.Case):
        return f"{print_expression(node.selector)}: {print_expression(node.body)}"
    return print_expression(node)
