"""Every kernel of a built folder against the reference on this machine."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import attnc
from attnc.codegen.verify.process import Ended, ask
from attnc.codegen.verify.report import LIMIT, Job, Kernel, Machine, Message, Row, VerifyReport
from attnc.compiler.data import from_json, to_json

WORKER = (sys.executable, "-m", "attnc.codegen.verify.worker")
ON_GPU = ("bfloat16", "float16", "float32")
IN_INTERPRETER = ("float32", "float16")
SECONDS = {"gpu": 180.0, "interpreter": 600.0}
"""That one class of inputs may take: the first call of a kernel compiles it."""

MOST_STARTS = 24
"""Processes, each but the first after one that died."""

INTERPRETED = "no GPU: the kernels run in Triton's interpreter, at small sizes and on the CPU; a GPU's compiler is not tried"


class CannotRunError(Exception):
    """No process came as far as a kernel, or too many died."""

    def __init__(self, ended: Ended) -> None:
        super().__init__(ended.reason)
        self.ended = ended


@dataclass
class _Found:
    """What the processes have said so far."""

    machine: Machine | None = None
    kernels: tuple[Kernel, ...] = ()
    rows: list[Row] = field(default_factory=list)
    begun: tuple[str, str, str] | None = None

    def take(self, message: Message, tell: Callable[[Message], None]) -> None:
        self.machine = message.machine or self.machine
        self.kernels = message.kernels or self.kernels
        if message.begun is not None:
            self.begun = message.begun
        if message.row is not None:
            self.rows.append(message.row)
            self.begun = None
        tell(message)


def verify(
    folder: Path,
    device: str,
    dtypes: Sequence[str],
    tell: Callable[[Message], None],
    *,
    only: Sequence[str] = (),
    command: Sequence[str] = WORKER,
    seconds: float | None = None,
) -> VerifyReport:
    """Runs all classes of inputs. `device`: as torch names it; `cpu` means Triton's interpreter. `tell` hears of every row.

    `only`: these kernels, if any is named. A kernel that raises, hangs for `seconds` or brings its process down is wrong.
    `command`: the process that runs them.
    """
    way = "interpreter" if device == "cpu" else "gpu"
    found = _Found()
    for _ in range(MOST_STARTS):
        before = len(found.rows)
        done = tuple(row.key for row in found.rows)
        job = Job(folder=str(folder.resolve()), device=device, dtypes=tuple(dtypes), only=tuple(only), done=done)
        ended = _run(job, found, command, seconds or SECONDS[way], tell)
        if not ended.reason:
            break
        if found.begun is not None:
            found.take(Message(row=_failed(found.begun, ended.reason)), tell)
        if len(found.rows) == before:
            raise CannotRunError(ended)
    else:
        raise CannotRunError(ended)
    return VerifyReport(
        attnc=attnc.__version__,
        folder=str(folder),
        machine=found.machine,
        limit=LIMIT,
        decisions=_decisions(way, found.kernels, () if only else unseen(folder, [one.kernel for one in found.kernels])),
        kernels=found.kernels,
        rows=tuple(found.rows),
        right=all(row.verdict == "right" for row in found.rows),
    )


def _failed(key: tuple[str, str, str], reason: str) -> Row:
    """The row of inputs that ended their process."""
    kernel, dtype, inputs = key
    return Row(kernel=kernel, dtype=dtype, inputs=inputs, cases=1, verdict="wrong", reason=reason)


def _run(job: Job, found: _Found, command: Sequence[str], seconds: float, tell: Callable[[Message], None]) -> Ended:
    for answer in ask(command, to_json(job), environment(job.device), seconds):
        if isinstance(answer, Ended):
            return answer
        found.take(from_json(Message, answer), tell)
    raise AssertionError("the last answer says how it ended")


def environment(device: str) -> Mapping[str, str]:
    """Of a process that runs kernels: on the CPU in Triton's interpreter, elsewhere surely not."""
    own = {**os.environ, "TRITON_INTERPRET": "1" if device == "cpu" else "0"}
    return own | ({"OMP_NUM_THREADS": "1"} if device == "cpu" else {})


def numpy_too_new() -> str | None:
    """The version of numpy that Triton's interpreter fails with (triton-lang/triton issue 9171), if that is installed."""
    try:
        found = version("numpy")
    except PackageNotFoundError:
        return None
    return found if tuple(int(part) for part in found.split(".")[:2]) >= (2, 4) else None


def unseen(folder: Path, seen: Collection[str]) -> tuple[str, ...]:
    """The kernel files of a folder that nothing was compared with."""
    return tuple(sorted(path.stem for path in (folder / "kernels").glob("*_*[0-9].py") if path.stem not in seen))


def _decisions(way: str, kernels: tuple[Kernel, ...], left: tuple[str, ...]) -> tuple[str, ...]:
    said = [INTERPRETED] if way == "interpreter" else []
    edited = [kernel.kernel for kernel in kernels if not kernel.as_built]
    if edited:
        said.append(f"not as they were built: {', '.join(edited)}")
    if left:
        said.append(f"not compared: {', '.join(left)}")
    return tuple(said)
