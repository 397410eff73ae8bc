"""The process that tries and times the candidates of one kernel: a TuneJob on its standard input, TuneMessages as answers."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Protocol, TextIO

import torch

from attnc.codegen.triton.interpreting import quicken
from attnc.codegen.triton.versions import INTERPRETS
from attnc.codegen.tune.list_bench import ListBench
from attnc.codegen.tune.lists import is_list
from attnc.codegen.tune.messages import TuneJob, TuneMessage
from attnc.codegen.tune.scan_bench import ScanBench, spilled
from attnc.codegen.tune.scans import is_scan
from attnc.codegen.tune.table import Blocks
from attnc.codegen.verify import trial
from attnc.codegen.verify.cases import Case, build
from attnc.codegen.verify.classes import DECODE, IN_INTERPRETER, ON_GPU, cases
from attnc.codegen.verify.subjects import Subject, subjects
from attnc.codegen.verify.worker import BROKEN, lost
from attnc.compiler.data import from_json, to_json
from attnc.compiler.families import BACKWARD

TOKENS = {DECODE: 8192, BACKWARD[0]: 2048, BACKWARD[1]: 2048}
PREFILL_TOKENS = 4096
DECODED = 8
"""Sequences of a decode call that is timed."""

SIZES = IN_INTERPRETER if INTERPRETS else ON_GPU

MEASURED = 0.02
"""Seconds of launches that one measurement lasts at least."""


def main() -> None:
    """Answers one job."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)
    if INTERPRETS:
        quicken()
    job = from_json(TuneJob, sys.stdin.read())
    bench: Bench = (ScanBench if is_scan(job.file) else ListBench if is_list(job.file) else SoftmaxBench)(job)
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


class SoftmaxBench:
    """One kernel file of the softmax family, by itself."""

    def __init__(self, job: TuneJob) -> None:
        self.job = job
        self.subject = next(one for one in subjects(Path(job.folder), SIZES.longest // 2) if one.file == job.file)
        self.trials: list[trial.Trial] = []

    def prepare(self, alive: Callable[[], None]) -> None:
        """In every dtype."""
        subject, job = self.subject, self.job
        lengths = sorted({length for one in job.tries for length in one.blocks[: 1 if subject.skeleton == DECODE else 2]})
        for dtype in job.verified_in:
            made = cases(subject.skeleton, subject.kernel, subject.heads, lengths, getattr(torch, dtype), job.device, SIZES)
            for case in (case for several in made.values() for case in several):
                self.trials.append(trial.prepare(subject.skeleton, case))
                alive()

    def wrong(self, blocks: Blocks) -> str:
        """Of the first trial that is."""
        for one in self.trials:
            verdict = trial.run(self.subject.module, self.subject.skeleton, one, blocks)
            if verdict.wrong:
                return f"{trial.words(one.inputs.case)}: {verdict.wrong}"
        return ""

    def spills(self, blocks: Blocks) -> int:
        """Of what the first trial compiles."""
        trial.run(self.subject.module, self.subject.skeleton, self.trials[0], blocks)
        return spilled(self.subject.module, blocks)

    def launch(self) -> Callable[[Blocks], object]:
        """On the heads of its first launch."""
        return prepared(self.subject, self.job.dtype, self.job.device)


def prepared(subject: Subject, dtype: str, device: str) -> Callable[[Blocks], object]:
    """One launch of the kernel with some blocks, on the heads of its first launch and a long text."""
    tokens = TOKENS.get(subject.skeleton, PREFILL_TOKENS)
    decodes = subject.skeleton == DECODE
    sizes, pasts = ((1,) * DECODED, (tokens,) * DECODED) if decodes else ((tokens,), (0,))
    case = Case(subject.kernel, subject.whole, sizes, pasts, dtype=getattr(torch, dtype), cache=decodes, device=device)
    inputs = build(case)
    if subject.skeleton not in BACKWARD:
        return lambda blocks: subject.module.attend(*inputs.arguments, blocks=blocks)
    o = torch.randn(*inputs.q.shape[:2], subject.kernel.value_width, device=device).to(inputs.q.dtype)
    number = torch.full(inputs.q.shape[:2], math.log(tokens), device=device)
    common = inputs.arguments[:-1]
    if subject.skeleton == BACKWARD[0]:
        return lambda blocks: subject.module.attend_backward_queries(*common, o, number, o, number, blocks=blocks)
    return lambda blocks: subject.module.attend_backward_keys(*common, number, number, o, blocks=blocks)


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
