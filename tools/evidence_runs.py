"""What the commands of docs/evidence.md share: runs side by side, models that are trained and thrown away, records."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

import torch

from attnc.dsl import SpecError
from attnc.tasks.examples import Examples, Task
from attnc.train.report import Progress, Settings

TOP = Path(__file__).resolve().parent.parent
FOLDER = TOP / "docs" / "evidence"
AT_ONCE = 6 if torch.cuda.is_available() else 1
"""Runs at a time: small models leave a GPU idle."""

Wanted, Run = TypeVar("Wanted"), TypeVar("Run")


def side_by_side(
    processes: int,
    run: Callable[[Wanted], Run],
    wanted: Sequence[Wanted],
    then: Callable[[], Sequence[Wanted]] = lambda: (),
) -> Iterator[Run]:
    """The runs, each as soon as it is done; `then` says after each what else is wanted by now."""
    if processes < 2:
        left = list(wanted)
        while left:
            yield run(left.pop(0))
            left += then()
        return
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        running = {pool.submit(run, one) for one in wanted}
        while running:
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for one in done:
                yield one.result()
                running |= {pool.submit(run, more) for more in then()}


class Ahead:
    """A task whose next examples are drawn while the model learns from these."""

    def __init__(self, task: Task) -> None:
        self.task, self.pool = task, ThreadPoolExecutor(max_workers=1)
        self.drawn: tuple[tuple[int, ...], Future[Examples]] | None = None

    def batch(self, seed: int, step: int, size: int, length: int, vocabulary: int) -> Examples:
        """As the task's own."""
        wanted, after = ((seed, number, size, length, vocabulary) for number in (step, step + 1))
        known = self.drawn[1].result() if self.drawn and self.drawn[0] == wanted else self.task.batch(*wanted)
        self.drawn = (after, self.pool.submit(self.task.batch, *after))
        return known

    def chance(self, vocabulary: int) -> float:
        """As the task's own."""
        return self.task.chance(vocabulary)


def settings(device: str, **chosen: object) -> Settings:
    """What all runs have in common: in float32, since small matrices gain nothing from less, and casts are launches."""
    steps = chosen["steps"]
    assert isinstance(steps, int), "a run has steps"
    common = {"accumulate": 1, "warmup": steps // 10, "clip": 1.0, "decay": 0.1, "every": steps + 1, "keep": 1, "rank": 1}
    common |= {"alpha": 1.0, "device": device, "dtype": "float32", "compiled": False, "seed": 0}
    return Settings(**{**common, **chosen})


def say(name: str, progress: Progress) -> None:
    """A line now and then."""
    if progress.step % max(1, progress.steps // 5) == 0:
        speed = f"{progress.tokens_per_second:,.0f} tokens a second"
        print(f"{name}: step {progress.step}, loss {progress.loss:.4f}, {speed}", file=sys.stderr, flush=True)


def diverged(name: str, error: SpecError) -> None:
    """Says that a run did, which is a result too; raises the error if it is another one."""
    if [diagnostic.code for diagnostic in error.diagnostics] != ["A571"]:
        raise error
    print(f"{name}: {error.diagnostics[0].message}", flush=True)


def write(path: Path, text: str) -> None:
    """In one step, so that a killed command loses no run that was done."""
    beside = path.with_name(f".{path.name}.writing")
    beside.write_text(text, "utf-8")
    os.replace(beside, path)
