"""Mistakes as data, for `--json`."""

from __future__ import annotations

from attnc.cli.fixing import Checked
from attnc.compiler.value import Value
from attnc.dsl.diagnostic import Diagnostic
from attnc.dsl.source import Span


class Place(Value):
    """A range of one file; lines and columns count from 1, the end is not part of it."""

    file: str
    line: int
    column: int
    end_line: int
    end_column: int


class Note(Value):
    """Another place that matters."""

    message: str
    place: Place


class Fix(Value):
    """A correction that a program can make: put `text` where `place` is."""

    place: Place
    text: str


class DiagnosticReport(Value):
    """One mistake."""

    code: str
    message: str
    place: Place
    expected: str
    help: str
    notes: list[Note]
    fix: Fix | None


class FileReport(Value):
    """One file and its mistakes, those that `--fix` corrected before, and what of a right one is not built yet."""

    file: str
    ok: bool
    layers: int | None
    diagnostics: list[DiagnosticReport]
    fixed: list[DiagnosticReport]
    unbuilt: list[DiagnosticReport]


class CheckReport(Value):
    """What `attnc check --json` prints."""

    schema_version: int = 1
    files: list[FileReport]


def file_report(result: Checked) -> FileReport:
    """What checking one file came to."""
    return FileReport(
        file=result.file,
        ok=result.error is None,
        layers=len(result.spec.layers) if result.spec else None,
        diagnostics=[diagnostic_report(found) for found in result.mistakes],
        fixed=[diagnostic_report(found) for found in result.fixed],
        unbuilt=[diagnostic_report(found) for found in result.unbuilt],
    )


def diagnostic_report(diagnostic: Diagnostic) -> DiagnosticReport:
    """One mistake, its spans as lines and columns."""
    return DiagnosticReport(
        code=diagnostic.code,
        message=diagnostic.message,
        place=_place(diagnostic.span),
        expected=diagnostic.expected,
        help=diagnostic.help,
        notes=[Note(message=text, place=_place(span)) for text, span in diagnostic.notes],
        fix=Fix(place=_place(diagnostic.fix.span), text=diagnostic.fix.text) if diagnostic.fix else None,
    )


def _place(span: Span) -> Place:
    line, column = span.source.line_and_column(span.start)
    end_line, end_column = span.source.line_and_column(span.end)
    return Place(file=span.source.name, line=line, column=column, end_line=end_line, end_column=end_column)
