"""A word of a spec: what the parser reads one at a time."""

from __future__ import annotations

from typing import NamedTuple

from attnc.dsl.source import Span


class Word(NamedTuple):
    """`type` is the terminal's name in the grammar; `first`: no other word stands before it on its line.

    `value` is a number's value.
    """

    type: str
    text: str
    span: Span
    first: bool
    value: int | float | None = None
