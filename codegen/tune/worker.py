"""The process that tries and times the candidates of one kernel: a TuneJob on its standard input, TuneMessages as answers."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable
from functools import partial
from typing import Protocol, TextIO

import torch

from attnc.codegen.triton.interpreting import quicken
from attnc.codegen.triton.versions import INTERPRETS
from attnc.codegen.tune.fast import is_fast
from attnc.codegen.tune.fast_bench import FastBench
from attnc.codegen.tune.list_bench import ListBench
from attnc.codegen.tune.lists import is_list
from attnc.codegen.tune.messages import TuneJob, TuneMessage
from attnc.codegen.tune.scan_bench import ScanBench
from attnc.codegen.tune.scans import is_scan
from attnc.codegen.tune.softmax_bench import SoftmaxBench
from attnc.codegen.tune.table import Blocks
from attnc.codegen.verify.worker import BROKEN, lost
from attnc.compiler.data import from_json, to_json

MEASURED = 0.02
"""Seconds of launches that one measurement lasts at least."""


def main() -> None:
    """Answers one job."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)
    if INTERPRETS:
        quicken()
    job = from_json(TuneJob, sys.stdin.read())
    families = ((is_scan, ScanBench), (is_list, ListBench), (is_fast, FastBench))
    bench: Bench = next((own for is_own, own in families if is_own(job.file)), SoftmaxBench)(job)
    right = _verify(bench, job, answers)
    if not right:
        return
    launch = bench.launch()
    for round_ in range(job.rounds):
        for blocks, known in right.items():
            if known <= round_:
                _say(answers, TuneMessage(begun=blocks))
                _say(answers, TuneMessage(measured=blocks, seconds=timed(partial(launch, blocks), job.device)))


def _verify(bench: Bench, job: TuneJob, answers: TextIO) -> dict[Blocks, int]:
    """The candidates that are right, with how often each was measured before."""
    waiting = [one for one in job.tries if not one.verified and not one.refused]
    right = {one.blocks: len(one.seconds) for one in job.tries if one.verified and not one.refused}
    if waiting:
        bench.prepare(lambda: _say(answers, TuneMessage()))  # still alive
    default, spare = job.tries[0], 0
    if waiting and not default.refused:
        _say(answers, TuneMessage(begun=default.blocks))
        spare = bench.spills(default.blocks)
    for one in waiting:
        _say(answers, TuneMessage(begun=one.blocks))
        reason = bench.wrong(one.blocks)
        found = 0 if reason else bench.spills(one.blocks)
        if found > spare:
            reason = f"it keeps {found} numbers of a thread in memory, the table's own blocks {spare}"
        _say(answers, TuneMessage(verified=one.blocks, wrong=reason))
        if reason and lost(job.device):
            sys.exit(BROKEN)
        if not reason:
            right[one.blocks] = 0
    return right


class Bench(Protocol):
    """A kernel whose candidates are tried and timed."""

    def prepare(self, alive: Callable[[], None]) -> None:
        """Makes what candidates are tried on, and calls `alive` now and then."""
        ...

    def wrong(self, blocks: Blocks) -> str:
        """Why a candidate is wrong, or nothing."""
        ...

    def spills(self, blocks: Blocks) -> int:
        """The most numbers of a thread that its compiled kernels keep in memory; 0 where nothing is compiled."""
        ...

    def launch(self) -> Callable[[Blocks], object]:
        """Runs the kernel with some blocks on a long text."""
        ...


def timed(launch: Callable[[], object], device: str) -> float:
    """Seconds of one launch, over so many that they take MEASURED together."""
    for _ in range(2):
        launch()
    count = max(3, min(1000, math.ceil(MEASURED / max(1e-7, _events(launch, 3, device)))))
    return _events(launch, count, device)


def _events(launch: Callable[[], object], count: int, device: str) -> float:
    with torch.cuda.device(device):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()
        for _ in range(count):
            launch()
        end.record()
        end.synchronize()
    return float(start.elapsed_time(end)) / 1000 / count


def _say(answers: TextIO, message: TuneMessage) -> None:
    answers.write(to_json(message) + "\n")


if __name__ == "__main__":
    main()
