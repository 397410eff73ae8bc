"""The list of commands."""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any

import typer

from attnc.cli import version

HELP = "The compiler for hybrid attention: a short spec in, readable PyTorch and Triton out."
EPILOG = "Exit codes: 0 ok, 1 a check or comparison failed, 2 usage, 3 the spec has errors, 4 environment, 5 a mistake of ours."

COMMANDS = (
    "init",
    "specs",
    "check",
    "fmt",
    "show",
    "diff",
    "build",
    "import",
    "graft",
    "train",
    "run",
    "eval",
    "verify",
    "tune",
    "bench",
    "calibrate",
    "explain",
    "schema",
    "lsp",
    "doctor",
)
"""Each is a function or a group of its name in a file of its name; in the order of the help."""

KEYWORDS = {"import": "import_checkpoint", "eval": "evaluate"}
"""Commands whose names Python needs for itself."""


def app(arguments: list[str], **options: Any) -> None:
    """Runs a command line. Ends with SystemExit.

    Only the file of the command that is named is read: to read all takes longer than to check a spec.
    """
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "1")  # looking for some takes pydantic longer than checking a spec
    named = [command for command in arguments[:1] if command in COMMANDS]
    whole = typer.Typer(
        name="attnc",
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    whole.callback(invoke_without_command=True, help=HELP, epilog=EPILOG)(version.options)
    for command in named or COMMANDS:
        name = KEYWORDS.get(command, command)
        found = getattr(import_module(f"attnc.cli.{name}"), name)
        if isinstance(found, typer.Typer):
            whole.add_typer(found, name=command)
        else:
            whole.command(command)(found)
    whole(arguments, **options)
