"""`attnc run`: text from a built model."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import attnc
from attnc.cli.exits import CommandError, Exit
from attnc.cli.options import built_folder
from attnc.cli.output import note
from attnc.cli.text import Text

if TYPE_CHECKING:
    import torch


def run(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder that attnc build wrote.", show_default=False)],
    prompt: Annotated[str, typer.Option(help="The text to go on from; - reads the standard input.")],
    chat: Annotated[bool, typer.Option("--chat", help="Put the prompt into the model's chat template.")] = False,
    temperature: Annotated[float, typer.Option(min=0, help="0 takes the likeliest token.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Draw from the likeliest tokens with this probability together.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Of the drawing.")] = 0,
    max_new: Annotated[int, typer.Option(min=1, help="Tokens at most.")] = 256,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1; the GPU where there is one.", show_default=False)
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16, float16; that of the weights.", show_default=False)
    ] = None,
    reference: Annotated[bool, typer.Option("--reference", help="Run every part by its reference.")] = False,
) -> None:
    """Stream text from a built model."""
    import torch

    built_folder(folder)
    text = Text(folder)
    model = attnc.load(folder, device or default_device(), number_type(dtype), "reference" if reference else "plan")
    tokens = text.encode(sys.stdin.read() if prompt == "-" else prompt, chat=chat)
    if not tokens:
        raise CommandError(Exit.USAGE, "the prompt has no tokens", "give it some text")
    runtime = type(model).__module__.rpartition(".")[0] + ".runtime"
    sampling, generating = (importlib.import_module(f"{runtime}.{name}") for name in ("sampling", "generate"))
    speed = generating.Speed()
    sampler = sampling.Sampler(temperature, top_p, seed)
    where = next(model.parameters()).device
    drawn = generating.generate(model, torch.tensor([tokens], device=where), max_new, sampler, stop=text.stop, speed=speed)
    for piece in text.stream(_numbers(drawn)):
        sys.stdout.write(piece)
        sys.stdout.flush()
    sys.stdout.write("\n")
    rates = f"{speed.prompt_tokens / speed.prompt_seconds:.0f} a second, then {speed.tokens_per_second:.1f} a second on {where}"
    note(f"{speed.prompt_tokens} prompt tokens at {rates}")


def default_device() -> str:
    """The GPU where there is one."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def number_type(name: str | None) -> torch.dtype | None:
    """The torch type of this name."""
    import torch

    types = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name is not None and name not in types:
        raise CommandError(Exit.USAGE, f"there is no number type {name}", f"--dtype takes {', '.join(types)}")
    return None if name is None else types[name]


def _numbers(drawn: Iterator[Any]) -> Iterator[int]:
    for token in drawn:
        yield int(token[0])
