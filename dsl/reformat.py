"""`attnc fmt`: a text in the usual layout, with its writer's comments, spellings, and line ends between entries.

Comments and line ends stand in the gaps between words, so the scanner need not keep them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from attnc.dsl.layout import CLOSING, OPENING, Piece, begins_entry, laid_out
from attnc.dsl.parse import parse
from attnc.dsl.problems import Problems
from attnc.dsl.scan import scan
from attnc.dsl.source import Source

OPERATORS = ("|", "+", ">>")

_COMMENT = re.compile(r"#[^\n]*")


def reformatted(source: Source) -> str:
    """The text laid out anew. Raises SpecError if it has mistakes: then nobody knows what it means.

    Line ends are those that the text has (the first one's style); so is the missing end of a last line.
    """
    file = parse(source)
    text = laid_out(_pieces(source))
    again = parse(Source(source.name, text))
    assert again == file, "a new layout that means something else"
    if not source.text.rstrip(" \t").endswith("\n"):
        text = text.removesuffix("\n")
    first_end = source.text.find("\n")
    return text.replace("\n", "\r\n") if source.text[first_end - 1 : first_end] == "\r" else text


def _pieces(source: Source) -> Iterator[Piece]:
    """Words and comments. A line end is kept where it parts entries or operands; what stands before a comma moves behind it."""
    before, depth, at = "", 0, 0
    for word in scan(source, Problems(source)):
        if word.text == ",":
            yield Piece(",")
        else:
            comments = list(_comments(source.text, at, word.span.start))
            yield from comments
            kept = comments or _keeps_line_end(before, word.text, inside=depth > 0)
            end = source.text.rfind("#", at, word.span.start) + 1
            yield Piece(word.text, _line_ends(source.text, max(at, end), word.span.start) if kept else 0)
            at = word.span.end
        depth += (word.text in OPENING) - (word.text in CLOSING)
        before = word.text
    yield from _comments(source.text, at, len(source.text))


def _comments(text: str, start: int, end: int) -> Iterator[Piece]:
    for match in _COMMENT.finditer(text, start, end):
        column = match.start() - text.rfind("\n", 0, match.start()) - 1
        yield Piece(match.group().rstrip(" \t\r"), _line_ends(text, start, match.start()), column)
        start = match.end()


def _line_ends(text: str, start: int, end: int) -> int:
    return min(2, text.count("\n", start, end))


def _keeps_line_end(before: str, word: str, *, inside: bool) -> bool:
    """Whether a line may end between two words: between entries, at brackets, at operators, behind `=` and `:`."""
    if begins_entry(before, word, inside=inside) or before in (*OPENING, ",", *OPERATORS, "=", ":"):
        return True
    return word in CLOSING or word in OPERATORS
