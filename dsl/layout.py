"""Words to text: which of them touch, how lines are indented, which colons stand under one another.

Every text of the language is printed here. What to print comes from a tree (dsl/format.py), which says where lines end, or
from a text (dsl/reformat.py), whose lines and comments are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from attnc.dsl.place import ITEMS

INDENT = "  "
OPENING, CLOSING = ("(", "[", "{"), (")", "]", "}")
BEFORE_COMMENT = 2
"""Spaces, at least, between words and a comment."""


class Piece(NamedTuple):
    """A word, or a comment from `#` on.

    `lines`: how many line ends stand before it; two leave a line empty. `column`: where its writer put a comment.
    """

    text: str
    lines: int = 0
    column: int = 0

    @property
    def is_comment(self) -> bool:
        """Whether this is a comment; one with a line end before it has a line of its own."""
        return self.text.startswith("#")


def joined(words: Iterable[str]) -> str:
    """The words on one line."""
    text = before = ""
    for word in words:
        text += f" {word}" if before and _apart(before, word) else word
        before = word
    return text


def laid_out(pieces: Iterable[Piece]) -> str:
    """The text: a line end only where a piece asks for one, or where a bracket is broken or a comment ends."""
    lines = _lines(_with_line_ends(list(pieces)))
    _align_colons(lines)
    _align_comments(lines)
    return "".join(f"{INDENT * line.indent}{line.text}".rstrip() + "\n" for line in lines)


def ends_operand(word: str) -> bool:
    """Whether an entry may end with this word."""
    return word[-1:].isalnum() or word[-1:] in ("_", "%", *CLOSING)


def begins_entry(before: str, word: str, *, inside: bool) -> bool:
    """Whether an entry of a bracket, or outside of brackets an item, begins with `word`, which stands behind `before`."""
    if not inside:
        return word in ITEMS
    starts = word[:1].isalnum() or word[:1] in ("-", "[")
    return before in (*OPENING, ",") or (starts and ends_operand(before))


def _apart(before: str, word: str) -> bool:
    if before in ("(", "[", "..") or word in (")", "]", ",", ":", ".."):
        return False
    return not (word == "(" and (before[-1].isalnum() or before[-1] == "_"))


def _with_line_ends(pieces: list[Piece]) -> list[Piece]:
    """A comment ends its line, an item begins one, and a bracket that is broken is broken at both ends."""
    found: list[Piece] = []
    open_at: list[int] = []
    broken: set[int] = set()
    pairs: list[tuple[int, int]] = []
    before = ""
    for piece in pieces:
        text, at = piece.text, len(found)
        lines = max(piece.lines, int(bool(found) and found[-1].is_comment))
        if text in CLOSING:
            pairs.append((open_at.pop(), at))
        owner = pairs[-1][0] if text in CLOSING else open_at[-1] if open_at else None
        begins = begins_entry(before, text, inside=owner is not None)
        if begins and owner is None and found:
            lines = max(lines, 1)
        if owner is not None and lines and (text in CLOSING or begins or (piece.is_comment and before in (*OPENING, ","))):
            broken.add(owner)
        found.append(piece._replace(lines=lines if begins or piece.is_comment else min(lines, 1)))
        if text in OPENING:
            open_at.append(at)
        before = before if piece.is_comment else text
    for opening, closing in pairs:
        inside = opening + 1
        if opening in broken:
            trailing = found[inside].is_comment and not found[inside].lines
            found[inside] = found[inside]._replace(lines=0 if trailing else 1)
            found[closing] = found[closing]._replace(lines=1)
    return found


@dataclass
class _Line:
    """`colon`: where the colon stands, in a line that is one whole case."""

    indent: int
    words: list[str]
    comment: str = ""
    column: int = 0
    colon: int | None = None
    text: str = ""


def _lines(pieces: Sequence[Piece]) -> list[_Line]:
    lines: list[_Line] = []
    open_lines: list[int] = []
    before = ""
    for index, piece in enumerate(pieces):
        if not lines or piece.lines:
            if piece.lines > 1 and lines:
                lines.append(_Line(0, []))
            word = piece.text if not piece.is_comment else _next_word(pieces, index)
            closes = word in CLOSING and not piece.is_comment
            inner = open_lines[-1] if open_lines else -1
            entry = not word or word in CLOSING or begins_entry(before, word, inside=bool(open_lines))
            lines.append(_Line(inner if closes else inner + 1 + (not entry), []))
        line = lines[-1]
        if piece.is_comment:
            line.comment, line.column = piece.text, piece.column
            continue
        if piece.text in OPENING:
            open_lines.append(line.indent)
        elif piece.text in CLOSING:
            open_lines.pop()
        line.words.append(piece.text)
        before = piece.text
    for line, following in zip(lines, [*lines[1:], _Line(0, [])], strict=True):
        line.text = joined(line.words)
        goes_on = bool(following.words or following.comment) and following.indent > line.indent
        line.colon = None if goes_on else _colon(line.words)
    return lines


def _next_word(pieces: Sequence[Piece], index: int) -> str:
    return next((piece.text for piece in pieces[index:] if not piece.is_comment), "")


def _colon(words: list[str]) -> int | None:
    """Where the colon stands, if the words are one case."""
    depth, found = 0, None
    for index, word in enumerate(words):
        depth += (word in OPENING) - (word in CLOSING)
        if depth < 0 or (word == "," and depth == 0 and index < len(words) - 1):
            return None
        if word == ":" and depth == 0:
            found = len(joined(words[:index]))
    return found if depth == 0 else None


def _align_colons(lines: list[_Line]) -> None:
    """In a run of cases that take one line each."""
    for run in _runs(lines, lambda line: line.colon is not None, through=lambda line: bool(line.comment) and not line.words):
        cases = [line for line in run if line.colon is not None]
        column = max((line.colon or 0 for line in cases), default=0)
        for line in cases:
            assert line.colon is not None
            line.text = f"{line.text[: line.colon]:{column}}{line.text[line.colon :]}"


def _align_comments(lines: list[_Line]) -> None:
    """Behind words: under one another in a run of lines, no further to the left than the leftmost was written."""
    behind = [line for line in lines if line.words and line.comment]
    alone = [[line] for line in behind if not _is_balanced(line.words)]
    for run in [*alone, *_runs(lines, lambda line: bool(line.words and line.comment) and _is_balanced(line.words))]:
        written = min(line.column for line in run) - len(INDENT) * run[0].indent
        column = max(written, *(len(line.text) + BEFORE_COMMENT for line in run))
        for line in run:
            line.text = f"{line.text:{column}}{line.comment}"
    for line in lines:
        if line.comment and not line.words:
            line.text = line.comment


def _is_balanced(words: list[str]) -> bool:
    """Whether every bracket that the words open or close is closed or opened there too."""
    depth = lowest = 0
    for word in words:
        depth += (word in OPENING) - (word in CLOSING)
        lowest = min(lowest, depth)
    return depth == lowest == 0


def _runs(
    lines: list[_Line], belongs: Callable[[_Line], bool], through: Callable[[_Line], bool] = lambda _line: False
) -> Iterator[list[_Line]]:
    """Neighbouring lines of one indent that belong together; `through`: lines that do not, but part nothing."""
    run: list[_Line] = []
    for line in lines:
        if run and (line.indent != run[0].indent or not (belongs(line) or through(line))):
            yield run
            run = []
        if belongs(line):
            run.append(line)
    if run:
        yield run
