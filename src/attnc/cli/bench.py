"""`attnc bench`: each launch of a spec beside what other libraries offer for it, in one run."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from attnc.cli.exits import CommandError, Exit
from attnc.cli.options import Diagnostics, Json, device_name, in_its_text, providers, read_spec
from attnc.cli.output import Format, note, print_json

if TYPE_CHECKING:
    from attnc.bench.launches import Folder
    from attnc.bench.report import BenchReport
    from attnc.bench.run import Options

PHASES = ("forward", "backward", "decode")
AGAINST = ("planned", "gluon", "sdpa", "cudnn", "flash", "flex", "split", "fla", "fa4", "torch", "reference")
"""As attnc.bench.peers has them, which imports torch."""

USUAL = "planned,sdpa,cudnn,flex,split,fla,fa4"
LENGTHS = {"cuda": (16384,), "cpu": (256,)}
DTYPES = {"cuda": "bfloat16", "cpu": "float32"}


def bench(
    file: Annotated[str, typer.Argument(metavar="FILE|DIR", help="A spec, - for the standard input, or a built folder.")],
    against: Annotated[
        str, typer.Option(metavar="NAME,NAME", help=f"Who runs beside the generated kernels: {', '.join(AGAINST)}.")
    ] = USUAL,
    length: Annotated[
        str, typer.Option(metavar="N,N", help="Tokens of a sequence; 16384, on a CPU 256.", show_default=False)
    ] = "",
    batch: Annotated[int, typer.Option(min=1, metavar="N", help="Sequences at once.")] = 1,
    dtype: Annotated[
        str | None, typer.Option(help="bfloat16, float16 or float32; bfloat16, on a CPU float32.", show_default=False)
    ] = None,
    phases: Annotated[str, typer.Option(metavar="P,P", help="Of forward, backward and decode.")] = ",".join(PHASES),
    seconds: Annotated[float, typer.Option(min=0.001, help="Timing for each launch, phase and length.")] = 1.0,
    plot: Annotated[
        Path | None, typer.Option(metavar="PNG", help="Draw the times against the length.", show_default=False)
    ] = None,
    diagnostics: Diagnostics = Format.text,
    json: Json = False,
) -> None:
    """Time each kind of layer beside other libraries."""
    names, wanted = _words(against, AGAINST, "against"), _words(phases, PHASES, "phases")
    counts = _numbers(length)
    if plot is not None:
        _can_draw(plot)  # before the work, not after it
    from attnc.bench.machine import default_device
    from attnc.bench.run import Options
    from attnc.cli.run import number_type

    device = default_device()
    found = number_type(dtype or DTYPES[device.type])
    assert found is not None, "there is a default"
    options = Options(
        lengths=counts or LENGTHS[device.type],
        phases=wanted,
        against=names,
        batch=batch,
        dtype=found,
        device=device,
        budget=seconds,
    )
    report = _report(file, options, note if json else partial(typer.echo, nl=False))
    if plot is not None:
        from attnc.bench.plot import draw

        draw(report, plot)
        note(f"drawn in {plot}")
    if json:
        print_json(report)
    if report.failed:
        raise typer.Exit(Exit.DIFFERENT)


def _can_draw(path: Path) -> None:
    from attnc.bench import plot

    plot.check()
    if path.suffix.lower() not in plot.FORMATS:
        raise CommandError(Exit.USAGE, f"--plot {path} is no picture", f"its name ends in {', '.join(plot.FORMATS)}")
    if not path.parent.is_dir():
        raise CommandError(Exit.USAGE, f"there is no folder {path.parent}", "make it first")


def _report(file: str, options: Options, show: Callable[[str], None]) -> BenchReport:
    """Shows each row when it is measured: a run that is stopped keeps what it has."""
    from attnc.bench import fields, run, table, timing
    from attnc.bench.machine import machine
    from attnc.bench.report import BenchReport, Ceiling, Skip

    with ExitStack() as stack:
        folder = _folder(file, options, stack)
        known, skipped = fields.everything(folder)
        for launch in skipped:
            words = "" if launch.words == launch.name else f" ({launch.words})"
            note(f"note: {launch.name}{words} is not timed: {launch.reason}")
        if not known:
            raise CommandError(Exit.USAGE, f"{file} has nothing to time", "attnc show says who runs it")
        if options.device.type == "cpu":
            note(f"note: no GPU here; {', '.join(map(str, options.lengths))} tokens in {options.word} on the CPU")
        note("the roof: a large product of matrices, and a copy")
        roof = timing.roof(options.device, options.dtype, options.budget)
        report = BenchReport(
            command=("attnc", *sys.argv[1:]),
            file=file,
            machine=machine(options.device),
            dtype=options.word,
            ceiling=Ceiling(flops=roof.flops, bandwidth=roof.bandwidth),
            rows=(),
            skipped=tuple(Skip(launch=one.name, words=one.words, reason=one.reason) for one in skipped),
        )
        show(table.header_text(report))
        for row in run.run(known, options, roof, timing.clock(options.device), note):
            show(table.row_text(row, report.rows[-1] if report.rows else None))
            report = replace(report, rows=(*report.rows, row))
        show(table.skipped_text(report))
    return report


def _folder(file: str, options: Options, stack: ExitStack) -> Folder:
    """The built folder, or one built from the spec for this run and planned for this machine and the first length."""
    from attnc.bench import launches as launching
    from attnc.codegen import build

    if (Path(file) / "plan.json").is_file():
        return launching.open_folder(Path(file))
    spec = read_spec(file)
    place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="attnc-bench-"))) / "built"
    with in_its_text(file):
        words = build.Options(
            device=device_name(None), length=options.lengths[0], batch=options.batch, installed=providers("", "")["installed"]
        )
        build.build(spec, place, words)
    return launching.open_folder(place)


def _words(text: str, known: tuple[str, ...], option: str) -> tuple[str, ...]:
    """The words of a list, each once."""
    found = tuple(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))
    unknown = [word for word in found if word not in known]
    if unknown:
        raise CommandError(Exit.USAGE, f"--{option} does not know {unknown[0]}", f"it takes some of {', '.join(known)}")
    if not found and option == "phases":
        raise CommandError(Exit.USAGE, "--phases names none", f"it takes some of {', '.join(known)}")
    return found


def _numbers(text: str) -> tuple[int, ...]:
    """The lengths of a list."""
    words = [word.strip() for word in text.split(",") if word.strip()]
    wrong = [word for word in words if not word.isdecimal() or int(word) < 1]
    if wrong:
        raise CommandError(Exit.USAGE, f"--length {wrong[0]} is no number of tokens", "write --length 4096,16384")
    return tuple(dict.fromkeys(map(int, words)))
