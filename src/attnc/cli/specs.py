"""`attnc specs`: what comes with the package."""

from __future__ import annotations

import shutil
import sys
import textwrap
from typing import Annotated

import typer

from attnc.cli import shipped
from attnc.cli.options import Json
from attnc.cli.output import print_json, styled
from attnc.compiler.value import Value


class SpecReport(Value):
    """One shipped spec."""

    name: str
    title: str
    text: str


class SpecsReport(Value):
    """What `attnc specs --json` prints."""

    schema_version: int = 1
    specs: list[SpecReport]


def specs(
    name: Annotated[
        str | None,
        typer.Argument(metavar="NAME", help="Print this one; all are listed without it.", autocompletion=shipped.complete),
    ] = None,
    json: Json = False,
) -> None:
    """List the specs that come with attnc, or print one."""
    found = {one: shipped.text(one) for one in ([name.removesuffix(".attn")] if name else shipped.names())}
    if json:
        print_json(
            SpecsReport(specs=[SpecReport(name=one, title=shipped.title(text), text=text) for one, text in found.items()])
        )
    elif name:
        typer.echo(found[name.removesuffix(".attn")], nl=False)
    else:
        _print({one: shipped.title(text) for one, text in found.items()})


def _print(titles: dict[str, str]) -> None:
    """A line each; on a terminal titles are wrapped beside their names."""
    margin = max(map(len, titles)) + 2
    width = shutil.get_terminal_size().columns - margin
    for name, title in titles.items():
        lines = textwrap.wrap(title, width) if sys.stdout.isatty() and width >= 24 else [title]
        typer.echo(styled(name, bold=True) + " " * (margin - len(name)) + lines[0])
        for line in lines[1:]:
            typer.echo(" " * margin + line)
