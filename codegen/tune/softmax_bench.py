"""Candidates for one kernel file of the softmax family: tried as `attnc verify` does, timed on a long text.

A file of a softplus launch is tried with the launch's other files, as no half of it means something alone, and timed by itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from attnc.codegen.triton.versions import INTERPRETS
from attnc.codegen.tune.messages import TuneJob
from attnc.codegen.tune.scan_bench import spilled
from attnc.codegen.tune.table import Blocks
from attnc.codegen.verify import trial
from attnc.codegen.verify.cases import Case, Inputs, build
from attnc.codegen.verify.classes import DECODE, IN_INTERPRETER, ON_GPU, cases
from attnc.codegen.verify.judge import Verdict
from attnc.codegen.verify.subjects import Subject, subjects
from attnc.compiler.families import BACKWARD
from attnc.runtime.softplus import keys_alone

TOKENS = {DECODE: 8192, BACKWARD[0]: 2048, BACKWARD[1]: 2048}
PREFILL_TOKENS = 4096
DECODED = 8
"""Sequences of a decode call that is timed."""

SIZES = IN_INTERPRETER if INTERPRETS else ON_GPU


class SoftmaxBench:
    """One kernel file; `module` is the one that takes a candidate's blocks."""

    def __init__(self, job: TuneJob) -> None:
        every = subjects(Path(job.folder), SIZES.longest // 2)
        self.job, self.subject = job, next(one for one in every if job.file in (one.file, one.masses))
        self.module = import_module(f"{self.subject.module.__package__}.{job.file}")
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
            verdict = self.verdict(one, blocks)
            if verdict.wrong:
                return f"{trial.words(one.inputs.case)}: {verdict.wrong}"
        return ""

    def verdict(self, one: trial.Trial, blocks: Blocks) -> Verdict:
        """On one trial."""
        if self.subject.softplus is None:
            return trial.run(self.module, self.subject.skeleton, one, blocks)
        with self.taking(blocks):
            return trial.run_softplus(self.subject.softplus, self.subject.skeleton, one)

    def spills(self, blocks: Blocks) -> int:
        """Of what the first trial compiles."""
        self.verdict(self.trials[0], blocks)
        return spilled(self.module, blocks)

    @contextmanager
    def taking(self, blocks: Blocks) -> Iterator[None]:
        """With these blocks in the file's table, for every dtype of the candidate's size."""
        key = (self.module.architecture(torch.device(self.job.device)), getattr(torch, self.job.dtype).itemsize)
        before = self.module.BLOCKS[key]
        self.module.BLOCKS[key] = blocks
        try:
            yield
        finally:
            self.module.BLOCKS[key] = before

    def launch(self) -> Callable[[Blocks], object]:
        """On the heads of its first launch."""
        return prepared(self.subject, self.module, self.job.dtype, self.job.device)


def prepared(subject: Subject, module: ModuleType, dtype: str, device: str) -> Callable[[Blocks], object]:
    """One launch of the file's kernel with some blocks, on the heads of its first launch and a long text.

    What other kernels would have left is made up: times do not depend on it.
    """
    tokens = TOKENS.get(subject.skeleton, PREFILL_TOKENS)
    decodes = subject.skeleton == DECODE
    sizes, pasts = ((1,) * DECODED, (tokens,) * DECODED) if decodes else ((tokens,), (0,))
    case = Case(subject.kernel, subject.whole, sizes, pasts, dtype=getattr(torch, dtype), cache=decodes, device=device)
    inputs = build(case)
    given = inputs.arguments if subject.softplus is None else softplus_arguments(inputs, tokens, module.EXPONENT == 0)
    if subject.skeleton not in BACKWARD:
        return lambda blocks: module.attend(*given, blocks=blocks)
    given = given[:-1]
    lines = inputs.q.shape[:2]
    o = torch.randn(*lines, module.VALUE_WIDTH, device=device).to(inputs.q.dtype)
    number = torch.full(lines, math.log(tokens), device=device)
    sums = number if subject.softplus is None else torch.ones(*lines, 2, device=device)
    if subject.skeleton == BACKWARD[0]:
        return lambda blocks: module.attend_backward_queries(*given, o, sums, o, number, blocks=blocks)
    delta = torch.stack((number, number)) if module.EXPONENT else number
    return lambda blocks: module.attend_backward_keys(*given, sums, delta, o, blocks=blocks)


def softplus_arguments(inputs: Inputs, tokens: int, masses: bool) -> tuple[Any, ...]:
    """What `attend` takes in a softplus launch: in the half that sums masses, keys without values."""
    q, part, rows, form, batch, scale, cap, sink_logit = inputs.arguments
    lines = scale.expand(q.shape[:2])
    share = torch.full_like(lines, 0.0 if masses else 1.0)
    scales = torch.stack((lines, torch.full_like(lines, math.log(tokens)), share), dim=-1)
    return q, keys_alone(part) if masses else part, rows, form, batch, scales, cap, sink_logit
