"""Diagnostics about files instead of places in a spec. Their codes are A520 to A539."""

from __future__ import annotations

from pathlib import Path

from attnc.dsl.diagnostic import Diagnostic, SpecError
from attnc.dsl.source import Source, Span


def problem(code: str, message: str, *, file: Path | None = None, span: Span | None = None, help: str = "") -> SpecError:  # noqa: A002
    """An error about a place in a file's text (`span`), or about a file as a whole (`file`)."""
    assert span is not None or file is not None, "an error about nothing"
    place = span if span is not None else Span(Source(str(file), ""), 0, 0)
    return SpecError([Diagnostic(code, message, place, help=help)])


def some(names: list[str], limit: int = 3) -> str:
    """The first names of a list, and how many more there are."""
    shown = ", ".join(f"`{name}`" for name in names[:limit])
    return shown + (f" and {len(names) - limit} more" if len(names) > limit else "")
