"""`attnc calibrate`: this machine's device table, measured."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from attnc.cli.exits import CommandError, Exit
from attnc.cli.options import Json
from attnc.cli.output import note, print_json

if TYPE_CHECKING:
    from attnc.bench.tables_report import CalibrationReport

NAME = r"[a-z0-9][a-z0-9._-]{0,63}"


def calibrate(
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FILE", help="Write NAME.toml there, not into the settings.", show_default=False),
    ] = None,
    seconds: Annotated[float, typer.Option(min=0.001, help="Timing for each rate, launch and phase.")] = 0.5,
    json: Json = False,
) -> None:
    """Measure this machine's table of costs."""
    _checked(out)
    from attnc.bench import calibrate as measuring
    from attnc.bench import tables
    from attnc.bench.machine import default_device, machine
    from attnc.bench.tables_report import CalibrationReport
    from attnc.compiler.device import measured_folder

    where = default_device()
    found = measuring.calibrate(None if out is None else out.stem, where, seconds, note)
    path = out or measured_folder() / f"{found.table.name}.toml"
    facts = machine(where)
    tables.write(path, tables.toml(found.table, facts, datetime.date.today().isoformat()))
    report = CalibrationReport(
        machine=facts,
        path=str(path),
        found=out is None,
        old=measuring.basis(where),
        new=found.table,
        lacks=found.lacks,
        failures=found.failures,
    )
    if json:
        print_json(report)
    else:
        _print(report)
    if report.failures:
        raise typer.Exit(Exit.DIFFERENT)


def _checked(out: Path | None) -> None:
    """A table's name is its file's."""
    import re

    if out is None:
        return
    if out.suffix != ".toml" or not re.fullmatch(NAME, out.stem):
        help_line = "a table is called like its file: -o quiet-h100.toml"
        raise CommandError(Exit.USAGE, f"-o {out} does not name a table", help_line)
    if not out.absolute().parent.is_dir():
        raise CommandError(Exit.USAGE, f"there is no folder {out.parent}", "make it first")


def _print(report: CalibrationReport) -> None:
    from attnc.bench.tables import comparison

    new, old = report.new, report.old
    typer.echo(f"{new.name}: {new.title}, {new.architecture}")
    rows = [("", f"shipped {old.name}", "measured", "ratio"), *comparison(old, new)]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    for what, *numbers in rows:
        cells = (f"{number:>{width}}" for number, width in zip(numbers, widths[1:], strict=True))
        typer.echo(f"{what:<{widths[0]}}  " + "  ".join(cells))
    for lack in report.lacks:
        typer.echo(f"{lack.provider} {lack.phase} is not measured: {lack.reason}")
    for failure in report.failures:
        note(f"error: {failure}")
    note(f"written to {report.path}")
    if report.found:
        note(f"`--device {new.name}` reads it, and so does every command on this device that names none")
    else:
        note(f"`--device {new.name}` reads it from the folder devices in the settings")
