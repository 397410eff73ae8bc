"""Candidates for one kernel of matrix states: tried within their launch, timed alone.

A candidate is tried with the launch's other kernels, which take their own blocks with chunks of the candidate's length.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from attnc.codegen.importing import import_folder
from attnc.codegen.tune.messages import TuneJob
from attnc.codegen.tune.scans import CHUNKED, STEP
from attnc.codegen.tune.table import Blocks
from attnc.codegen.verify.state_cases import Case, inputs, launched
from attnc.codegen.verify.state_judge import Expected
from attnc.codegen.verify.states import BACKWARD, FORWARD, StateSubject, classes, prepared, skeleton_of, state_subjects, tried
from attnc.runtime.scan_kernels import Given, of_norms, widened

TOKENS, DECODED = 4096, 64
"""Of a text that chunks are timed on; sequences of a decode call."""

Trial = tuple[StateSubject, Case, Expected]


class ScanBench:
    """One kernel file of a launch."""

    def __init__(self, job: TuneJob) -> None:
        every = state_subjects(Path(job.folder))
        own = next(one for one in every if job.file in one.files)
        beside = [one for one in every if one.modules == own.modules]
        parts = {STEP: (STEP,), FORWARD: (FORWARD, BACKWARD), BACKWARD: (BACKWARD,)}[own.skeleton]
        self.job, self.subjects = job, [one for one in beside if one.skeleton in parts]
        self.skeleton, self.module = skeleton_of(job.file), own.module(job.file)
        self.files = {skeleton_of(name): one.module(name) for one in beside for name in one.files}
        self.heads = heads(Path(job.folder), own.launches[0])
        self.trials: dict[int, list[Trial]] = {}

    def prepare(self, alive: Callable[[], None]) -> None:
        """For each length of chunks and every dtype."""
        for blocks in (one.blocks for one in self.job.tries if one.blocks[0] not in self.trials):
            with self.taking(blocks):
                self.trials[blocks[0]] = list(self._trials(blocks[0], alive))

    def _trials(self, chunk: int, alive: Callable[[], None]) -> Iterator[Trial]:
        for dtype in self.job.verified_in:
            for subject in self.subjects:
                for several in classes(subject, chunk, getattr(torch, dtype), self.job.device).values():
                    for case in several:
                        yield subject, case, prepared(subject, case)
                        alive()

    def wrong(self, blocks: Blocks) -> str:
        """Of the first trial that is."""
        with self.taking(blocks):
            for subject, case, wanted in self.trials[blocks[0]]:
                verdict = tried(subject, case, wanted)
                if verdict.wrong:
                    return verdict.wrong
        return ""

    def spills(self, blocks: Blocks) -> int:
        """Of what the first trial of each part compiles."""
        with self.taking(blocks):
            first = {subject.file: (subject, case, wanted) for subject, case, wanted in reversed(self.trials[blocks[0]])}
            for one in first.values():
                tried(*one)
        return spilled(self.module, blocks)

    @contextmanager
    def taking(self, blocks: Blocks) -> Iterator[None]:
        """With these blocks for the file, and chunks of its length for the others."""
        key = (self.module.architecture(torch.device(self.job.device)), getattr(torch, self.job.dtype).itemsize)
        before = {name: module.BLOCKS[key] for name, module in self.files.items()}
        try:
            for name, module in self.files.items():
                if name in CHUNKED and self.skeleton in CHUNKED:
                    module.BLOCKS[key] = (blocks[0], *before[name][1:])
            self.module.BLOCKS[key] = blocks
            yield
        finally:
            for name, module in self.files.items():
                module.BLOCKS[key] = before[name]

    def launch(self) -> Callable[[Blocks], object]:
        """The file's kernel alone on a long text; what it reads of the others is computed once for each length of chunks."""
        case = Case(
            self.subjects[0].kernel,
            (1,) * DECODED if self.skeleton == STEP else (TOKENS,),
            self.heads,
            gates=(-0.05,),
            dtype=getattr(torch, self.job.dtype),
            device=self.job.device,
        )
        steps, before, batch = launched(case, inputs(case))
        assert before is not None
        held = before.matrix, before.sum
        gates = steps.decay, steps.erase, steps.write
        given = Given(steps.q, steps.k, steps.v, *gates, batch.offsets, steps.heads, steps.scale, batch.max_new)
        if self.skeleton == STEP:
            return lambda blocks: self.module.step(given, *held, blocks=blocks)
        given, (matrix, total) = widened(self.files, given, held)
        held = matrix, total
        ready: dict[int, dict[str, Any]] = {}

        def run(blocks: Blocks) -> object:
            if blocks[0] not in ready:
                with self.taking(blocks):
                    ready[blocks[0]] = chain(self.files, given, held, self.skeleton)
            return once(self.skeleton, self.module, given, held, ready[blocks[0]], blocks)

        return run


def spilled(module: ModuleType, blocks: Blocks) -> int:
    """The most numbers of a thread that a file's compiled kernels of these blocks keep in memory; 0 where none are."""
    compiled = [kernel for key, (kernel, _) in module.READY.items() if blocks in key]
    return max((getattr(kernel, "n_spills", 0) or 0 for kernel in compiled), default=0)


def chain(files: dict[str, ModuleType], given: Given, held: tuple[Tensor, Tensor | None], last: str) -> dict[str, Any]:
    """What the kernels of a launch leave for the others, up to the one that is timed."""
    made = files["scan_chunks"].prepare(given) if "scan_chunks" in files else {}
    left: dict[str, Any] = {"made": made}
    if last in ("scan_chunks", FORWARD):
        return left
    left["kept"] = files[FORWARD].scan(given, made, *held)
    if last == "scan_outputs":
        return left
    o, norms = files["scan_outputs"].outputs(given, made, left["kept"])
    after, sum_after = left["kept"][-2:]
    grads = (torch.randn_like(o), torch.randn_like(after), torch.randn_like(after[..., 0] if sum_after is None else sum_after))
    deltas = None if norms is None else of_norms(o, norms, grads[0])
    left |= {"norms": norms, "deltas": deltas, "grads": grads}
    if last == BACKWARD:
        return left
    left["back"] = files[BACKWARD].go_back(given, made, norms, deltas, *grads, left["kept"][3])
    if last == "scan_flows":
        left["found"] = gradients(files["scan_gradients"], given, held[0], left)
    return left


def once(
    skeleton: str, file: ModuleType, given: Given, held: tuple[Tensor, Tensor | None], left: dict[str, Any], blocks: Blocks
) -> object:
    """One launch of a kernel."""
    made = left["made"]
    if skeleton == "scan_chunks":
        return file.prepare(given, blocks=blocks)
    if skeleton == FORWARD:
        return file.scan(given, made, *held, blocks=blocks)
    if skeleton == "scan_outputs":
        return file.outputs(given, made, left["kept"], blocks=blocks)
    numbers = left["norms"], left["deltas"]
    if skeleton == BACKWARD:
        return file.go_back(given, made, *numbers, *left["grads"], blocks=blocks)
    if skeleton == "scan_values":
        return file.values(given, made, left["norms"], left["grads"][0], left["back"], blocks=blocks)
    if skeleton == "scan_flows":
        return file.unfold(given, left["found"], blocks=blocks)
    return gradients(file, given, held[0], left, blocks)


def gradients(file: ModuleType, given: Given, before: Tensor, left: dict[str, Any], blocks: Blocks | None = None) -> Any:
    """One launch of scan_gradients."""
    o_grad, after_grad, _ = left["grads"]
    kept, back = left["kept"], left["back"]
    numbers = left["made"], left["norms"], left["deltas"]
    return file.gradients(given, *numbers, o_grad, before, after_grad, kept, back, blocks=blocks)


def heads(folder: Path, launch: str) -> int:
    """How many states a launch of a built folder has."""
    package = import_folder(folder)
    model = import_module(f"{package.__name__}.runtime.load").without_numbers(package.Model)
    scans = (vars(module).get("scan") for module in model.modules())
    return int(next(scan.heads for scan in scans if scan is not None and scan.name == launch))
