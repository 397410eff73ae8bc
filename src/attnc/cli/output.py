"""What all commands print alike: results on stdout, everything else on stderr."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from attnc.compiler.value import Value
    from attnc.dsl.diagnostic import SpecError

UNTRUNCATED = 400
"""Columns of a table that goes into a file or a pipe; a terminal's own width holds elsewhere."""

STYLES: tuple[tuple[re.Pattern[str], dict[str, Any]], ...] = (
    (re.compile(r"(error\[\w+\])"), {"fg": "red", "bold": True}),
    (re.compile(r" *\| +(\^+)$"), {"fg": "red", "bold": True}),
    (re.compile(r"(note|help):"), {"fg": "cyan"}),
    (re.compile(r"( *--> .*)"), {"fg": "blue"}),
)
"""Which part of a diagnostic's line has which colour."""

UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


class Format(StrEnum):
    """How diagnostics are printed."""

    text = "text"
    json = "json"
    github = "github"


def print_json(report: Value) -> None:
    """The one object that `--json` promises."""
    from attnc.compiler.data import to_json

    typer.echo(to_json(report, indent=2))


def note(message: str) -> None:
    """Progress and remarks, on stderr."""
    typer.echo(message, err=True)


def complain(message: str, help: str | None = None) -> None:
    """One error and what to do about it, on stderr."""
    typer.echo(f"{styled('error', stderr=True, fg='red', bold=True)}: {message}", err=True)
    if help:
        typer.echo(f"{styled('help', stderr=True, fg='cyan')}: {help}", err=True)


def print_error(error: SpecError, form: Format, files: Iterable[str] = ()) -> None:
    """All mistakes of a spec: for people on stderr, for programs on stdout; `files` are named though nothing is wrong there."""
    if form == Format.text:
        print_diagnostics(error)
        return
    from attnc.cli.formats import diagnostics_report, github

    if form == Format.json:
        print_json(diagnostics_report(files, error.diagnostics))
    else:
        typer.echo("\n".join(map(github, error.diagnostics)))


def print_diagnostics(error: SpecError, *, gap: bool = False) -> None:
    """All mistakes of a spec, on stderr, coloured for a terminal; with `gap` after an empty line."""
    typer.echo("\n" * gap + "\n".join(_coloured(line) for line in str(error).split("\n")), err=True)


def styled(text: str, *, stderr: bool = False, **style: Any) -> str:
    """`text` in colour if the stream is a terminal and NO_COLOR is not set."""
    stream = sys.stderr if stderr else sys.stdout
    return typer.style(text, **style) if stream.isatty() and not os.environ.get("NO_COLOR") else text


def console(*, stderr: bool = False) -> Console:
    """A rich console that keeps whole lines when it does not write to a terminal."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    return Console(stderr=stderr, highlight=False, width=None if stream.isatty() else UNTRUNCATED)


def print_pairs(rows: Sequence[tuple[str, str]], *, indent: int = 0) -> None:
    """`name  value` lines with the values aligned."""
    width = max((len(name) for name, _ in rows), default=0)
    for name, value in rows:
        typer.echo(f"{' ' * indent}{name:<{width}}  {value}".rstrip())


def bytes_text(count: float) -> str:
    """`3.2 GiB`: three significant digits, binary units."""
    size = float(count)
    for unit in UNITS:
        if size < 1000 or unit == UNITS[-1]:
            return f"{size:.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.3g} {unit}"
        size /= 1024
    raise AssertionError("UNITS has a last one")


def _coloured(line: str) -> str:
    for pattern, style in STYLES:
        if match := pattern.match(line):
            start, end = match.span(1)
            return line[:start] + styled(line[start:end], stderr=True, **style) + line[end:]
    return line
