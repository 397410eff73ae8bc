"""What of a built folder's matrix states is verified: every launch's kernels token by token, by chunks, and going back."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from types import ModuleType

import torch

from attnc.codegen.importing import import_folder
from attnc.codegen.verify.cases import poisoned
from attnc.codegen.verify.report import LIMIT, Row
from attnc.codegen.verify.state_cases import Case, Results, run
from attnc.codegen.verify.state_judge import Expected, Verdict, expected, judge, measure_of, other_draws
from attnc.compiler.families import FAMILIES, Recurrence
from attnc.runtime.recurrence import Scan
from attnc.runtime.scan_fla import fla_scan
from attnc.runtime.scan_kernels import scan_kernels
from attnc.runtime.sizes import DECODE_TOKENS

STEP, FORWARD, BACKWARD = "scan_step", "scan_forward", "scan_backward"
PARTS = {
    STEP: (STEP,),
    FORWARD: (FORWARD, "scan_chunks", "scan_outputs"),
    BACKWARD: (BACKWARD, "scan_values", "scan_gradients", "scan_flows"),
}
"""The files that a comparison is about, by the one that gives it its name; gradients need those of the results too."""

DEEP = (0.0, -1.0, -50.0)
BEHIND = (-1e-3, -1e-3, -5e3)
"""A gate so deep that a running sum has no digits left for the next ones."""


@dataclass(frozen=True)
class StateSubject:
    """A part of a launch's kernels that is compared: `file` names it, `others` are compared with it; `modules`: all.

    library  who runs it instead, where the plan takes a library's kernels
    """

    file: str
    others: tuple[str, ...]
    modules: tuple[ModuleType, ...]
    kernel: Recurrence
    launches: tuple[str, ...]
    library: Scan | None = None

    @property
    def files(self) -> tuple[str, ...]:
        """Every file that is compared with it."""
        return (self.file, *self.others)

    @property
    def skeleton(self) -> str:
        """That of `file`."""
        return skeleton_of(self.file).replace("fla_", "scan_")

    @property
    def scan(self) -> Scan:
        """All kernels of the launch as a provider, or the library's."""
        return self.library or scan_kernels(self.modules)

    def module(self, file: str) -> ModuleType:
        """One of its files."""
        return next(one for one in self.modules if one.__name__.rpartition(".")[2] == file)


def skeleton_of(file: str) -> str:
    """Of a kernel file in a built folder."""
    return file.rpartition("_")[0]


def state_subjects(folder: Path) -> list[StateSubject]:
    """The kernel files of matrix states of a built folder; importing them needs triton."""
    package = import_folder(folder).__name__
    index = import_module(f"{package}.kernels")
    served: dict[tuple[str, ...], list[str]] = {}
    for launch, names in getattr(index, "STATES", {}).items():
        index.kernel(launch)  # tuned blocks are put into the files' tables
        served.setdefault(names, []).append(launch)
    found = []
    for names, launches in served.items():
        found += parts_of({name: import_module(f"{package}.kernels.{name}") for name in names}, tuple(launches))
    return found


def parts_of(files: Mapping[str, ModuleType], launches: tuple[str, ...] = ()) -> list[StateSubject]:
    """What is compared of a launch, whose kernel files have these names."""
    found = []
    for first, skeletons in PARTS.items():
        names = sorted((name for name in files if skeleton_of(name) in skeletons), key=lambda name: skeleton_of(name) != first)
        kernel = made_for(next(file for name, file in files.items() if skeleton_of(name) == STEP))  # the others' keys are wider
        found.append(StateSubject(names[0], tuple(names[1:]), tuple(files.values()), kernel, launches))
    return found


def library_subjects(folder: Path, subjects: Sequence[StateSubject]) -> list[StateSubject]:
    """The launches for which the folder's plan takes flash-linear-attention on a GPU, in the same parts as `subjects`."""
    built = json.loads((folder / "plan.json").read_text("utf-8"))
    nodes = {choice["node"] for choice in built["plans"]["cuda"]["choices"] if choice["provider"] == "fla"}
    taken = {launch for launch, node in built["launches"].items() if node in nodes}
    return [
        replace(one, file=one.file.replace("scan_", "fla_"), others=(), library=fla_scan)
        for one in subjects
        if not taken.isdisjoint(one.launches)
    ]


def made_for(module: ModuleType) -> Recurrence:
    """What a kernel file was emitted for, from its constants."""
    decay, update, erase, write, normalize = module.FORM
    return Recurrence(decay, update, erase, write, normalize, module.KEY_WIDTH, module.VALUE_WIDTH)


def classes(subject: StateSubject, chunk: int, dtype: torch.dtype, device: str) -> dict[str, tuple[Case, ...]]:
    """The inputs of each class: sequences of none, one and many tokens around the edges of chunks; shallow and deep gates."""
    small = device == "cpu"
    heads = 2 if small else 4
    base = Case(subject.kernel, (1,), heads, gates=(0.0, -0.01, -0.1, -1.0), dtype=dtype, device=device)
    shared = [(1, 1, 1), (heads, heads, 1), (1, 1, heads)]
    sizes = _sizes(subject.skeleton, chunk, small)
    found = {
        "random": tuple(
            replace(base, sizes=one, shares=shared[at % 3], before=at != 1, seed=at) for at, one in enumerate(sizes)
        ),
        "whole numbers": (replace(base, sizes=sizes[-1], gates=(0.0,), integers=True, seed=7),),
    }
    if subject.kernel.decay != "none":
        deep = (
            replace(base, sizes=sizes[-1], gates=DEEP, seed=3),
            replace(base, sizes=sizes[0], gates=BEHIND, before=False, seed=4),
        )
        found["deep gates"] = deep[:1] if small and subject.skeleton == BACKWARD else deep
    return {f"gradients, {name}" if subject.skeleton == BACKWARD else name: cases for name, cases in found.items()}


def _sizes(skeleton: str, chunk: int, small: bool) -> tuple[tuple[int, ...], ...]:
    """Tokens of the sequences of some calls."""
    if skeleton == STEP:
        return ((1, 5, 0, DECODE_TOKENS), (1, 1, 1), (3,))
    if small:  # the interpreter takes a second for some programs
        return ((chunk + 1, 0, 1, chunk - 2),) if skeleton == BACKWARD else ((chunk + 1, 0, 1, chunk - 2), (2, chunk + 2))
    if skeleton == BACKWARD:
        return ((2 * chunk + 2, 0, 1, chunk), (chunk - 1, chunk + 1))
    return ((2 * chunk + 2, 0, 1, chunk), (chunk - 1, chunk + 1, 5 * chunk), (2 * chunk, 17))


def state_rows(subject: StateSubject, dtype: str, device: str, begin: Callable[[tuple[str, str, str]], bool]) -> Iterator[Row]:
    """A row for each class of inputs; `begin` hears of its key, and says whether it is to run."""
    number_type = getattr(torch, dtype)
    if subject.library is not None and number_type == torch.float32:
        return  # it takes TF32 there, which nobody asked for in float32; a plan is made for 16 bits
    for name, several in classes(subject, chunk_of(subject, device, number_type), number_type, device).items():
        if begin((subject.file, dtype, name)):
            verdicts = [tried(subject, case, prepared(subject, case)) for case in several]
            worst = max(verdicts, key=Verdict.rank)
            yield row_of((subject.file, dtype, name), len(several), worst)


def row_of(key: tuple[str, str, str], cases: int, worst: Verdict) -> Row:
    """A row of the report; errors that are no numbers are none."""
    error, measure, allowed = (
        number if math.isfinite(number) else None for number in (worst.error, worst.measure, LIMIT * worst.measure)
    )
    kernel, dtype, name = key
    return Row(
        kernel=kernel,
        dtype=dtype,
        inputs=name,
        cases=cases,
        error=error,
        torch_error=measure,
        allowed=allowed,
        verdict="wrong" if worst.wrong else "right",
        reason=worst.wrong,
    )


def prepared(subject: StateSubject, case: Case) -> Expected:
    """What must come out of a case, for as many blocks as are tried."""
    chunk = 1 if subject.skeleton == STEP else chunk_of(subject, case.device, case.dtype)
    return expected(case, measure_of(chunk), subject.skeleton == BACKWARD)


def tried(subject: StateSubject, case: Case, wanted: Expected) -> Verdict:
    """The verdict on a case, by more draws where one is too far off; what is raised is a reason too."""
    try:
        drawn = [(wanted, _given(subject, case, wanted))]
        verdict = judge(case, drawn)
        if verdict.wrong and not case.integers:
            for one in other_draws(case):
                there = prepared(subject, one)
                drawn.append((there, _given(subject, one, there)))
            verdict = judge(case, drawn)
    except Exception as error:
        first = next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")
        return Verdict(float("nan"), float("nan"), f"{type(error).__name__}: {first[:200]}")
    return verdict


def _given(subject: StateSubject, case: Case, wanted: Expected) -> Results:
    """What the kernels make of a draw, but for quotients of whole numbers."""
    with poisoned():
        found = run(case, subject.scan, wanted.given, subject.skeleton == BACKWARD)
    whole = case.integers and case.kernel.normalize
    return {name: x for name, x in found.items() if not whole or name in ("after", "sum_after")}


def chunk_of(subject: StateSubject, device: str, dtype: torch.dtype) -> int:
    """Tokens of a chunk of the launch's kernels on this device."""
    forward = next(one for one in subject.modules if hasattr(one, "scan"))
    blocks: Sequence[int] = forward.BLOCKS[forward.architecture(torch.device(device)), dtype.itemsize]
    return blocks[0]


assert {name for files in PARTS.values() for name in files} == set(FAMILIES["recurrence"])
