"""`attnc diff`: what two specs do differently."""

from __future__ import annotations

from typing import Annotated

import typer

from attnc.cli.exits import CommandError, Exit
from attnc.cli.options import Diagnostics, Json, read_spec
from attnc.cli.output import Format, print_json, styled

COLOURS = {"-": "red", "+": "green"}


def diff(
    before: Annotated[str, typer.Argument(metavar="A", help="A spec; - reads the standard input.", show_default=False)],
    after: Annotated[str, typer.Argument(metavar="B", help="The other.", show_default=False)],
    diagnostics: Diagnostics = Format.text,
    json: Json = False,
) -> None:
    """Compare two specs: resolved layers, model, budgets, cache, laws."""
    if before == after == "-":
        raise CommandError(Exit.USAGE, "the standard input can be read once", "name a file for one of the two")
    specs = read_spec(before), read_spec(after)
    from attnc.compiler.difference import difference, difference_lines

    found = difference(*specs)
    if json:
        print_json(found)
    elif not found.same:
        typer.echo(styled(f"--- {before}", bold=True))
        typer.echo(styled(f"+++ {after}", bold=True))
        for sign, text in difference_lines(found):
            typer.echo(
                styled(f"  {sign} {text}", fg=COLOURS[sign]) if sign in COLOURS else f"  {sign} {text}" if sign else text
            )
    if not found.same:
        raise typer.Exit(Exit.DIFFERENT)
