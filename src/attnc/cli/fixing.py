"""Checking a text, and correcting it as far as corrections are plain."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from attnc.dsl.diagnostic import Diagnostic, SpecError
from attnc.dsl.fixes import apply_fixes
from attnc.dsl.source import Source, Span

if TYPE_CHECKING:
    from attnc.compiler.spec import Spec

MOST_ROUNDS = 64
"""One fix may uncover the next mistake, as often as brackets can be nested within brackets."""


@dataclass(frozen=True)
class Checked:
    """What checking a file came to: a spec, or mistakes; before that, what was `fixed`, and the `text` that came out."""

    file: str
    error: SpecError | None = None
    spec: Spec | None = None
    fixed: tuple[Diagnostic, ...] = ()
    text: str = ""

    @property
    def mistakes(self) -> tuple[Diagnostic, ...]:
        """Those that are left."""
        return self.error.diagnostics if self.error else ()

    @cached_property
    def unbuilt(self) -> tuple[Diagnostic, ...]:
        """What of the spec this version cannot build yet."""
        from attnc.compiler.unbuilt import unbuilt

        source = Source(self.file, self.text)
        return tuple(placed(one, source) for one in unbuilt(self.spec)) if self.spec else ()


def check_source(file: str, source: Source) -> Checked:
    """The checked text as it stands."""
    from attnc import compiler

    try:
        spec = compiler.check_source(source)
    except SpecError as error:
        return Checked(file, error, text=source.text)
    return Checked(file, spec=spec, text=source.text)


def placed(one: Diagnostic, source: Source) -> Diagnostic:
    """A finding about a checked spec, which knows its line alone, in the text: from the line's first word to its last."""
    lines = source.text.split("\n")
    number = one.span.line - 1
    begin = sum(len(line) + 1 for line in lines[:number])
    line = lines[number]
    return replace(one, span=Span(source, begin + len(line) - len(line.lstrip()), begin + len(line.rstrip())))


def fix_source(file: str, source: Source) -> Checked:
    """Fixes what has a fix and checks again, until nothing is left or nothing has one."""
    fixed: list[Diagnostic] = []
    seen = {source.text}
    result = check_source(file, source)
    for _ in range(MOST_ROUNDS):
        if result.error is None:
            break
        source, made = apply_fixes(source, result.mistakes)
        if not made or source.text in seen:
            break
        seen.add(source.text)
        fixed += made
        result = check_source(file, source)
    return replace(result, fixed=tuple(fixed))
