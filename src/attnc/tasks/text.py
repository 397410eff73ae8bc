"""Texts of any size, piece by piece: memory does not grow with the file. And a text that every Python has."""

from __future__ import annotations

import codecs
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from attnc.dsl.diagnostic import Diagnostic, SpecError
from attnc.dsl.source import Source, Span
from attnc.tasks.examples import NOT_ASKED

PIECE = 2**16
"""Bytes that are read at once."""

CALIBRATION = 0.8
"""The share of `pydoc_data.topics` that may be learned from; what follows is held out."""

Encode = Callable[[str], list[int]]


@dataclass(frozen=True)
class Text:
    """A file, or a text in memory; `name` is what reports call it."""

    name: str
    source: Path | str

    def digest(self) -> str:
        """SHA-256 of its bytes. Reads it whole: SpecError A561 if it is not UTF-8, A562 if it is blank."""
        sha, blank = hashlib.sha256(), True
        for piece in self.pieces():
            sha.update(piece.encode())
            blank = blank and not piece.strip()
        if blank:
            raise problem("A562", f"{self.name} holds no text", self.name, "name a file with text")
        return sha.hexdigest()

    def pieces(self) -> Iterator[str]:
        """The text in order, cut between a letter and the blank after it where there is such a place, else anywhere."""
        kept = ""
        for read in self._read():
            kept += read
            cut = _boundary(kept)
            if cut:
                yield kept[:cut]
                kept = kept[cut:]
        if kept:
            yield kept

    def _read(self) -> Iterator[str]:
        if isinstance(self.source, str):
            yield from (self.source[start : start + PIECE] for start in range(0, len(self.source), PIECE))
            return
        decoder, place = codecs.getincrementaldecoder("utf-8")(), 0
        with self.source.open("rb") as file:
            while True:
                data = file.read(PIECE)
                waiting = len(decoder.getstate()[0])
                try:
                    text = decoder.decode(data, final=not data)
                except UnicodeDecodeError as error:
                    byte = place - waiting + error.start
                    message = f"byte {byte} of {self.name} is no UTF-8: 0x{error.object[error.start]:02x}"
                    help_line = f"`iconv -f latin1 -t utf-8 {self.name}` converts a text of that encoding"
                    raise problem("A561", message, self.name, help_line) from error
                if text:
                    yield text
                if not data:
                    return
                place += len(data)

    def tokens(self, encode: Encode) -> Iterator[int]:
        """The tokens of its pieces, one after another; `encode` adds none of its own."""
        for piece in self.pieces():
            yield from encode(piece)


def _boundary(text: str) -> int:
    """Where to cut: the last place in the second half with a letter before and a blank after; tokenizers do not join these.

    A text without such a place is cut nowhere until it has grown to four pieces.
    """
    for place in range(len(text) - 1, len(text) // 2, -1):
        if text[place].isspace() and text[place - 1].isalpha():
            return place
    return len(text) if len(text) >= 4 * PIECE else 0


def topics(held_out: bool = True) -> Text:
    """English prose about Python, from `pydoc_data.topics`: its last fifth, or the first four for calibration."""
    from pydoc_data.topics import topics as found

    whole = "\n\n".join(found[name].strip() for name in sorted(found))
    cut = whole.index("\n\n", int(CALIBRATION * len(whole)))
    name = f"pydoc_data.topics, {'the last 20%' if held_out else 'the first 80%'}"
    return Text(name, whole[cut:] if held_out else whole[:cut])


def windows(tokens: Iterator[int], length: int, first: tuple[int, ...] = ()) -> Iterator[tuple[list[int], list[int]]]:
    """(inputs, targets) of at most `length` tokens each, so that every token of the text is a target once.

    `first` is what the tokenizer puts before a text: with it each window begins so and is read by itself; without, a window
    begins with the last token of the one before, and the very first token is no target.
    """
    before = list(first) or list(islice(tokens, 1))
    space = length - len(before) + 1
    while before:
        asked = list(islice(tokens, space))
        if not asked:
            return
        inputs = [*before, *asked[:-1]]
        yield inputs, [*(NOT_ASKED for _ in before[1:]), *asked]
        before = list(first) or asked[-1:]


def problem(code: str, message: str, file: str, help: str) -> SpecError:  # noqa: A002
    """An error about a file as a whole."""
    return SpecError([Diagnostic(code, message, Span(Source(file, ""), 0, 0), help=help)])
