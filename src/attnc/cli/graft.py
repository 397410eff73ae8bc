"""`attnc graft`: a method on another model's body."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from attnc.cli.exits import CommandError, Exit
from attnc.cli.options import Diagnostics
from attnc.cli.output import Format, note


def graft(
    method: Annotated[
        str, typer.Argument(metavar="METHOD", help="The spec whose mixes, layers, recipe and driver are wanted.")
    ],
    onto: Annotated[str, typer.Option(metavar="MODEL", help="The spec whose model stays, with its weights.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="NEW.attn", help="The new spec.")],
    diagnostics: Diagnostics = Format.text,
) -> None:
    """Put the mixes and layers of one spec on the model of another."""
    from attnc.compiler.graft import graft as joined
    from attnc.dsl import parse, read

    text = joined(parse(read(method)), parse(read(onto)))
    write_new(out, text)
    typer.echo(str(out))
    weights = Path(onto).with_suffix("")
    note(f"next: attnc build {out} -o DIR" + (f" --weights {weights}" if weights.is_dir() else ""))


def write_new(path: Path, text: str) -> None:
    """Writes a file that is not there yet, or is there with the same text; anything else is left alone."""
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        if path.is_dir() or path.read_bytes() != text.encode():
            raise CommandError(
                Exit.USAGE, f"{path} is there already, with other text", "remove it, or name another with -o"
            ) from None
    except FileNotFoundError:
        raise CommandError(Exit.USAGE, f"there is no folder {path.parent}", "make it first") from None
