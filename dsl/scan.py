"""Text into words. What is no word is reported here and, where the intention is plain, read as what was meant."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from attnc.dsl.grammar import Grammar, grammar
from attnc.dsl.problems import Problems
from attnc.dsl.source import Source, Span
from attnc.dsl.stray import misspelt_name, misspelt_number, stray
from attnc.dsl.words import Word

MOST_BYTES = 2**20
MOST_WORDS = 50_000
"""Hundreds of times the longest spec known; bounds the time that a hostile one takes."""
MOST_NESTING = 32
MOST_LETTERS = 64
MOST_DIGITS = 24

_NAME_GOES_ON = re.compile(r"\w|-[A-Za-z]")
_NUMBER_GOES_ON = re.compile(r"[\w%]|\.(?!\.)")
_MANTISSA_ZERO = re.compile(r"-?[0.]*(e|$)")


def scan(source: Source, problems: Problems) -> list[Word]:
    """All words of a text. Raises SpecError at once for what is no text, too large or nested too deep."""
    _refuse_what_is_no_text(source, problems)
    state = _Scan(source, problems, grammar())
    at = 0
    while at < len(source.text):
        at = state.step(at)
    return state.words


def _refuse_what_is_no_text(source: Source, problems: Problems) -> None:
    start = Span(source, 0, 0)
    # Four bytes are the most that a character takes, so the exact count is needed only for texts near the bound.
    size = len(source.text)
    if size > MOST_BYTES // 4:
        size = max(size, len(source.text.encode("utf-8", "surrogatepass")))
    if size > MOST_BYTES:
        help_text = "a spec is a short text; keep weights and data in files of their own"
        problems.add("A002", f"the text has {size} bytes; at most {MOST_BYTES} (1 MiB) are read", start, help=help_text)
        problems.raise_any()
    nul = source.text.find("\0")
    if nul >= 0:
        help_text = "a spec is UTF-8 text; is this the right file?"
        problems.add("A007", "the text holds a NUL character", Span(source, nul, nul + 1), help=help_text)
        problems.raise_any()


@dataclass
class _Scan:
    source: Source
    problems: Problems
    grammar: Grammar
    words: list[Word] = field(default_factory=list)
    open: list[Span] = field(default_factory=list)
    fresh: bool = True

    def step(self, at: int) -> int:
        """Read one word, blank or comment at `at`; where the next one begins."""
        text = self.source.text
        match = self.grammar.pattern.match(text, at)
        if match is None:
            return self._stray(at)
        kind, end = match.lastgroup or "", match.end()
        if kind in self.grammar.ignored:
            self.fresh = self.fresh or "\n" in match.group()
        elif kind == "NAME":
            if end < len(text) and _NAME_GOES_ON.match(text, end):
                return self._misspelt_name(at)
            self._name(at, end)
        elif kind == "NUMBER":
            if end < len(text) and _NUMBER_GOES_ON.match(text, end):
                return self._misspelt_number(at)
            self._number(at, end, match.group())
        else:
            self._add(kind, match.group(), at, end)
        return end

    def _add(self, kind: str, text: str, start: int, end: int, value: int | float | None = None) -> None:
        span = Span(self.source, start, end)
        if text in ("(", "[", "{"):
            self.open.append(span)
            if len(self.open) > MOST_NESTING:
                outermost = (("the outermost bracket opens here", self.open[0]),)
                help_text = "name inner parts with `mix` and use the names"
                message = f"brackets are nested deeper than {MOST_NESTING}"
                self.problems.add("A003", message, span, notes=outermost, help=help_text)
                self.problems.raise_any()
        elif text in (")", "]", "}") and self.open:
            self.open.pop()
        if len(self.words) == MOST_WORDS:
            self.problems.add("A019", f"a spec of more than {MOST_WORDS} words", span, help="name what comes again with `mix`")
            self.problems.raise_any()
        self.words.append(Word(kind, text, span, self.fresh, value))
        self.fresh = False

    def _name(self, start: int, end: int) -> None:
        text = self.source.text[start:end]
        if len(text) > MOST_LETTERS:
            message = f"a name of {len(text)} characters; at most {MOST_LETTERS} are allowed"
            self.problems.add("A004", message, Span(self.source, start, end))
            text = text[:MOST_LETTERS]
        self._add(self.grammar.words.get(text, "NAME"), text, start, end)

    def _number(self, start: int, end: int, text: str) -> None:
        self._add("NUMBER", text, start, end, self._value(text.removesuffix("%"), Span(self.source, start, end)))

    def _value(self, text: str, span: Span) -> int | float:
        # Bounded before conversion: int() refuses 5000 digits with an error of its own, and is slow below that.
        if len(text) > MOST_DIGITS:
            self.problems.add("A005", f"a number of {len(text)} characters; at most {MOST_DIGITS} are allowed", span)
            return 1
        if text.lstrip("-").isdigit():
            return int(text)
        value = float(text)
        if value in (float("inf"), float("-inf")):
            self.problems.add("A005", f"`{text}` is larger than every number that can be computed with", span)
            return 1
        if value == 0 and not _MANTISSA_ZERO.match(text):
            self.problems.add("A005", f"`{text}` is too small to tell from 0", span, help="write `0`", fix="0")
        return value

    def _misspelt_name(self, at: int) -> int:
        end, meant = misspelt_name(self.source, at, self.problems)
        self._meant(meant, at, end)
        return end

    def _misspelt_number(self, at: int) -> int:
        end, meant = misspelt_number(self.source, at, self.problems)
        self._add("NUMBER", meant, at, end, float(meant.removesuffix("%")))
        return end

    def _stray(self, at: int) -> int:
        text = self.source.text
        if text[at].isalpha() or text[at] == "_":
            return self._misspelt_name(at)
        if text[at] == "." and text[at + 1 : at + 2].isdigit():
            return self._misspelt_number(at)
        end, meant = stray(self.source, at, self.problems)
        if meant in self.grammar.signs:
            self._add(self.grammar.signs[meant], meant, at, end)
        elif meant in ("<=", ">=", "=="):
            self._add("COMPARE", meant, at, end)
        elif meant[:1].isalpha():
            self._meant(meant, at, end)
        return end

    def _meant(self, meant: str, start: int, end: int) -> None:
        self._add(self.grammar.words.get(meant, "NAME"), meant[:MOST_LETTERS], start, end)
