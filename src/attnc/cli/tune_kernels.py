"""`attnc tune kernels`: which blocks a folder's kernels take on this GPU."""

from __future__ import annotations

import statistics
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from attnc.cli.exits import CommandError, Exit
from attnc.cli.options import Json, built_folder
from attnc.cli.output import note, print_json, print_pairs
from attnc.cli.verify import chosen_device, chosen_dtypes, table

if TYPE_CHECKING:
    from attnc.codegen.tune.messages import TuneMessage, TuneReport
    from attnc.codegen.tune.table import Blocks, Tuned
    from attnc.codegen.tune.tune import Target
    from attnc.codegen.verify.process import Ended

HEADINGS = ("kernel", "dtype", "blocks", "time", "default", "time of it", "gain", "tried", "refused")
NUMBERS = frozenset({"time", "time of it", "gain", "tried", "refused"})


def kernels(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder that attnc build wrote.", show_default=False)],
    device: Annotated[str | None, typer.Option(help="cuda or cuda:1.", show_default=False)] = None,
    dtype: Annotated[str, typer.Option(metavar="T,T", help="bfloat16 or float16 counts for both; float32.")] = "bfloat16",
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FILE", help="Keep the table there; among the user's data unless given."),
    ] = None,
    seconds: Annotated[float, typer.Option(min=1, help="Without an answer, after which a candidate is refused.")] = 120.0,
    most: Annotated[int, typer.Option(min=1, max=9, metavar="N", help="Candidates of a kernel, its own blocks first.")] = 9,
    again: Annotated[bool, typer.Option("--again", help="Measure anew what the table knows.")] = False,
    json: Json = False,
) -> None:
    """Measure which blocks of a folder's kernels are fastest on this GPU."""
    built_folder(folder)
    where = chosen_device(device)
    if where == "cpu":
        help_line = "run it on a machine with a GPU; the file that it writes can be copied: attnc build --tuned FILE"
        raise CommandError(Exit.ENVIRONMENT, "times of kernels cannot be measured without a GPU", help_line)
    report = _run(folder, where, chosen_dtypes(dtype, where), out, seconds, again, most)
    if report.left:
        note(f"note: not tuned, as there are no candidates for them: {', '.join(report.left)}")
    if json:
        print_json(report)
    else:
        _print(report)


def _run(
    folder: Path, device: str, dtypes: tuple[str, ...], out: Path | None, seconds: float, again: bool, most: int
) -> TuneReport:
    from functools import partial

    from attnc.codegen.problem import complaint
    from attnc.codegen.tune import table as tables
    from attnc.codegen.tune.tune import CannotMeasureError, in_process, tune
    from attnc.dsl import SpecError

    target = target_of(device)
    path = out or tables.table_path(tables.user_folder(), target.device, target.triton)
    try:
        return tune(folder, target, dtypes, path, _progress, partial(in_process, seconds=seconds), again=again, most=most)
    except CannotMeasureError as error:
        help_line = "attnc verify tries the same kernels; attnc doctor says what this machine lacks"
        raise SpecError([complaint("A403", f"no kernel can be run on {device}: {error}", folder, help_line)]) from error


def target_of(device: str) -> Target:
    """The GPU as torch and triton see it."""
    from importlib.metadata import version

    import torch

    from attnc.codegen.tune.tune import Target

    major, _ = torch.cuda.get_device_capability(device)
    architecture = "gfx942" if torch.version.hip else {8: "sm_80", 9: "sm_90"}.get(major, "sm_100")
    return Target(torch.cuda.get_device_name(device), architecture, version("triton"), device)


def _progress(kernel: str, message: TuneMessage | Ended) -> None:
    from attnc.codegen.verify.process import Ended

    if not sys.stderr.isatty():
        return
    if isinstance(message, Ended):
        if message.reason:
            note(f"{kernel}: {message.reason}")
    elif message.verified is not None:
        note(f"{kernel} {_words(message.verified)}: {message.wrong or 'right'}")
    elif message.measured is not None:
        note(f"{kernel} {_words(message.measured)}: {message.seconds * 1e6:.1f} us")


def _print(report: TuneReport) -> None:
    print_pairs([("folder", report.folder), ("machine", f"{report.device}, triton {report.triton}"), ("table", report.table)])
    typer.echo()
    lines = table([HEADINGS, *(_cells(one.file, one.row) for one in report.kernels)], NUMBERS)
    typer.echo(lines[0])
    for line, one in zip(lines[1:], report.kernels, strict=True):
        typer.echo(line)
        for candidate in one.row.tries:
            if candidate.refused:
                typer.echo(f"    {_words(candidate.blocks)} refused: {candidate.refused}")
    typer.echo("\n`attnc build` puts the table's blocks into tuning.json of the folders that it writes from now on")


def _cells(file: str, row: Tuned) -> tuple[str, ...]:
    medians = {one.blocks: statistics.median(one.seconds) for one in row.tries if one.seconds and not one.refused}
    chosen, default = medians.get(row.blocks or ()), medians.get(row.default)
    gain = f"{default / chosen:.2f}x" if chosen and default else ""
    refused = sum(bool(one.refused) for one in row.tries)
    times = [f"{seconds * 1e6:.1f} us" if seconds else "" for seconds in (chosen, default)]
    blocks = _words(row.blocks or ())
    return (file, row.dtype, blocks, times[0], _words(row.default), times[1], gain, str(len(row.tries)), str(refused))


def _words(blocks: Blocks) -> str:
    return " ".join(map(str, blocks))
