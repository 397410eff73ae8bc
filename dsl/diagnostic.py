"""What the user sees when a spec is wrong: a code, a place, what was expected, and what to write instead."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass

from attnc.dsl.excerpt import escaped, excerpt
from attnc.dsl.source import Span


@dataclass(frozen=True)
class Edit:
    """A correction that can be made by machine: put `text` where `span` is. An empty span inserts, an empty text deletes."""

    span: Span
    text: str


@dataclass(frozen=True)
class Diagnostic:
    """One mistake of the user.

    `code`      "A010": stable and greppable; its title stands in a table of codes.
    `message`   what is wrong, lower case, without a full stop.
    `span`      where; an empty span points between two characters.
    `expected`  what could have stood there.
    `notes`     other places that matter, each with what it is.
    `help`      what to write instead, perhaps in several lines; `fix` is the same for a machine.
    """

    code: str
    message: str
    span: Span
    expected: str = ""
    notes: tuple[tuple[str, Span], ...] = ()
    help: str = ""
    fix: Edit | None = None

    def render(self) -> str:
        """Plain text: the message, the line with carets under the place, what was expected, notes, help."""
        lines = [f"error[{self.code}]: {escaped(self.message)}", *excerpt(self.span)]
        if self.expected:
            lines.append(f"   = expected: {escaped(self.expected)}")
        for text, span in self.notes:
            lines += [f"note: {escaped(text)}", *excerpt(span)]
        if self.help:
            lines += [escaped(line) for line in f"help: {self.help}".split("\n")]
        return "\n".join(lines)


class SpecError(Exception):
    """All mistakes that one reading found, in the order of their places. The only exception that a user's spec causes."""

    def __init__(self, diagnostics: Iterable[Diagnostic]) -> None:
        found = dict.fromkeys(diagnostics)
        self.diagnostics = tuple(sorted(found, key=lambda d: (d.span.source.name, d.span.start, d.span.end, d.code)))
        assert self.diagnostics, "an error without a diagnostic"
        super().__init__(self.diagnostics)

    def __str__(self) -> str:
        names = dict.fromkeys(escaped(d.span.source.name) for d in self.diagnostics)
        count = len(self.diagnostics)
        total = f"{count} error{'s' if count > 1 else ''} in {', '.join(names)}"
        return "\n\n".join([*(d.render() for d in self.diagnostics), total])


_MEANT = re.compile(r"did you mean `([a-z][a-z0-9_]*)`\?")
_WORD = re.compile(r"[a-z][a-z0-9_]*")


def suggested(span: Span, help: str) -> Edit | None:  # noqa: A002
    """The edit that a help line of `closest` speaks of, where the word with which the span begins is a misspelling of it."""
    meant, word = _MEANT.fullmatch(help), _WORD.match(span.text)
    return reworded(span, meant[1]) if meant and word and _misspelt(word[0], meant[1]) else None


def _misspelt(word: str, meant: str) -> bool:
    """One letter too many, missing, wrong or exchanged with the next, or more in a long word: `rsm` for `rms`, not `rglru`."""
    if re.sub("[^0-9]", "", word) != re.sub("[^0-9]", "", meant):
        return False  # `mamba3` is no misspelt `mamba`
    begin = next((at for at, (x, y) in enumerate(zip(word, meant, strict=False)) if x != y), min(len(word), len(meant)))
    a, b = word[begin:], meant[begin:]
    one = a[1:] == b or a == b[1:] or a[1:] == b[1:] or (a[:2] == b[1::-1] and a[2:] == b[2:])
    return one or difflib.SequenceMatcher(None, meant, word).ratio() > 0.8


def reworded(span: Span, meant: str) -> Edit:
    """The word with which the span begins becomes `meant`; without a word, the whole span does."""
    word = _WORD.match(span.text)
    return Edit(Span(span.source, span.start, span.start + word.end()) if word else span, meant)


def closest(word: str, words: Iterable[str]) -> str:
    """A help line with the nearest of `words`, ``did you mean `window`?``; empty if none is near."""
    near = difflib.get_close_matches(word, sorted(set(words)), n=1, cutoff=0.6)
    return f"did you mean `{near[0]}`?" if near else ""
