"""Words into items. After a mistake, reading goes on at the next entry of the same brace or at the next item.

The parser's stack is cut back to the last whole entry (or item), which is a state that the parser was in before, and
is fed again from the word where the next one begins. Brackets are counted here, beside the parser.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

from attnc.dsl import mistakes, tree
from attnc.dsl.grammar import grammar
from attnc.dsl.machine import Machine, Row
from attnc.dsl.place import Bracket, Place
from attnc.dsl.problems import Problems
from attnc.dsl.repair import drop_empty_calls, repaired
from attnc.dsl.source import Source, Span
from attnc.dsl.words import Word


def read_items(source: Source, words: list[Word], problems: Problems) -> tuple[tree.Item, ...]:
    """The items of a text; if there were mistakes, those that could be read, perhaps with entries missing."""
    reader = _Reader(source, drop_empty_calls(words, problems), problems)
    at = 0
    while at < len(reader.words):
        at = reader.step(at)
    return reader.finish()


@dataclass(frozen=True)
class _Resume:
    """Where to read on: the word's index, and how many brackets are still open there."""

    at: int
    brackets: int


class _Reader:
    def __init__(self, source: Source, words: list[Word], problems: Problems) -> None:
        end = Span(source, len(source.text), len(source.text))
        self.end = Word("$END", "", end, first=True)
        self.words = words
        self.problems = problems
        self.grammar = grammar()
        self.parser: Machine = self.grammar.start()
        self.open: list[Bracket] = []
        self.closed: list[tuple[int, int]] = []
        self.resumed = 0

    def step(self, at: int) -> int:
        """Read the word at `at`; the index of the next word to read."""
        if self._lacks_comma(at):
            place = self._place(at)
            if "}" in place.accepts and not mistakes.lacks_comma(place, self.problems):
                return self._recover(place)
        word = self.words[at]
        if self.parser.feed(word):
            self._count(at, word)
            return at + 1
        place = self._place(at)
        repair = repaired(place, self.grammar, self.problems)
        if repair is not None:
            fits = repair.word is None or self.parser.feed(repair.word)
            assert fits, f"a repair that does not fit: {repair}"
            return at + 1 if repair.instead else at
        mistakes.report(place, self.problems)
        return self._recover(place)

    def finish(self) -> tuple[tree.Item, ...]:
        """The items read, after the last word."""
        self.words = [*self.words, self.end]
        nothing = len(self.parser.states) == 1
        if nothing and self.problems.found:
            return ()
        if not self.parser.feed(self.end):
            mistakes.report(self._place(len(self.words) - 1), self.problems)
            self._cut(0)
            return tuple(_whole(self.parser.values))
        (items,) = self.parser.values
        return tuple(items)

    def _count(self, at: int, word: Word) -> None:
        if word.text in ("(", "[", "{"):
            sort = word.text if word.text != "{" else "cases" if "ELSE" in self.parser.choices() else "settings"
            self.open.append(Bracket(at, cast("Any", sort), len(self.parser.states)))
        elif word.text in (")", "]", "}"):
            self.closed.append((self.open.pop().index, at))

    def _accepts(self) -> frozenset[str]:
        return frozenset(self.grammar.texts.get(name, name) for name in self.parser.accepts())

    def _place(self, at: int) -> Place:
        return Place(self.words, at, tuple(self.open), self._accepts(), self.resumed, tuple(self.closed))

    def _lacks_comma(self, at: int) -> bool:
        """Whether the word looks like the next entry of a brace, on the line of the one before, without a comma."""
        word, before = self.words[at], self.words[at - 1]
        if word.first or not self.open or self.open[-1].sort in ("(", "["):
            return False
        ends = before.type in ("NAME", "NUMBER") or before.text in (")", "]", "}")
        return ends and (word.type in ("NAME", "NUMBER") or word.text in ("[", "else", "layers", "heads"))

    def _recover(self, place: Place) -> int:
        resume = _resume(place)
        self._cut(resume.brackets)
        self.resumed = at = resume.at
        if self.open and len(self.parser.states) == self.open[-1].height:
            while at < len(self.words) and self.words[at].text == ",":
                at += 1
            if at < len(self.words) and self.words[at].text == "}":
                self._stand_in(self.words[at].span)
        return at

    def _cut(self, brackets: int) -> None:
        """Back to the last whole entry of the innermost of so many brackets, or to the last whole item."""
        del self.open[brackets:]
        parser = self.parser
        height = self.open[-1].height if self.open else 1
        # A state lies below each value, so `height` states hold `height - 1` values.
        values = parser.values[height - 1 :]
        whole = next((i for i, value in enumerate(values) if not _is_whole(value)), len(values))
        del parser.states[height + whole :], parser.values[height - 1 + whole :]

    def _stand_in(self, span: Span) -> None:
        """An entry without names, where a brace lost all that it had: a brace is never empty."""
        separator = ":" if self.open[-1].sort == "cases" else "="
        name = Word("NAME", "", span, first=False)
        for word in (name, Word(self.grammar.signs[separator], separator, span, first=False), name):
            self.parser.feed(word)


def _resume(place: Place) -> _Resume:
    cut, brace = place.cut_entry, place.brace
    if cut is not None and brace is not None:
        return _Resume(cut, brace + 1)
    skipped: list[str] = []
    outside = len(place.open) - 1 - brace if brace is not None else 0
    for at in range(place.at, len(place.words)):
        word = place.words[at]
        if place.begins_item(at):
            return _Resume(at, 0)
        if brace is None:
            if _misplaced_setting(place, at):
                return _Resume(at, 0)
            continue
        if "{" not in skipped:
            brackets = _entry_begins(place, at, brace, outside + len(skipped))
            if brackets:
                return _Resume(at, brackets)
        if word.text in (")", "]") and not skipped:
            outside = max(0, outside - 1)
        _skip(word.text, skipped)
    return _Resume(len(place.words), 0 if brace is None else brace + 1)


def _misplaced_setting(place: Place, at: int) -> bool:
    """`a = full` among the items, where `mix` was forgotten: worth a message of its own, unless just reported."""
    reported = at == place.at and "mix" in place.accepts
    return not reported and not place.open and place.words[at].first and place.begins_setting(at)


def _skip(text: str, skipped: list[str]) -> None:
    """Keep count of the brackets that were opened in the words skipped."""
    if text in ("(", "[", "{"):
        skipped.append(text)
    elif text == "}":
        while skipped.pop() != "{":
            pass
    elif text in (")", "]") and skipped and skipped[-1] != "{":
        skipped.pop()


def _entry_begins(place: Place, at: int, brace: int, level: int) -> int:
    """How many brackets are open where the brace goes on at `at`, with an entry, a comma or its end; 0 where it does not."""
    word = place.words[at]
    if word.text == "}" or (word.text == "," and level == 0):
        return brace + 1
    if not word.first:
        return 0
    here = level == 0 and place.ends_entry(at - 1)
    if place.open[brace].sort == "cases":
        begins = place.begins_case(at) or (here and place.may_begin_case(at))
        return brace + 1 if begins else 0
    if place.outer_cases is not None and place.begins_case(at):
        return place.outer_cases + 1
    begins = place.begins_setting(at) and (level == 0 or place.inline)
    return brace + 1 if begins or (here and place.may_begin_setting(at)) else 0


def _is_whole(value: object) -> bool:
    """Whether a value of the parser's stack is a whole entry or item, or a row of them."""
    return isinstance(value, (tree.Setting, tree.Case, Row, tree.Model, tree.Mix, tree.Layers, tree.Recipe, tree.Driver))


def _whole(values: list[Any]) -> list[tree.Item]:
    items: list[tree.Item] = []
    for value in values:
        items += _whole(value) if isinstance(value, Row) else [value]
    return items
