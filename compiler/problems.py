"""All mistakes of a file, collected while checking goes on."""

from __future__ import annotations

from collections.abc import Iterable

from attnc.compiler.codes import CODES
from attnc.dsl.diagnostic import Diagnostic, Edit, SpecError, closest, suggested
from attnc.dsl.problems import MOST
from attnc.dsl.source import Span

Note = tuple[str, Span]


class Problems:
    """A list of diagnostics; a checker's function adds to it and goes on with what it could understand."""

    def __init__(self) -> None:
        self.found: list[Diagnostic] = []

    def add(
        self,
        code: str,
        message: str,
        span: Span,
        expected: str,
        help: str,  # noqa: A002
        notes: Iterable[Note] = (),
        fix: str | Edit | None = None,
    ) -> None:
        """Record a mistake. `expected` and `help` are never empty: the user learns what would have been right.

        A `fix` that is text replaces the span; a help line of `closest` is a fix by itself. Raises SpecError when there are
        as many as anybody reads.
        """
        assert code in CODES, code
        assert expected, message
        assert help, message
        edit = Edit(span, fix) if isinstance(fix, str) else fix or suggested(span, help)
        self.found.append(Diagnostic(code, message, span, expected, tuple(notes), help, edit))
        if len(self.found) >= MOST:
            end = Span(span.source, span.end, span.end)
            more = Diagnostic(
                "A099", f"checking stops after {MOST} errors", end, "a spec with fewer", help="correct these first"
            )
            raise SpecError([*self.found, more])


def words(options: Iterable[str]) -> str:
    """`` `a`, `b` or `c` ``."""
    quoted = [f"`{option}`" for option in options]
    return quoted[0] if len(quoted) == 1 else f"{', '.join(quoted[:-1])} or {quoted[-1]}" if quoted else "nothing"


MOST_LISTED = 16
"""Longer lists of words help nobody: the help line names the closest."""


def one_of(options: Iterable[str], what: str) -> str:
    """`` one of `a` or `b` ``, or `what` in words where there are too many."""
    listed = list(options)
    return f"one of {words(listed)}" if len(listed) <= MOST_LISTED else what


def nearest(word: str, options: Iterable[str], otherwise: str) -> str:
    """A help line with the closest of `options`, or `otherwise`."""
    return closest(word, options) or otherwise
