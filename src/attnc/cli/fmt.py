"""`attnc fmt`: specs in the usual layout, comments kept, meaning unchanged."""

from __future__ import annotations

import difflib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from attnc.cli.exits import Exit, exit_code
from attnc.cli.files import replace_text
from attnc.cli.options import Diagnostics
from attnc.cli.output import Format, note, print_diagnostics, styled

if TYPE_CHECKING:
    from attnc.dsl.diagnostic import SpecError
    from attnc.dsl.source import Source


def fmt(
    files: Annotated[
        list[str],
        typer.Argument(metavar="FILE", help="Specs; - formats the standard input to the standard output.", show_default=False),
    ],
    check: Annotated[bool, typer.Option("--check", help="Write nothing; exit 1 if a file is laid out otherwise.")] = False,
    diff: Annotated[bool, typer.Option("--diff", help="Write nothing; print what would change; exit 1 if anything.")] = False,
    diagnostics: Diagnostics = Format.text,
) -> None:
    """Lay specs out as usual: comments and line breaks between entries stay."""
    from attnc.dsl.diagnostic import SpecError
    from attnc.dsl.reformat import reformatted

    failed: list[SpecError] = []
    changed = 0
    for file in files:
        try:
            source = _read(file)
            text = reformatted(source)
        except SpecError as error:
            if diagnostics == Format.text:
                print_diagnostics(error, gap=bool(failed))
            failed.append(error)
            continue
        differs = text != source.text
        changed += differs
        if diff:
            _print_diff(source, text)
        elif check and differs:
            typer.echo(f"{file}  would be reformatted")
        elif file == "-" and not check:
            sys.stdout.buffer.write(text.encode("utf-8", "surrogateescape"))
        elif differs and not check:
            replace_text(Path(file), text)
            note(f"{file}  reformatted")
    mistakes = [diagnostic for error in failed for diagnostic in error.diagnostics]
    if mistakes and diagnostics != Format.text:
        raise SpecError(mistakes)
    if mistakes:
        raise typer.Exit(exit_code(diagnostic.code for diagnostic in mistakes))
    if changed and (check or diff):
        raise typer.Exit(Exit.DIFFERENT)


def _read(file: str) -> Source:
    from attnc.dsl import Source, read

    if file != "-":
        return read(file)
    return Source("<stdin>", sys.stdin.buffer.read().decode("utf-8", "surrogateescape"))  # a comment keeps its bytes


def _print_diff(source: Source, text: str) -> None:
    lines = difflib.unified_diff(source.text.splitlines(), text.splitlines(), source.name, source.name, lineterm="")
    for line in lines:
        colour = {"+": "green", "-": "red", "@": "cyan"}.get(line[:1])
        typer.echo(styled(line, fg=colour) if colour else line)
