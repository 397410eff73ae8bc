"""The process that runs a folder's kernels: a Job on its standard input, a Message a line on its standard output.

It is a process of its own, so that a kernel that hangs or brings the process down is one wrong row, and so that Triton's
interpreter, which is chosen when triton is imported, can be chosen.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import TextIO

import torch
import triton

from attnc.codegen import kernels
from attnc.codegen.triton.interpreting import quicken
from attnc.codegen.triton.versions import INTERPRETS
from attnc.codegen.verify import trial
from attnc.codegen.verify.cases import Case
from attnc.codegen.verify.channels import ChannelSubject, channel_rows, channel_subjects
from attnc.codegen.verify.classes import DECODE, IN_INTERPRETER, ON_GPU, cases
from attnc.codegen.verify.judge import Verdict
from attnc.codegen.verify.list_rows import ListSubject, list_rows, list_subjects
from attnc.codegen.verify.nets import NetSubject, net_rows, net_subjects
from attnc.codegen.verify.report import Job, Kernel, Machine, Message, Row
from attnc.codegen.verify.states import StateSubject, library_subjects, skeleton_of, state_rows, state_subjects
from attnc.codegen.verify.subjects import Subject, subjects
from attnc.compiler.data import from_json, to_json

IN_INTERPRETED, CHANNELS_ON_GPU = 20, 700
"""Tokens of the longest sequence whose channel states are compared: the interpreter scans number by number."""

AnySubject = Subject | ChannelSubject | ListSubject | NetSubject | StateSubject

BROKEN = 3
"""Exit code after an error that leaves a GPU's context unusable: whoever asked starts a new process for the rest."""


def main() -> None:
    """Answers one job."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)  # whatever compilers print goes elsewhere
    if INTERPRETS:
        quicken()
    job = from_json(Job, sys.stdin.read())
    torch.set_num_threads(1)
    sizes = IN_INTERPRETER if INTERPRETS else ON_GPU
    found = [one for one in subjects(Path(job.folder), sizes.longest // 2) if wanted(one, job)]
    found = [one for one in found if runs_on(one, torch.device(job.device))]
    of_channels = [one for one in channel_subjects(Path(job.folder)) if not job.only or one.file in job.only]
    of_states = [one for one in state_subjects(Path(job.folder)) if not job.only or not set(job.only).isdisjoint(one.files)]
    of_library = [] if INTERPRETS or job.only else library_subjects(Path(job.folder), of_states)
    of_nets = [one for one in net_subjects(Path(job.folder)) if not job.only or one.file in job.only]
    of_lists = [one for one in list_subjects(Path(job.folder)) if not job.only or one.file in job.only]
    of_lists = [one for one in of_lists if runs_on(one, torch.device(job.device))]
    files: list[tuple[str, AnySubject]] = [(file, one) for one in found for file in (one.file, one.masses) if file is not None]
    files += [(one.file, one) for one in of_channels]
    files += [(one.file, one) for one in of_nets]
    files += [(one.file, one) for one in of_lists]
    files += [(file, one) for one in of_states for file in one.files]
    say(answers, Message(machine=machine(job.device), kernels=tuple(described(Path(job.folder), *pair) for pair in files)))
    for subject in found:
        for dtype in job.dtypes:
            for row in tried(subject, dtype, job, answers):
                say(answers, Message(row=row))
                if row.verdict == "wrong" and lost(job.device):
                    sys.exit(BROKEN)

    def begin(key: tuple[str, str, str]) -> bool:
        if key not in job.done:
            say(answers, Message(begun=key))
        return key not in job.done

    for dtype in job.dtypes:
        longest = IN_INTERPRETED if INTERPRETS else CHANNELS_ON_GPU
        rows = [channel_rows(one, dtype, job.device, longest, begin) for one in of_channels]
        rows += [state_rows(one, dtype, job.device, begin) for one in (*of_states, *of_library)]
        rows += [net_rows(one, dtype, job.device, begin) for one in of_nets]
        rows += [list_rows(one, dtype, job.device, begin) for one in of_lists]
        for row in chain.from_iterable(rows):
            say(answers, Message(row=row))
            if row.verdict == "wrong" and lost(job.device):
                sys.exit(BROKEN)


def say(answers: TextIO, message: Message) -> None:
    """One line."""
    answers.write(to_json(message) + "\n")


def machine(device: str) -> Machine:
    """Where this process runs kernels."""
    where = torch.device(device)
    name = torch.cuda.get_device_name(where) if where.type == "cuda" else "cpu"
    return Machine(device=name, way="interpreter" if INTERPRETS else "gpu", torch=torch.__version__, triton=triton.__version__)


def wanted(subject: Subject, job: Job) -> bool:
    """Whether the job asks for a kernel, or for its other half."""
    return not job.only or not {subject.file, subject.masses}.isdisjoint(job.only)


def described(folder: Path, file: str, subject: AnySubject) -> Kernel:
    """A kernel file, beside what plan.json says of it."""
    name = f"kernels/{file}.py"
    digest = kernels.digest((folder / name).read_text("utf-8"))
    known = json.loads((folder / "plan.json").read_text("utf-8"))["kernels"]
    return Kernel(
        kernel=file,
        skeleton=skeleton_of(file),
        launches=subject.launches,
        sha256=digest,
        as_built=known.get(name) == digest,
    )


def tried(subject: Subject, dtype: str, job: Job, answers: TextIO) -> Iterator[Row]:
    """The rows of one kernel in one dtype."""
    number_type = getattr(torch, dtype)
    if (subject.module.architecture(torch.device(job.device)), number_type.itemsize) not in subject.module.BLOCKS:
        return  # a kernel of 16 bits
    blocks = trial.blocks(subject.module, torch.device(job.device), number_type)
    lengths = sorted(set(blocks[: 1 if subject.skeleton == DECODE else 2]))
    sizes = IN_INTERPRETER if INTERPRETS else ON_GPU
    classes = cases(subject.skeleton, subject.kernel, subject.heads, lengths, number_type, job.device, sizes)
    for name, several in classes.items():
        key = (subject.file, dtype, name)
        if key not in job.done:
            say(answers, Message(begun=key))
            yield judged(subject, key, several)


def runs_on(subject: Subject | ListSubject, device: torch.device) -> bool:
    """Whether a kernel is for this sort of device; one in Gluon is for one sort alone."""
    architectures = {architecture for architecture, _ in subject.module.BLOCKS}
    here = "sm_{}{}".format(*torch.cuda.get_device_capability(device)) if device.type == "cuda" else "any"
    return "any" in architectures or here in architectures


def judged(subject: Subject, key: tuple[str, str, str], several: tuple[Case, ...]) -> Row:
    """One class of inputs; the first case that fails ends it."""
    worst, reason = Verdict(0.0, 0.0, 0.0), ""
    for case in several:
        prepared = trial.prepare(subject.skeleton, case)
        if subject.softplus is None:
            verdict = trial.run(subject.module, subject.skeleton, prepared)
        else:
            verdict = trial.run_softplus(subject.softplus, subject.skeleton, prepared)
        worst = max(worst, verdict, key=Verdict.rank)
        if verdict.wrong:
            reason = f"{trial.words(case)}: {verdict.wrong}"
            break
    kernel, dtype, name = key
    error, torch_error, allowed = (
        number if math.isfinite(number) else None for number in (worst.error, worst.torch_error, worst.allowed)
    )
    return Row(
        kernel=kernel,
        dtype=dtype,
        inputs=name,
        cases=len(several),
        error=error,
        torch_error=torch_error,
        allowed=allowed,
        verdict="wrong" if reason else "right",
        reason=reason,
    )


def lost(device: str) -> bool:
    """Whether an error left the GPU's context unusable."""
    if torch.device(device).type != "cuda":
        return False
    try:
        torch.cuda.synchronize(device)
        torch.zeros(1, device=device).item()
    except RuntimeError:
        return True
    return False


if __name__ == "__main__":
    main()
