"""Options and arguments that several commands take."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import attnc
from attnc.cli.exits import CommandError, Exit
from attnc.cli.output import Format, note

if TYPE_CHECKING:
    from attnc.compiler.spec import Spec
    from attnc.dsl import tree
    from attnc.dsl.source import Source

NVIDIA = Path("/dev/nvidiactl")
"""There on every machine whose NVIDIA driver is loaded; torch is only asked where it is."""

STDIN = "<stdin>"
"""What messages call a text that `-` stands for."""

Device = Annotated[
    str | None, typer.Option(metavar="NAME", help="Table of costs; default: this GPU's, else cpu.", show_default=False)
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


With = Annotated[
    str,
    typer.Option(
        "--with", metavar="P,P", help="Also plan with gluon, and with flex, fa4 or fla as if installed.", show_default=False
    ),
]
Without = Annotated[
    str,
    typer.Option("--without", metavar="P,P", help="Plan without triton, gluon, torch, flex, fa4, fla.", show_default=False),
]


@dataclass
class Chosen:
    """Options that count for the whole run, whichever command they stand behind."""

    diagnostics: Format = Format.text


def _remember(context: typer.Context, value: Format) -> Format:
    context.find_root().ensure_object(Chosen).diagnostics = value
    return value


Diagnostics = Annotated[
    Format,
    typer.Option(
        "--diagnostics", help="Mistakes for people, as JSON in LSP's shape, or for GitHub's logs.", callback=_remember
    ),
]
"""How mistakes of specs are printed; read where they are caught (attnc.cli.invoke)."""


def read_text(file: str) -> Source:
    """The text of a file, or of the standard input for `-`. Raises SpecError."""
    from attnc.dsl import Source, read

    return Source(STDIN, sys.stdin.buffer.read().decode("utf-8", "replace")) if file == "-" else read(file)


def read_tree(file: str) -> tree.File:
    """The syntax tree of a file, or of the standard input for `-`. Raises SpecError."""
    from attnc.dsl import parse

    return parse(read_text(file))


def read_spec(file: str, overrides: Mapping[str, str] | None = None) -> Spec:
    """The checked spec of a file, or of the standard input for `-`. Raises SpecError."""
    if file != "-":
        return attnc.check(Path(file), overrides)
    from attnc import compiler

    return compiler.check_source(read_text(file), overrides)


@contextmanager
def in_its_text(file: str) -> Iterator[None]:
    """What a stage finds about a checked spec, which knows its lines alone, is shown as it stands in the spec's file."""
    from attnc.dsl.diagnostic import SpecError

    try:
        yield
    except SpecError as error:
        if file == "-" or not {"A101", "A113"}.issuperset(one.code for one in error.diagnostics):
            raise
        from attnc.cli.fixing import placed

        source = read_text(file)
        raise SpecError(placed(one, source) for one in error.diagnostics) from error


def built_folder(folder: Path) -> None:
    """Raises CommandError where `folder` is not one that attnc build wrote."""
    if not (folder / "plan.json").is_file():
        what = f"{folder} is not a built folder" if folder.exists() else f"there is no folder {folder}"
        raise CommandError(Exit.USAGE, what, "attnc build SPEC -o DIR makes one")


def providers(wanted: str, unwanted: str) -> dict[str, tuple[str, ...]]:
    """`installed` and `without` of a plan: the optional providers of this machine and of `--with`, and those of `--without`."""
    from attnc.compiler.providers import ASKABLE, OPTIONAL, PROVIDERS

    known = dict.fromkeys((*PROVIDERS, *OPTIONAL))
    there = _words("--with", wanted, ASKABLE)
    out = _words("--without", unwanted, tuple(name for name in known if name != "reference"))
    return {"installed": (*_libraries(), *there), "without": out}


def _words(option: str, text: str, known: tuple[str, ...]) -> tuple[str, ...]:
    found = tuple(word.strip() for word in text.split(",") if word.strip())
    for word in found:
        if word not in known:
            raise CommandError(Exit.USAGE, f"there is no provider {word}", f"{option} takes {', '.join(known)}")
    return found


def _libraries() -> tuple[str, ...]:
    """The optional providers that can run here: they need a GPU and their packages."""
    if _present() == "cpu":
        return ()
    packages = {"flex": ("torch", "triton"), "fa4": ("flash_attn", "flash_attn.cute"), "fla": ("fla",)}
    return tuple(name for name, needs in packages.items() if all(find_spec(need) for need in needs))


def device_name(given: str | None) -> str:
    """The table of costs that is meant: the one given, or that of the GPU present, or the CPU's."""
    from attnc.compiler.device import device_names

    if given is None:
        return _present()
    if given not in device_names():
        raise CommandError(Exit.USAGE, f"there is no device {given}", f"--device takes {', '.join(device_names())}")
    return given


@cache
def _present() -> str:
    from attnc.compiler.device import PORTABLE, device_of

    if not NVIDIA.exists():
        return "cpu"
    import torch

    if not torch.cuda.is_available():
        return "cpu"
    title = torch.cuda.get_device_name()
    known = device_of(title)
    if known is None:
        note(f"note: there is no table of costs for {title}; {PORTABLE}'s is used (`attnc calibrate` measures one)")
    return known or PORTABLE
