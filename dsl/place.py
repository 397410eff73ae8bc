"""The place in the words at which the parser stopped, and questions about what stands around it."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import Literal

from attnc.dsl.source import Span
from attnc.dsl.words import Word

ITEMS = ("model", "mix", "layers", "recipe", "driver")


@dataclass(frozen=True)
class Bracket:
    """An open bracket: its index in the words, its sort, and the height of the parser's stack behind it."""

    index: int
    sort: Literal["(", "[", "settings", "cases"]
    height: int


@dataclass(frozen=True)
class Place:
    """`at` is the index of the word that does not fit; `accepts` says what would, in the spelling of the language.

    Words without one spelling stand in `accepts` as NAME, NUMBER and COMPARE. `resumed`: where the reading began last.
    `closed`: the indices of the brackets that were opened and closed before.
    """

    words: list[Word]
    at: int
    open: tuple[Bracket, ...]
    accepts: frozenset[str]
    resumed: int = 0
    closed: tuple[tuple[int, int], ...] = ()

    @property
    def word(self) -> Word:
        """The word that does not fit; the last of `words` marks the end of the file."""
        return self.words[self.at]

    def text(self, offset: int) -> str:
        """The text of the word that stands `offset` words further; empty outside of the file."""
        index = self.at + offset
        return self.words[index].text if 0 <= index < len(self.words) else ""

    def kind(self, offset: int) -> str:
        """The terminal's name of the word that stands `offset` words further."""
        index = self.at + offset
        return self.words[index].type if 0 <= index < len(self.words) else ""

    @property
    def brace(self) -> int | None:
        """The index in `open` of the innermost brace."""
        return next((i for i in reversed(range(len(self.open))) if self.open[i].sort in ("settings", "cases")), None)

    @property
    def line_start(self) -> int:
        """The index of the first word on this word's line."""
        return next(i for i in range(self.at, -1, -1) if self.words[i].first or i == 0)

    def begins_item(self, at: int) -> bool:
        """Whether an item begins at this index. `layers` may also be a key."""
        words, text = self.words, self.words[at].text
        after = [word.text for word in words[at + 1 : at + 3]]
        if text == "layers":
            return after[:1] == ["{"] or (words[at].first and after[:1] != ["="])
        return text in ITEMS and (words[at].first or text == "recipe" or after[1:] in (["="], ["{"]))

    def may_begin_setting(self, at: int) -> bool:
        """Whether a key could stand at this index."""
        return at < len(self.words) and (self.words[at].type == "NAME" or self.words[at].text in ("layers", "heads"))

    def may_begin_case(self, at: int) -> bool:
        """Whether a selector could begin at this index."""
        return at < len(self.words) and (self.words[at].type in ("NAME", "NUMBER") or self.words[at].text in ("[", "else"))

    def ends_entry(self, at: int) -> bool:
        """Whether an entry could end at this index."""
        return self.words[at].type in ("NAME", "NUMBER") or self.words[at].text in (")", "]", "}")

    def begins_setting(self, at: int) -> bool:
        """Whether `key =` stands at this index."""
        return self.may_begin_setting(at) and at + 1 < len(self.words) and self.words[at + 1].text == "="

    def begins_case(self, at: int) -> bool:
        """Whether `selector:` stands at this index, as far as can be seen without reading the selector."""
        if not self.may_begin_case(at):
            return False
        depth = int(self.words[at].text == "[")
        for word in islice(self.words, at + 1, None):
            depth += (word.text in ("(", "[")) - (word.text in (")", "]"))
            if word.text == ":":
                return True
            if word.text in ("{", "}") or word.first or (word.text == "," and depth <= 0):
                return False
        return False

    @property
    def outer_cases(self) -> int | None:
        """Where the innermost brace holds settings: the index in `open` of the nearest brace around it that holds cases."""
        brace = self.brace
        if brace is None or self.open[brace].sort != "settings":
            return None
        return next((i for i in reversed(range(brace)) if self.open[i].sort == "cases"), None)

    @property
    def inside_cases(self) -> bool:
        """Whether the innermost bracket is not the brace of cases, but one around it is."""
        sorts = [bracket.sort for bracket in self.open]
        return "cases" in sorts and sorts[-1] != "cases"

    @property
    def inline(self) -> bool:
        """Whether the innermost bracket has something behind it on its line, so that it was hardly meant to stay open."""
        return bool(self.open) and not self.words[self.open[-1].index + 1].first

    @property
    def cut_entry(self) -> int | None:
        """Where this word follows the key or selector of an entry that was taken for the end of the one before: its index."""
        start = self.line_start
        if not self.resumed < start < self.at or self.brace is None:
            return None
        if self.words[start - 1].text not in ("=", ":", "|", "+", ">>", ",", "..", "("):
            return None
        sort = self.open[self.brace].sort
        if sort == "settings" and start + 1 == self.at and self.may_begin_setting(start):
            key = self.word.text == "=" or (self.words[start - 1].text == "=" and self.open[-1].sort == "settings")
            return start if key else None
        colon = self.word.text == ":" and self.begins_case(start)
        equals = self.word.text == "=" and self.may_begin_case(start) and start + 1 == self.at and self.open[-1].sort == "cases"
        return start if sort == "cases" and (colon or equals) and self.words[start - 1].text != "," else None

    def odd_pair(self) -> Span | None:
        """The first closing bracket that begins a line and is indented otherwise than the line of its opening one.

        Only those inside of the innermost open bracket count: one of them may have closed what was meant to stay open.
        """
        for opened, closing in self.closed:
            inside = self.open and opened > self.open[-1].index and self.words[closing].first
            if inside and self._indent(closing) != self._indent(opened):
                return self.words[closing].span
        return None

    def _indent(self, at: int) -> int:
        span = self.words[at].span
        line = span.source.text.rfind("\n", 0, span.start) + 1
        rest = span.source.text[line : span.start]
        return len(rest) - len(rest.lstrip())
