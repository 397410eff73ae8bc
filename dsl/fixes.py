"""Corrections made by machine: as many as do not overlap."""

from __future__ import annotations

from collections.abc import Iterable

from attnc.dsl.diagnostic import Diagnostic
from attnc.dsl.source import Source


def apply_fixes(source: Source, found: Iterable[Diagnostic]) -> tuple[Source, tuple[Diagnostic, ...]]:
    """The text with the fixes of `found` made, and the mistakes whose fix was made, in the order of their fixes.

    Of two fixes that overlap, or insert at one place, the first is made; the other belongs to a text that is no more.
    """
    fixable = [(one.fix, one) for one in found if one.fix and one.fix.span.source == source]
    text, at, made = "", 0, []
    taken = -1
    for edit, one in sorted(fixable, key=lambda pair: (pair[0].span.start, pair[0].span.end)):
        if edit.span.start < at or edit.span.start == taken:
            continue
        text += source.text[at : edit.span.start] + edit.text
        at, taken = edit.span.end, edit.span.start
        made.append(one)
    return Source(source.name, text + source.text[at:]), tuple(made)
