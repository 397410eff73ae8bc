"""Character offsets to an editor's lines and columns, and back."""

from __future__ import annotations

import re
from bisect import bisect_right

from lsprotocol import types

from attnc.dsl.source import Span

_LINE_END = re.compile(r"\r\n|\n|\r")
_WIDE = 0x10000


class Positions:
    """Of one text. Columns count in the units that editor and server agreed on: UTF-16's, unless it is `utf-8` or `utf-32`."""

    def __init__(self, text: str, encoding: str = "utf-16") -> None:
        self.text = text
        self.encoding = encoding
        self.starts = [0, *(match.end() for match in _LINE_END.finditer(text))]

    def position(self, offset: int) -> types.Position:
        """The line and column of a character."""
        line = bisect_right(self.starts, offset) - 1
        return types.Position(line, sum(map(self._units, self.text[self.starts[line] : offset])))

    def range(self, span: Span) -> types.Range:
        """From the first character of a span to behind its last."""
        return types.Range(self.position(span.start), self.position(span.end))

    def offset(self, position: types.Position) -> int:
        """The character at a line and column; the nearest one if there is none."""
        if position.line >= len(self.starts):
            return len(self.text)
        offset, left = self.starts[position.line], position.character
        end = self.starts[position.line + 1] if position.line + 1 < len(self.starts) else len(self.text)
        while offset < end and left > 0 and self.text[offset] not in "\r\n":
            left -= self._units(self.text[offset])
            offset += 1
        return offset

    def whole(self) -> types.Range:
        """All of the text."""
        return types.Range(types.Position(0, 0), self.position(len(self.text)))

    def _units(self, sign: str) -> int:
        if self.encoding == "utf-8":
            return len(sign.encode("utf-8", "surrogatepass"))
        return 2 if ord(sign) >= _WIDE and self.encoding != "utf-32" else 1
