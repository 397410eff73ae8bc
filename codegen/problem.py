"""Diagnostics about files and plans, which have no place in a spec's text."""

from __future__ import annotations

from pathlib import Path

from attnc.dsl import Diagnostic, Source, Span

CODES = {
    "A401": "a mix has no kernel and `--strict` was asked for",
    "A510": "the output folder holds other files",
    "A511": "the output folder cannot be written",
    "A512": "the weights do not fit the spec",
}


def complaint(code: str, message: str, path: Path | str, help_line: str) -> Diagnostic:
    """A diagnostic whose place is a file or folder as a whole."""
    return Diagnostic(code, message, Span(Source(str(path), ""), 0, 0), help=help_line)
