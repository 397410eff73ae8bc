"""Tuning a folder's kernels: candidates, their verdicts and times, and the table that keeps them after every answer."""

from __future__ import annotations

import ast
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from attnc.codegen.tune import scans
from attnc.codegen.tune import table as tables
from attnc.codegen.tune.candidates import MOST, candidates
from attnc.codegen.tune.fast import fast_candidates, is_fast
from attnc.codegen.tune.lists import is_list, list_candidates
from attnc.codegen.tune.messages import TunedKernel, TuneJob, TuneMessage, TuneReport
from attnc.codegen.tune.table import BYTES, Blocks, Table, Try, Tuned
from attnc.codegen.verify.process import Ended, ask
from attnc.codegen.verify.verify import environment
from attnc.compiler.data import from_json, to_json
from attnc.compiler.families import FAMILIES, Softmax

WORKER = (sys.executable, "-m", "attnc.codegen.tune.worker")
TUNABLE = ("softmax", "scan", "lists", "fast")
ROUNDS = 5
"""Measurements of every candidate, one after the other in turns, so that a clock that sinks slows all alike."""

SECONDS = 120.0
"""Without an answer, after which a candidate is out: its compilation, its cases or one measurement."""

BETTER = 0.99
"""Of the default's time that others must stay below."""

Measurer = Callable[[TuneJob], Iterator[TuneMessage | Ended]]
"""Answers a job; the last answer says how it ended."""


@dataclass(frozen=True)
class Target:
    """The GPU that is tuned for, as torch calls it; its architecture, its Triton version, and torch's word for the device."""

    device: str
    architecture: str
    triton: str
    torch_device: str = "cuda"


def in_process(job: TuneJob, command: Sequence[str] = WORKER, seconds: float = SECONDS) -> Iterator[TuneMessage | Ended]:
    """The measurer that runs kernels: a process that is killed when it does not answer."""
    for answer in ask(command, to_json(job), environment(job.device), seconds):
        yield answer if isinstance(answer, Ended) else from_json(TuneMessage, answer)


def tune(
    folder: Path,
    target: Target,
    dtypes: Sequence[str],
    path: Path,
    tell: Callable[[str, TuneMessage | Ended], None],
    measurer: Measurer = in_process,
    *,
    rounds: int = ROUNDS,
    most: int = MOST,
    again: bool = False,
) -> TuneReport:
    """Tunes every kernel file of a built folder and keeps what it learns in `path`, answer by answer.

    What an earlier run learnt of the same text on the same GPU and Triton stays and is not measured anew, unless `again`.
    `most`: candidates of a kernel. Raises SpecError A513 where `path` is no table.
    """
    empty = Table(device=target.device, architecture=target.architecture, triton=target.triton)
    found, texts = [], kernel_texts(folder)
    keep = partial(_keep, path, empty)
    for file, text in sorted(texts.items()):
        for dtype in dtypes:
            row = None if again else (tables.read(path) or empty).row(tables.identity(text), dtype)
            row = row or fresh(file, text, dtype, target, most)
            keep(row)
            if row.blocks is None:
                row = _measured(folder, file, row, target, rounds, measurer, keep, partial(tell, f"{file} {dtype}"))
                alone = row.kernel not in scans.CHUNKED
                row = replace(row, blocks=winner(row)) if alone else row
                keep(row)
            found.append(TunedKernel(file=file, row=row))
    found = _joined(found, keep)
    return TuneReport(
        folder=str(folder),
        device=target.device,
        triton=target.triton,
        table=str(path),
        kernels=tuple(found),
        left=left_out(folder),
    )


def kernel_texts(folder: Path) -> dict[str, str]:
    """File name without its ending -> text, of the kernels of a built folder that can be tuned."""
    return {path.stem: text for path, text in _files(folder) if _tuned(path, text)}


def left_out(folder: Path) -> tuple[str, ...]:
    """The kernel files for which there are no candidates."""
    return tuple(sorted(path.stem for path, text in _files(folder) if not _tuned(path, text)))


def _files(folder: Path) -> Iterator[tuple[Path, str]]:
    return ((path, path.read_text("utf-8")) for path in (folder / "kernels").glob("*_*[0-9].py"))


def _tuned(path: Path, text: str) -> bool:
    """Whether there are candidates; keys that stand for chunks are few, so their kernels have none."""
    return path.stem.startswith(TUNABLE) and "\nCHUNKS = " not in text


def _joined(found: list[TunedKernel], keep: Callable[[Tuned], None]) -> list[TunedKernel]:
    """The same with blocks for the kernels of matrix states whose chunks have one length for a launch."""
    launches: dict[tuple[str, str], list[TunedKernel]] = {}
    for one in found:
        if one.row.kernel in scans.CHUNKED:
            launches.setdefault((one.file.rpartition("_")[2], one.row.dtype), []).append(one)
    decided: dict[tuple[str, str], Tuned] = {}
    for several in launches.values():
        if any(one.row.blocks is None for one in several):
            blocks = scans.together([one.row for one in several], BETTER)
            for one in several:
                decided[one.row.key] = replace(one.row, blocks=blocks[one.row.sha256])
                keep(decided[one.row.key])
    return [replace(one, row=decided.get(one.row.key, one.row)) for one in found]


def fresh(file: str, text: str, dtype: str, target: Target, most: int = MOST) -> Tuned:
    """A row of which nothing is known yet; candidates come from the text's own table."""
    constants = constants_of(text)
    skeleton = file.rpartition("_")[0]
    default: Blocks = constants["BLOCKS"][target.architecture, BYTES[dtype]]
    if scans.is_scan(file):
        tries = scans.candidates(skeleton, default, BYTES[dtype])
    elif is_list(file):
        tries = list_candidates(default)
    elif is_fast(file):
        tries = fast_candidates(default)
    else:
        assert skeleton in FAMILIES["softmax"], file
        nears, strides, powers, causal = constants["FORM"]
        kernel = Softmax(nears, strides, powers, causal, constants["HEAD_WIDTH"], constants["VALUE_WIDTH"], constants["GROUP"])
        tries = candidates(skeleton, kernel, default, target.architecture, BYTES[dtype])
    return Tuned(
        kernel=skeleton,
        sha256=tables.identity(text),
        dtype=dtype,
        default=default,
        tries=tuple(Try(blocks=blocks) for blocks in tries[:most]),
    )


def constants_of(text: str) -> dict[str, Any]:
    """The constants at the top of a kernel file that are plain values."""
    found = {}
    for node in ast.parse(text).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            try:
                found[node.targets[0].id] = ast.literal_eval(node.value)
            except ValueError:
                continue  # an expression, such as tl.constexpr(...)
    return found


def _keep(path: Path, empty: Table, row: Tuned) -> None:
    tables.update(path, empty, lambda table: table.with_row(row))


def _measured(
    folder: Path,
    file: str,
    row: Tuned,
    target: Target,
    rounds: int,
    measurer: Measurer,
    keep: Callable[[Tuned], None],
    tell: Callable[[TuneMessage | Ended], None],
) -> Tuned:
    """The row with all candidates measured. One whose process dies or hangs is out, and the others go on in a new one."""
    same_size = tuple(name for name, size in BYTES.items() if size == BYTES[row.dtype])
    while True:
        left = [one for one in row.tries if not one.refused and len(one.seconds) < rounds]
        if not left:
            break
        job = TuneJob(
            folder=str(folder.resolve()), file=file, device=target.torch_device, dtype=row.dtype, verified_in=same_size,
            rounds=rounds, tries=row.tries,
        )  # fmt: skip
        before, begun = row, None
        for answer in measurer(job):
            tell(answer)
            if isinstance(answer, Ended):
                if answer.reason and begun is not None:
                    row = changed(row, begun, refused=answer.reason)
                elif row == before:
                    raise CannotMeasureError(answer.reason or "the process answered nothing")
            else:
                row, begun = heard(row, answer), answer.begun
            keep(row)
    return row


class CannotMeasureError(Exception):
    """No process came as far as a candidate."""


def heard(row: Tuned, message: TuneMessage) -> Tuned:
    """The row after one answer. Whoever is measured before it was found right is out."""
    if message.verified is not None:
        return changed(row, message.verified, verified=not message.wrong, refused=message.wrong)
    if message.measured is not None:
        one = next(one for one in row.tries if one.blocks == message.measured)
        if not one.verified:
            return changed(row, one.blocks, refused="measured before it was found right")
        return changed(row, one.blocks, seconds=(*one.seconds, message.seconds))
    return row


def changed(row: Tuned, blocks: Blocks, **changes: Any) -> Tuned:
    """The row with one candidate changed."""
    return replace(row, tries=tuple(replace(one, **changes) if one.blocks == blocks else one for one in row.tries))


def winner(row: Tuned) -> Blocks:
    """The fastest of those found right, by the median of its rounds; the default unless another is clearly faster.

    Where the default itself is out and nothing else is left, it stays: `attnc verify` says that the kernel is wrong.
    """
    right = [one for one in row.tries if one.verified and not one.refused and one.seconds]
    medians = {one.blocks: statistics.median(one.seconds) for one in right}
    if not medians:
        return row.default
    best = min(medians, key=lambda blocks: medians[blocks])
    default = medians.get(row.default)
    return row.default if default is not None and medians[best] > BETTER * default else best
