"""`attnc tune score`: what each decision of a spec would cost, and how much worse it makes the model."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer

from attnc.cli.exits import CommandError, Exit
from attnc.cli.options import Json, device_name, read_spec
from attnc.cli.output import console, note, print_json, print_pairs

if TYPE_CHECKING:
    from attnc.compiler.spec import Spec
    from attnc.tune.report import ScoreReport
    from attnc.tune.runs import Run, Settings
    from attnc.tune.score import Progress

TASKS = ("text", "passkey")
PROBES = ("mass", "output", "hidden")
LINES = 20
"""Lines of progress where there is no terminal, about."""


def score(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A spec with choose or budget.", show_default=False)],
    weights: Annotated[Path, typer.Option(metavar="DIR", help="Weights and tokenizer: of attnc import, or a built folder.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="RUN", help="The run: begun, or gone on with.")],
    task: Annotated[
        str, typer.Option(metavar="T,T", help=f"Of {', '.join(TASKS)}; both of a model of text.", show_default=False)
    ] = "",
    length: Annotated[str, typer.Option(metavar="N,N", help="Tokens of the texts.")] = "4096",
    samples: Annotated[int, typer.Option(min=1, metavar="N", help="Texts of each task and length.")] = 4,
    probe: Annotated[
        str, typer.Option(metavar="P,P", help=f"Of {', '.join(PROBES)} (with which come nll and kl), in rising cost.")
    ] = "output,hidden",
    text: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The first 80% of pydoc_data.topics.", show_default=False)
    ] = None,
    points: Annotated[int, typer.Option(min=2, metavar="N", help="Values tried of each budget.")] = 4,
    batch: Annotated[str, typer.Option(metavar="N,N", help="Sequences at once, for times.")] = "1",
    time_length: Annotated[
        str, typer.Option(metavar="N,N", help="Tokens, for times; those of the texts.", show_default=False)
    ] = "",
    seed: Annotated[int, typer.Option(help="Of the passkeys.")] = 0,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1; the GPU where there is one.", show_default=False)
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16, float16; bfloat16 on a GPU, else float32.", show_default=False)
    ] = None,
    times: Annotated[
        bool | None, typer.Option("--times/--no-times", help="Measure milliseconds; on a GPU.", show_default=False)
    ] = None,
    json: Json = False,
) -> None:
    """Measure losses and times of every candidate of a spec; goes on where a run was stopped."""
    from attnc.cli.run import number_type
    from attnc.cli.verify import chosen_device
    from attnc.tune.gpu_lock import one_per_gpu
    from attnc.tune.runs import Run, machine_of
    from attnc.tune.score import Scorer

    where = chosen_device(device, "--device cpu measures losses, and asks tables for costs")
    kind = dtype or ("float32" if where == "cpu" else "bfloat16")
    number_type(kind)
    spec = read_spec(file)
    asked = {"lengths": numbers("length", length), "samples": samples, "probes": _words("probe", probe, PROBES)}
    asked |= {"batches": numbers("batch", batch), "points": points, "seed": seed, "dtype": kind}
    asked["times_at"] = numbers("time-length", time_length) if time_length else ()
    settings = _settings(file, spec, weights, text, _words("task", task, TASKS), asked)
    run = Run.begin(out, spec, settings)
    machine = machine_of(where, "cpu" if where == "cpu" else device_name(None))
    began = time.monotonic()
    timed = where != "cpu" if times is None else times
    alone = one_per_gpu(where, note) if timed else nullcontext()
    with TemporaryDirectory(prefix="attnc-tune-") as scratch, alone, shown() as say:
        Scorer(run, weights, where, machine, Path(scratch), timed, say).go()
    report = _report(run, machine.gpu or "cpu", time.monotonic() - began)
    if json:
        print_json(report)
    else:
        print_pairs(
            [
                ("run", report.run),
                ("sites", f"{report.sites}, {report.candidates} candidates at most"),
                ("journal", f"{report.measurements} measurements"),
                ("machine", f"{report.machine}, {report.seconds:.0f} s"),
            ]
        )
        note(f"next: attnc tune solve {out} --objective kv_bytes --max-loss 0.05")


def _settings(
    file: str,
    spec: Spec,
    weights: Path,
    text: Path | None,
    tasks: tuple[str, ...],
    asked: dict[str, Any],
) -> Settings:
    from attnc.compiler.policy import spec_digest
    from attnc.tune.models import weight_files
    from attnc.tune.runs import Settings, digest
    from attnc.tune.samples import Source

    if text is not None and not text.is_file():
        raise CommandError(Exit.USAGE, f"there is no file {text}", "--text names a file of UTF-8 text")
    source = Source(weights, spec.model.vocab, text, 0)
    tasks = tasks or (TASKS if source.reader is not None else ("passkey",))
    if "text" in tasks and source.reader is None:
        raise CommandError(Exit.USAGE, f"{weights} has no tokenizer, so its model reads no text", "--task passkey")
    return Settings(
        file=str(Path(file).resolve()),
        spec=spec_digest(spec),
        weights_from=str(weights.resolve()),
        weights=digest(weight_files(weights)),
        data=source.prose.digest() if "text" in tasks else "",
        text=None if text is None else str(text.resolve()),
        tasks=tasks,
        **asked,
    )


def _report(run: Run, machine: str, seconds: float) -> ScoreReport:
    from attnc.tune.report import ScoreReport

    return ScoreReport(
        run=str(run.place),
        sites=sum(len(unit.groups) for unit in run.all),
        candidates=max(len(unit.candidates) for unit in run.all),
        measurements=len(run.journal.rows()),
        seconds=seconds,
        machine=machine,
    )


def _words(option: str, text: str, known: tuple[str, ...]) -> tuple[str, ...]:
    found = tuple(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))
    unknown = [word for word in found if word not in known]
    if unknown:
        raise CommandError(Exit.USAGE, f"there is no {option} {unknown[0]}", f"--{option} takes some of {', '.join(known)}")
    return tuple(word for word in known if word in found)


def numbers(option: str, text: str) -> tuple[int, ...]:
    """Numbers of a list with commas, in order and each once."""
    words = [word.strip() for word in text.split(",") if word.strip()]
    wrong = [word for word in words if not word.isdecimal() or int(word) < 1]
    if wrong or not words:
        raise CommandError(Exit.USAGE, f"--{option} {text} is no list of numbers above 0", f"write --{option} 1024,4096")
    return tuple(sorted(set(map(int, words))))


@contextmanager
def shown() -> Iterator[Callable[[Progress], None]]:
    """A bar on a terminal; else a line now and then."""
    if not sys.stderr.isatty():
        told: list[int] = []

        def line(one: Progress) -> None:
            part = one.done * LINES // max(1, one.total)
            if part not in told:
                told.append(part)
                left = "" if one.left is None else f", {one.left:.0f} s left"
                note(f"{one.done}/{one.total} {one.what}{left}")

        yield line
        return
    from rich import progress

    columns = (
        progress.TextColumn("{task.description}"),
        progress.BarColumn(bar_width=None),
        progress.MofNCompleteColumn(),
        progress.TextColumn("{task.fields[left]}"),
    )
    with progress.Progress(*columns, console=console(stderr=True), transient=True) as bar:
        row = bar.add_task("", total=1, left="")

        def show(one: Progress) -> None:
            left = "" if one.left is None else f"{int(one.left) // 60}:{int(one.left) % 60:02} left"
            bar.update(row, completed=one.done, total=one.total, description=one.what, left=left)

        yield show
