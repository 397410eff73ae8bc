"""`attnc init`: a spec to begin with."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Annotated

import typer

from attnc.cli import shipped
from attnc.cli.exits import CommandError, Exit
from attnc.cli.options import Diagnostics
from attnc.cli.output import Format, note

START = """\
# NAME: one layer in four reads everything, the others a sink and a window.
#
#   attnc check NAME.attn                  every mistake, and what to write
#   attnc show NAME.attn --stage spec      the table of layers and heads
#   attnc show NAME.attn --mask 0          who sees whom in layer 0
#   attnc build NAME.attn -o out --init 0  a folder that runs by itself

model MODEL {
  vocab = 32000, dim = 1024, layers = 12, ffn = swiglu(2816), norm = rms(1e-6)
  heads = 16, kv_heads = 4          # 4 query heads read one key and value head
  rope = 500000, context = 8192     # rotary base; the length it is trained for
}

mix local = sink(4) | window(1024)  # `|` joins key sets under one softmax

layers {
  every(4): full { rope = none }    # layers 3, 7, 11
  else    : local
}
"""


def init(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The spec becomes NAME.attn.", show_default=False)],
    start: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="SPEC",
            help="Begin with a shipped spec or a file.",
            show_default=False,
            autocompletion=shipped.complete,
        ),
    ] = None,
    diagnostics: Diagnostics = Format.text,
) -> None:
    """Begin a spec."""
    path = Path(name if name.endswith(".attn") else f"{name}.attn")
    model = model_name(path.stem)
    text = _start(path, model) if start is None else _copied(start, model)
    write_first(path, text)
    typer.echo(str(path))
    note(f"next: attnc check {shlex.quote(str(path))}")


def model_name(stem: str) -> str:
    """The file's name as a name of the language."""
    from attnc.dsl.grammar import RESERVED

    word = re.sub(r"[^a-z0-9]+", "_", stem.lower()).strip("_")[:48] or "model"
    return f"my_{word}" if word in RESERVED or not word[0].isalpha() else word


def write_first(path: Path, text: str) -> None:
    """Writes a file that is not there yet; one that is stays as it is."""
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise CommandError(Exit.USAGE, f"{path} is there already", "choose another name; nothing is overwritten") from None
    except FileNotFoundError:
        raise CommandError(Exit.USAGE, f"there is no folder {path.parent}", "make it first") from None


def _start(path: Path, model: str) -> str:
    return START.replace("NAME.attn", shlex.quote(str(path))).replace("NAME", path.stem).replace("MODEL", model)


def _copied(start: str, model: str) -> str:
    """The text of a shipped spec or of a file, with the model called `model`. Raises SpecError."""
    from attnc.dsl import Source, parse, read, tree

    is_file = (start.endswith(".attn") and Path(start).exists()) or "/" in start
    source = read(start) if is_file else Source(f"{start}.attn", shipped.text(start))
    (item,) = (item for item in parse(source).items if isinstance(item, tree.Model))
    return source.text[: item.name.span.start] + model + source.text[item.name.span.end :]
