"""Candidates for one kernel file of fast weights: tried as `attnc verify` does, timed on a long text or on single steps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import torch

from attnc.codegen.tune.messages import TuneJob
from attnc.codegen.tune.table import Blocks
from attnc.codegen.tune.taking import kept_in_memory, taking
from attnc.codegen.verify.net_cases import on_a_text
from attnc.codegen.verify.net_roundings import Draws
from attnc.codegen.verify.nets import Trial, expected_of, judged, made_for, net_subjects, trials
from attnc.codegen.verify.step_cases import one_step

CHUNKS, HEADS, CHUNK, SEQUENCES = 64, 8, 64, 8
"""Of the text that is timed, and of the decode call."""


class FastBench:
    """One kernel file, by itself."""

    def __init__(self, job: TuneJob) -> None:
        self.job = job
        self.module: ModuleType = next(one.module for one in net_subjects(Path(job.folder)) if one.file == job.file)
        self.trials: list[tuple[Trial, Draws]] = []

    def prepare(self, alive: Callable[[], None]) -> None:
        """In every dtype."""
        for dtype in self.job.verified_in:
            for one in trials(self.module, getattr(torch, dtype), self.job.device):
                self.trials.append((one, expected_of(one)))
                alive()

    def wrong(self, blocks: Blocks) -> str:
        """Of the first trial that is."""
        with taking(self.module, self.job, blocks):
            reasons = (judged(one, self.module, wanted)[-1] for one, wanted in self.trials)
            return next((reason for reason in reasons if reason), "")

    def spills(self, blocks: Blocks) -> int:
        """Of what the first trial compiles."""
        self.module.READY.clear()
        with taking(self.module, self.job, blocks):
            judged(self.trials[0][0], self.module, self.trials[0][1])
        return kept_in_memory(self.module)

    def launch(self) -> Callable[[Blocks], object]:
        """There and back through chunks, and gradients of them; or a token of some sequences, whose chunks are whole by it."""
        dtype, module = getattr(torch, self.job.dtype), self.module
        if hasattr(module, "RATES"):
            call = one_step(made_for(module), SEQUENCES, HEADS, CHUNK, dtype, self.job.device)

            def work() -> None:
                module.step(call, False)
                module.step(call, True)
        else:
            work = on_a_text(module, CHUNKS, HEADS, CHUNK, dtype.itemsize, self.job.device)

        def run(blocks: Blocks) -> None:
            with taking(module, self.job, blocks):
                work()

        return run
