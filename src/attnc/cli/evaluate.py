"""`attnc eval`: what a built model can do, by its loss on a text and the questions that it answers."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from attnc.cli.exits import CommandError, Exit
from attnc.cli.options import Json, built_folder
from attnc.cli.output import bytes_text, console, note, print_json

if TYPE_CHECKING:
    from attnc.evaluate.report import EvalReport, Loss, Share
    from attnc.evaluate.run import Progress

TASKS = ("nll", "passkey", "multikey", "copy", "mqar", "needle")
OF_TEXT = ("nll", "passkey", "multikey")
"""What a model of text is asked where no task is named; others are asked the rest, and passkeys as token ids."""

OF_TOKENS = TASKS[1:]
LENGTH = 512
HEADINGS = ("task", "as", "tokens", "trials", "result", "95%", "chance", "cache", "right at depth 0, 1/4, 1/2, 3/4, 1")


def evaluate(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder that attnc build wrote.", show_default=False)],
    task: Annotated[
        str,
        typer.Option(
            metavar="T,T",
            help=f"Of {', '.join(TASKS)}; {', '.join(OF_TEXT)} of a model of text, else all but nll.",
            show_default=False,
        ),
    ] = "",
    length: Annotated[
        str, typer.Option(metavar="N,N", help=f"Tokens; {LENGTH}, or the context if that is less.", show_default=False)
    ] = "",
    trials: Annotated[int, typer.Option(min=1, metavar="N", help="Texts of each task and length, at most.")] = 40,
    batch: Annotated[int, typer.Option(min=1, metavar="N", help="Texts at once.")] = 8,
    seed: Annotated[int, typer.Option(help="Of the questions.")] = 0,
    text: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="For nll; the last fifth of pydoc_data.topics.", show_default=False),
    ] = None,
    pairs: Annotated[str, typer.Option(metavar="N,N", help="Of mqar: a row for each.")] = "8",
    noise: Annotated[bool, typer.Option(help="Of mqar: any tokens, or token 0, where no key stands.")] = True,
    keys: Annotated[int, typer.Option(min=1, metavar="N", help="Of multikey.")] = 4,
    form: Annotated[
        Literal["text", "bytes", "tokens"] | None,
        typer.Option(
            "--as",
            help="Text by the tokenizer or as bytes; passkeys also as token ids. Default: as folder and vocabulary say.",
            show_default=False,
        ),
    ] = None,
    beyond_context: Annotated[
        bool, typer.Option("--beyond-context", help="Also lengths that the model was not trained for.")
    ] = False,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1; the GPU where there is one.", show_default=False)
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16, float16; that of the weights.", show_default=False)
    ] = None,
    reference: Annotated[bool, typer.Option("--reference", help="Run every part by its reference.")] = False,
    json: Json = False,
) -> None:
    """Measure a built model: loss on a text, passkeys, recall, copying."""
    built_folder(folder)
    if text is not None and not text.is_file():
        raise CommandError(Exit.USAGE, f"there is no file {text}", "--text names a file of UTF-8 text")
    tasks, lengths, counts = _tasks(task), _numbers("length", length), _numbers("pairs", pairs)
    if text is not None and tasks and "nll" not in tasks:
        raise CommandError(Exit.USAGE, "--text is for nll, which is not asked", "--task nll asks it")
    from attnc.cli.run import number_type
    from attnc.cli.verify import chosen_device
    from attnc.evaluate import run
    from attnc.evaluate.subject import Subject

    subject = Subject.of(folder, chosen_device(device, "--device cpu runs everything there"), number_type(dtype), reference)
    if subject.read == "whole":
        note(f"note: texts are read in one call, as chunks would change results: {subject.why('chunked')}")
    options = run.Options(
        tasks=tasks or (OF_TOKENS if subject.form == "tokens" else OF_TEXT),
        lengths=lengths or (min(LENGTH, subject.spec.model.context or LENGTH),),
        trials=trials,
        batch=batch,
        seed=seed,
        pairs=counts,
        noise=noise,
        keys=keys,
        form=form,
        text=text,
        beyond_context=beyond_context,
    )
    with _progress() as progress:
        report = run.evaluate(subject, options, progress)
    if json:
        print_json(report)
    else:
        table(report)


def _tasks(words: str) -> tuple[str, ...]:
    """The tasks of a list, each once."""
    found = tuple(dict.fromkeys(word.strip() for word in words.split(",") if word.strip()))
    unknown = [word for word in found if word not in TASKS]
    if unknown:
        raise CommandError(Exit.USAGE, f"there is no task {unknown[0]}", f"--task takes some of {', '.join(TASKS)}")
    return found


def _numbers(option: str, text: str) -> tuple[int, ...]:
    words = [word.strip() for word in text.split(",") if word.strip()]
    wrong = [word for word in words if not word.isdecimal() or int(word) < 1]
    if wrong:
        raise CommandError(Exit.USAGE, f"--{option} {wrong[0]} is no number above 0", f"write --{option} 8,16")
    return tuple(dict.fromkeys(map(int, words)))


@contextmanager
def _progress() -> Iterator[Progress]:
    """A bar for each row, on a terminal alone."""
    if not sys.stderr.isatty():
        yield lambda *_: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console(stderr=True), transient=True) as bars:
        known = {}

        def show(row: str, trials: int, done: int) -> None:
            if row not in known:
                known[row] = bars.add_task(row, total=trials)
            bars.update(known[row], completed=done)

        yield show


def table(report: EvalReport) -> None:
    """Prints the rows of a report."""
    from attnc.cli.verify import table as aligned

    typer.echo(f"{report.name}, {report.parameters:,} parameters, {report.dtype} on {report.device}\n")
    rows = [HEADINGS, *map(_cells, report.rows)]
    if not any(row[-1] for row in rows[1:]):
        rows = [row[:-1] for row in rows]
    typer.echo("\n".join(aligned(rows, frozenset(HEADINGS[2:5] + HEADINGS[6:8]))))
    losses = [row for row in report.rows if row.task == "nll"]
    if losses:
        typer.echo(f"\nnll: nats a token on {losses[0].text}, SHA-256 {losses[0].sha256[:16]}")


def _cells(row: Loss | Share) -> tuple[str, ...]:
    size = bytes_text(row.cache_bytes)
    if row.task == "nll":
        between = "" if row.low is None or row.high is None else f"{row.low:.3f} to {row.high:.3f}"
        return ("nll", row.form, str(row.length), str(row.windows), f"{row.value:.4f}", between, "", size, "")
    name = row.task + {"mqar": f" {row.settings.get('pairs')}", "multikey": f" {row.settings.get('keys')}"}.get(row.task, "")
    shares = (f"{row.value:.1%}", f"{row.low:.1%} to {row.high:.1%}", f"{row.chance:.2g}")
    depths = "  ".join(f"{one.right}/{one.trials}" for one in row.depths)
    return (name, row.form, str(row.length), str(row.trials), *shares, size, depths)
