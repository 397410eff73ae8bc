"""The mistakes found so far in one text."""

from __future__ import annotations

from attnc.dsl.codes import CODES
from attnc.dsl.diagnostic import Diagnostic, Edit, SpecError
from attnc.dsl.source import Source, Span

MOST = 50
"""After so many mistakes reading stops: more would bury the first ones."""


class Problems:
    """Collects diagnostics of one source; `raise_any` ends the reading if there are some."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.found: list[Diagnostic] = []

    def add(
        self,
        code: str,
        message: str,
        span: Span,
        *,
        expected: str = "",
        notes: tuple[tuple[str, Span], ...] = (),
        help: str = "",  # noqa: A002
        fix: str | Edit | None = None,
    ) -> None:
        """Note a mistake; a `fix` that is text replaces the span."""
        assert code in CODES, code
        edit = Edit(span, fix) if isinstance(fix, str) else fix
        self.found.append(Diagnostic(code, message, span, expected, notes, help, edit))
        if len(self.found) >= MOST:
            rest = Span(self.source, span.end, span.end)
            self.found.append(Diagnostic("A099", f"reading stops after {MOST} errors", rest))
            self.raise_any()

    def raise_any(self) -> None:
        """Raise SpecError if anything was found."""
        if self.found:
            raise SpecError(self.found)
