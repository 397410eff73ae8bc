"""The tree as an indented outline, a node a line with its place, for `attnc show --stage tree`."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

from attnc.dsl import tree
from attnc.dsl.format import print_expression

PLACE_COLUMN = 56


def tree_text(file: tree.File) -> str:
    """One node a line: its class, its words, and line:column; what it holds is indented below it."""
    text = file.source.text
    starts = [0, *(at + 1 for at, sign in enumerate(text) if sign == "\n")]
    lines = ["file"]
    for item in file.items:
        for depth, words, start in _outline(item, 1):
            line = bisect_right(starts, start)
            place = f"{line}:{start - starts[line - 1] + 1}"
            lines.append(f"{'  ' * depth + words:{PLACE_COLUMN}} {place}")
    return "\n".join(lines) + "\n"


def _outline(node: Any, depth: int, label: str = "") -> Iterator[tuple[int, str, int]]:
    """Depth, words and first character of a node and of all below it."""
    words = [f"{label}:"] if label else []
    words.append(type(node).__name__.lower())
    inside: list[tuple[str, Any]] = []
    if isinstance(node, tree.Number | tree.Range):
        words.append(print_expression(node))
    else:
        for name, value in _parts(node):
            if isinstance(value, tuple):
                inside += [("", part) for part in value]
            elif isinstance(value, str):
                words.append(value)
            elif name in ("name", "key", "word"):
                words.append(value.text)
            else:
                inside.append((name if isinstance(node, tree.Case) else "", value))
    yield depth, " ".join(words), node.span.start
    for below, part in inside:
        yield from _outline(part, depth + 1, below)


def _parts(node: Any) -> Iterator[tuple[str, Any]]:
    for field in fields(node):
        value = getattr(node, field.name)
        if field.name != "span" and value is not None:
            yield field.name, value
