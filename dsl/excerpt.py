"""The source line under a diagnostic, with carets: rustc's layout, for any line that a file may hold."""

from __future__ import annotations

import unicodedata

from attnc.dsl.source import Span

WIDTH = 120
"""Columns of an excerpt; longer lines are cropped around the place."""

BEFORE = 60
"""Columns kept before the place when a line is cropped."""

CROPPED = "..."


def escaped(text: str) -> str:
    """`text` with everything that a terminal would not show as one sign written out: `\\x00`, `\\u200b`; a tab is a space."""
    return "".join(_shown(sign) for sign in text)


def quoted(text: str, limit: int = 40) -> str:
    """`text` of a file as it may stand in a message: in back quotes, on one line, cropped to `limit` characters."""
    cropped = text if len(text) <= limit else text[: limit - len(CROPPED)] + CROPPED
    return f"`{escaped(cropped)}`"


def excerpt(span: Span) -> list[str]:
    """The lines `  --> file:line:column`, the source line, and the carets below it."""
    source = span.source
    if not source.text:
        return [f"  --> {escaped(source.name)}"]
    number, column = source.line_and_column(span.start)
    text = source.line(number)
    start = min(column - 1, len(text))
    end = min(max(start + span.end - span.start, start + 1), max(len(text), start + 1))
    shown, before, width = _crop(text, start, end)
    gutter = " " * len(str(number))
    return [
        f"{gutter} --> {escaped(source.name)}:{number}:{column}",
        f"{gutter} |",
        f"{number} | {shown}".rstrip(),
        f"{gutter} | {' ' * before}{'^' * width}",
    ]


def _crop(text: str, start: int, end: int) -> tuple[str, int, int]:
    """The shown line, the columns before the caret, and the number of carets."""
    left = max(0, start - BEFORE) if len(text) > WIDTH else 0
    before = "".join(map(_shown, text[left:start]))
    place = "".join(map(_shown, text[start : min(end, left + WIDTH)]))
    after = "".join(map(_shown, text[end : left + WIDTH]))
    head = CROPPED if left else ""
    tail = CROPPED if len(text) > left + WIDTH else ""
    return head + before + place + after + tail, len(head) + _columns(before), max(1, _columns(place))


def _shown(sign: str) -> str:
    if sign.isprintable():
        return sign
    if sign == "\t":
        return " "
    return sign.encode("unicode_escape", "backslashreplace").decode("ascii")


def _columns(text: str) -> int:
    """Columns of a terminal: a wide sign takes two, a combining one none."""
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)
