"""`attnc train`: a built folder's weights trained by the recipe of its spec."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attnc.cli import train_options as take
from attnc.cli.exits import CommandError, Exit
from attnc.cli.options import Json, built_folder
from attnc.cli.output import console, note, print_json, print_pairs
from attnc.cli.train_options import DEFAULTS, DTYPES, LENGTH, TASKS

if TYPE_CHECKING:
    from attnc.tasks.examples import Task
    from attnc.train.report import Progress, Settings, TrainReport

LINES = 10
"""Lines of progress where there is no terminal."""


def train(
    folder: take.Folder,
    file: take.TextFile = None,
    task: take.Task = None,
    settings: take.Set = [],  # noqa: B006
    steps: take.Steps = None,
    length: take.Length = None,
    batch: take.Batch = None,
    accumulate: take.Accumulate = None,
    lr: take.Lr = None,
    warmup: take.Warmup = None,
    clip: take.Clip = None,
    decay: take.Decay = None,
    rank: take.Rank = None,
    alpha: take.Alpha = None,
    every: take.Every = None,
    keep: take.Keep = None,
    seed: take.Seed = None,
    device: take.Device = None,
    dtype: take.Dtype = None,
    compiled: take.Compiled = None,
    resume: take.Resume = False,
    json: Json = False,
) -> None:
    """Train a built model by its recipe."""
    built_folder(folder)
    given: dict[str, Any] = {"task": task, "file": file, "options": tuple(settings) or None, "steps": steps, "length": length}
    given |= {
        "batch": batch,
        "accumulate": accumulate,
        "lr": lr,
        "warmup": warmup,
        "clip": clip,
        "decay": decay,
        "rank": rank,
        "alpha": alpha,
    }
    given |= {"every": every, "keep": keep, "seed": seed, "device": device, "dtype": dtype, "compiled": compiled}
    known = {name: value for name, value in given.items() if value is not None}
    try:
        report = _resumed(folder, known) if resume else _begun(folder, known)
    except KeyboardInterrupt as stopped:
        note(str(stopped) or "stopped")
        raise
    if json:
        print_json(report)
    else:
        _print(report)


def _begun(folder: Path, known: dict[str, Any]) -> TrainReport:
    """A new run with these settings and the usual ones."""
    _check(known)
    if "task" not in known:
        raise CommandError(Exit.USAGE, "--task is missing", f"--task takes {', '.join(TASKS)}; --resume needs none")
    from attnc.cli.run import default_device
    from attnc.compiler.policies import of_folder
    from attnc.train.report import Settings
    from attnc.train.run import train as run

    context = of_folder(folder).model.context
    known = DEFAULTS | {"length": min(LENGTH, context or LENGTH), "device": default_device(), "compiled": False} | known
    known = {"dtype": "float32" if known["device"] == "cpu" else "bfloat16", "warmup": known["steps"] // 10} | known
    settings = Settings(**known)
    with _progress(settings.steps) as say:
        return run(folder, settings, task_of(settings), say, note)


def _resumed(folder: Path, known: dict[str, Any]) -> TrainReport:
    _check(known)
    from attnc.train import folder as folders
    from attnc.train.run import resume

    _, settings = folders.read_settings(folder)
    with _progress(known.get("steps", settings.steps)) as say:
        return resume(folder, known, task_of, say, note)


def _check(known: dict[str, Any]) -> None:
    """Options that exclude each other, and words that are none."""
    task = known.get("task")
    if task is not None and task not in TASKS:
        from attnc.dsl.diagnostic import closest

        raise CommandError(Exit.USAGE, f"there is no task {task}", closest(task, TASKS) or f"--task takes {', '.join(TASKS)}")
    if known.get("dtype", "float32") not in DTYPES:
        raise CommandError(Exit.USAGE, f"there is no number type {known['dtype']}", f"--dtype takes {', '.join(DTYPES)}")
    if task == "text" and "file" not in known:
        raise CommandError(Exit.USAGE, "--task text reads a file", "attnc train DIR FILE --task text")
    if task not in ("text", None) and "file" in known:
        raise CommandError(Exit.USAGE, f"--task {task} reads no file", "leave the file out, or use --task text")
    if "file" in known and not Path(known["file"]).is_file():
        raise CommandError(Exit.USAGE, f"there is no file {known['file']}", "name a file of UTF-8 text")


def task_of(settings: Settings) -> Task | None:
    """The task with its settings; None for a text, which has none."""
    import dataclasses

    from attnc.tasks.examples import TaskError
    from attnc.tasks.named import TASKS as CLASSES

    fields = {} if settings.task == "text" else {one.name: one for one in dataclasses.fields(CLASSES[settings.task])}  # type: ignore[arg-type]
    found: dict[str, Any] = {}
    for option in settings.options:
        key, _, value = option.partition("=")
        if key not in fields:
            help_line = f"it has {', '.join(fields)}" if fields else "leave --set out"
            raise CommandError(Exit.USAGE, f"the task {settings.task} has no setting {key}", help_line)
        try:
            found[key] = _value(value, str(fields[key].type))
        except ValueError as error:
            raise CommandError(
                Exit.USAGE, f"--set {option} gives no {fields[key].type}", f"such as {key}={fields[key].default}"
            ) from error
    if settings.task == "text":
        return None
    try:
        return CLASSES[settings.task](**found)
    except TaskError as error:
        raise CommandError(Exit.USAGE, str(error), error.help) from error


def _value(text: str, kind: str) -> object:
    """What stands behind `=`, as the task's field says."""
    if kind == "bool":
        return {"true": True, "false": False}[text] if text in ("true", "false") else int(text[:0])
    return int(text) if kind == "int" else float(text)


@contextmanager
def _progress(steps: int) -> Iterator[Callable[[Progress], None]]:
    """A bar on a terminal; else a line now and then."""
    if not sys.stderr.isatty():
        yield lambda one: _line(one) if one.step == steps or one.step % max(1, steps // LINES) == 0 else None
        return
    from rich import progress

    columns = (
        progress.TextColumn("{task.completed:>6.0f}/{task.total:.0f}"),
        progress.BarColumn(bar_width=None),
        progress.TextColumn("loss {task.fields[loss]}"),
        progress.TextColumn("{task.fields[speed]} tokens/s"),
        progress.TimeRemainingColumn(),
    )
    with progress.Progress(*columns, console=console(stderr=True), transient=True) as bar:
        row = bar.add_task("", total=steps, loss="...", speed="...")
        yield lambda one: bar.update(row, completed=one.step, loss=f"{one.loss:.4f}", speed=f"{one.tokens_per_second:,.0f}")


def _line(one: Progress) -> None:
    terms = "" if len(one.terms) < 2 else " (" + ", ".join(f"{word} {value:.4f}" for word, value in one.terms.items()) + ")"
    note(f"step {one.step}/{one.steps}  loss {one.loss:.4f}{terms}  lr {one.lr:.2g}  {one.tokens_per_second:,.0f} tokens/s")


def _print(report: TrainReport) -> None:
    share = f"{report.trained:,} of {report.parameters:,}" + (f", and {report.lora:,} of LoRA" if report.lora else "")
    rows = [("trained", share)]
    rows += [(word, f"{value:.4f} -> {report.last[word]:.4f}") for word, value in report.first.items() if _tells(word, report)]
    rows += [("held out", f"{report.held:.4f} on examples after the last step")]
    rows += [
        ("tokens", f"{report.tokens:,} at {report.tokens_per_second:,.0f} a second" if report.tokens else "none were left")
    ]
    rows += [("weights", ", ".join(report.weights))]
    rows += [("plot", report.plot)] if report.plot else []
    print_pairs(rows)
    note(f"next: attnc eval {report.folder}")


def _tells(word: str, report: TrainReport) -> bool:
    """The whole loss is left out where it is its only term."""
    return word != "loss" or len(report.first) > 2
