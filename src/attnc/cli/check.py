"""`attnc check`: every mistake of every file, in one run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from attnc.cli.exits import exit_code
from attnc.cli.options import Json, read_spec
from attnc.cli.output import print_diagnostics, print_json

if TYPE_CHECKING:
    from attnc.compiler.spec import Spec
    from attnc.dsl.diagnostic import SpecError


def check(
    files: Annotated[
        list[str], typer.Argument(metavar="FILE", help="Specs; - reads one from the standard input.", show_default=False)
    ],
    json: Json = False,
) -> None:
    """Check specs and report all their mistakes."""
    from attnc.dsl.diagnostic import SpecError

    results = [(file, _result(file)) for file in files]
    failed = [result for _, result in results if isinstance(result, SpecError)]
    if json:
        from attnc.cli.report import CheckReport, file_report

        print_json(CheckReport(files=[file_report(file, result) for file, result in results]))
    else:
        _print(results)
    if failed:
        raise typer.Exit(exit_code(diagnostic.code for error in failed for diagnostic in error.diagnostics))


def _result(file: str) -> Spec | SpecError:
    from attnc.dsl.diagnostic import SpecError

    try:
        return read_spec(file)
    except SpecError as error:
        return error


def _print(results: list[tuple[str, Spec | SpecError]]) -> None:
    from attnc.dsl.diagnostic import SpecError

    width = max(len(file) for file, _ in results)
    gap = False
    for file, result in results:
        if isinstance(result, SpecError):
            print_diagnostics(result, gap=gap)
            gap = True
        else:
            typer.echo(f"{file:<{width}}  ok, {len(result.layers)} layers")
