"""Candidates for one kernel file over lists of chosen keys: tried as `attnc verify` does, timed on a long text."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from attnc.codegen.tune.messages import TuneJob
from attnc.codegen.tune.table import Blocks
from attnc.codegen.tune.taking import kept_in_memory, taking
from attnc.codegen.verify.cases import Case, Inputs, build
from attnc.codegen.verify.judge import Verdict
from attnc.codegen.verify.list_rows import (
    CHOOSES,
    GOES_BACK,
    KV_HEADS,
    beside,
    compared,
    drawn_choice,
    list_subjects,
    listed_for,
    made_for,
)
from attnc.codegen.verify.lists import lists_of

TOKENS, MANY, WINDOW = 4096, 128, (1, 0, 127, 0)
"""Of the text that is timed; queries of a row; the interval beside the lists."""


class ListBench:
    """One kernel file, by itself; one that goes back with the file that attends beside it."""

    def __init__(self, job: TuneJob) -> None:
        self.job = job
        self.subject = next(one for one in list_subjects(Path(job.folder)) if one.file == job.file)
        self.module = self.subject.module
        self.trials: list[Callable[[], Verdict]] = []

    def prepare(self, alive: Callable[[], None]) -> None:
        """In every dtype; what is compared is made anew at each trial."""
        for dtype in self.job.verified_in:
            self.trials += compared(self.subject, getattr(torch, dtype), self.job.device).values()
            alive()

    def wrong(self, blocks: Blocks) -> str:
        """Of the first trial that is."""
        with taking(self.module, self.job, blocks):
            return next((verdict.wrong for verdict in (trial() for trial in self.trials) if verdict.wrong), "")

    def spills(self, blocks: Blocks) -> int:
        """Of what the first trial compiles."""
        self.module.READY.clear()
        with taking(self.module, self.job, blocks):
            self.trials[0]()
        return kept_in_memory(self.module)

    def launch(self) -> Callable[[Blocks], object]:
        """On a third of a long text, in rows of blocks of queries; choices by the same."""
        work = self._work()

        def run(blocks: Blocks) -> object:
            with taking(self.module, self.job, blocks):
                return work()

        return run

    def _work(self) -> Callable[[], object]:
        dtype, module = getattr(torch, self.job.dtype), self.module
        if self.subject.skeleton == CHOOSES:
            return drawn_choice(module, dtype, self.job.device, (TOKENS,), MANY)[0]
        inputs, lists = self._text(dtype)
        if self.subject.skeleton != GOES_BACK:
            return lambda: module.attend(*inputs.arguments, lists)
        assert self.subject.beside is not None, "a file that goes back has one that attends beside it"
        o, lse = self.subject.beside.attend(*inputs.arguments, lists)
        given = (*inputs.arguments[:-1], lists, o, lse, torch.ones_like(o), torch.zeros_like(lse))
        return lambda: module.attend_backward(*given)

    def _text(self, dtype: torch.dtype) -> tuple[Inputs, object]:
        kernel = made_for(self.module)
        rest = beside(self.module, WINDOW)
        unions = tuple(listed_for(self.module, rest, MANY, salt) for salt in range(KV_HEADS))
        case = Case(kernel, unions, (TOKENS,), (0,), dtype, device=self.job.device)
        sets = tuple(one for one in unions for _ in range(self.module.GROUP // self.module.MEMBERS))
        return build(case), lists_of(case, sets)
