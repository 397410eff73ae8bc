"""`attnc --version`."""

from __future__ import annotations

import platform
from typing import Annotated

import typer

import attnc
from attnc.cli.exits import Exit


def installed(package: str) -> str | None:
    """The version of an installed package, which is not imported for it."""
    from importlib import metadata

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def print_versions(wanted: bool) -> None:
    """One line, before anything else is looked at."""
    if wanted:
        parts = [("python", platform.python_version()), *((name, installed(name) or "missing") for name in ("torch", "triton"))]
        typer.echo(f"attnc {attnc.__version__} ({', '.join(f'{name} {number}' for name, number in parts)})")
        raise typer.Exit


def options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Print the versions and stop.", callback=print_versions, is_eager=True)
    ] = False,
) -> None:
    """Without a command: the help, as a usage error."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help(), err=True)
        raise typer.Exit(Exit.USAGE)
