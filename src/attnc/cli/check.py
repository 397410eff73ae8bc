"""`attnc check`: every mistake of every file, in one run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from attnc.cli.exits import CommandError, Exit, exit_code
from attnc.cli.options import STDIN, Diagnostics, Json, read_text
from attnc.cli.output import Format, note, print_diagnostics, print_json

if TYPE_CHECKING:
    from attnc.cli.fixing import Checked
    from attnc.compiler.spec import Spec


NAMED = 3
"""Things not built yet that one line names."""


def check(
    files: Annotated[
        list[str], typer.Argument(metavar="FILE", help="Specs; - reads one from the standard input.", show_default=False)
    ],
    fix: Annotated[bool, typer.Option("--fix", help="Correct in the files what has one plain correction.")] = False,
    diagnostics: Diagnostics = Format.text,
    json: Json = False,
) -> None:
    """Check specs and report all their mistakes."""
    if fix and "-" in files:
        raise CommandError(Exit.USAGE, "--fix writes files, and the standard input is none", "save it in a file first")
    results = [_result(file, fix) for file in files]
    if json:
        from attnc.cli.report import CheckReport, file_report

        print_json(CheckReport(files=[file_report(result) for result in results]))
    else:
        _print_fixes(results, diagnostics)
        if diagnostics == Format.text:
            _print(results)
        else:
            _print_for_programs(results, diagnostics)
    codes = [diagnostic.code for result in results for diagnostic in result.mistakes]
    if codes:
        raise typer.Exit(exit_code(codes))


def _result(file: str, fix: bool) -> Checked:
    from attnc.cli.fixing import Checked, check_source, fix_source
    from attnc.dsl.diagnostic import SpecError

    try:
        source = read_text(file)
    except SpecError as error:
        return Checked(file, error)
    if not fix:
        return check_source(file, source)
    result = fix_source(file, source)
    if result.fixed:
        from attnc.cli.files import replace_text

        replace_text(Path(file), result.text)
    return result


def _print_fixes(results: list[Checked], form: Format) -> None:
    """What was done, a line for each fix: part of the result for people, a remark beside what programs read."""
    made = [one for result in results for one in result.fixed]
    if made:
        from attnc.cli.formats import fix_title

        for one in made:
            assert one.fix is not None, "made fixes are there"
            line = f"{one.fix.span}  {one.code}  {fix_title(one.fix)}"
            if form == Format.text:
                typer.echo(line)
            else:
                note(line)


def _print(results: list[Checked]) -> None:
    width = max(len(result.file) for result in results)
    gap = False
    for result in results:
        fixed = f"{len(result.fixed)} fixed, " if result.fixed else ""
        if result.error is not None:
            if fixed:
                typer.echo(f"{result.file:<{width}}  {fixed}{len(result.mistakes)} left")
            print_diagnostics(result.error, gap=gap)
            gap = True
        else:
            assert result.spec is not None, "a spec or an error"
            typer.echo(f"{result.file:<{width}}  {fixed}ok, {_layers(len(result.spec.layers))}{_not_built(result.spec)}")


def _layers(count: int) -> str:
    return f"{count} layer{'s' * (count != 1)}"


def _not_built(spec: Spec) -> str:
    """`; not built yet: the kind `routed`, ...`, a few of them."""
    from attnc.compiler.unbuilt import unbuilt_names

    what = unbuilt_names(spec)
    more = f" and {len(what) - NAMED} more" if len(what) > NAMED else ""
    return f"; not built yet: {', '.join(what[:NAMED])}{more}" if what else ""


def _print_for_programs(results: list[Checked], form: Format) -> None:
    """Mistakes as errors, what is not built yet as remarks."""
    from attnc.cli.formats import diagnostics_report, github

    mistakes = [diagnostic for result in results for diagnostic in result.mistakes]
    remarks = [diagnostic for result in results for diagnostic in result.unbuilt]
    if form == Format.json:
        files = [STDIN if result.file == "-" else result.file for result in results]
        print_json(diagnostics_report(files, mistakes, remarks))
        return
    lines = [github(diagnostic) for diagnostic in mistakes]
    lines += [github(diagnostic, "notice") for diagnostic in remarks]
    for line in lines:
        typer.echo(line)
