"""Tuning kernels of matrix states: chunks of one length for a launch, never of two."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from attnc.codegen.build import Options, build
from attnc.codegen.tune import scans
from attnc.codegen.tune import table as tables
from attnc.codegen.tune.messages import TuneJob, TuneMessage
from attnc.codegen.tune.table import Table, Try
from attnc.codegen.tune.tune import Target, in_process, kernel_texts, tune
from attnc.codegen.verify.process import Ended
from attnc.compiler import check_text

TEXT = """model states { vocab = 16, dim = 16, layers = 1, ffn = none, norm = rms(1e-6), heads = 1, head_dim = 16, rope = none }
layers { all: linear(update = delta, decay = scalar) { qk_norm = l2 } }
"""
HERE = Target("a GPU", "sm_90", "3.6.0")
GRADIENTS = "scan_gradients_0"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tune") / "states"
    build(check_text(TEXT, "states.attn"), path, Options())
    return path


def measurer(wrong: set[tuple[str, int]]):
    """Chunks of 32 take a second less than others; what is in `wrong`, files and lengths of chunks, is wrong."""

    def measure(job: TuneJob) -> Iterator[TuneMessage | Ended]:
        for one in job.tries:
            yield TuneMessage(begun=one.blocks)
            is_wrong = (job.file, one.blocks[0]) in wrong
            yield TuneMessage(verified=one.blocks, wrong="off" if is_wrong else "")
            for _ in range(0 if is_wrong else job.rounds):
                yield TuneMessage(measured=one.blocks, seconds=(2.0 if one.blocks[0] == 32 else 3.0) + one.blocks[1] / 1000)
        yield Ended(0, "")

    return measure


@pytest.mark.parametrize(
    ("wrong", "expected"), [(set(), 32), ({(GRADIENTS, 32)}, 64), ({(GRADIENTS, n) for n in (32, 64, 128)}, 64)]
)
def test_a_launch_takes_the_chunks_that_all_its_kernels_have_right(wrong, expected: int, folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    report = tune(folder, HERE, ["bfloat16"], path, lambda *_: None, measurer(wrong), rounds=2)
    rows = {one.file: one.row for one in report.kernels}
    assert set(rows) == {f"scan_{name}_0" for name in ("step", "chunks", "forward", "outputs", "backward", "gradients")}
    assert {row.blocks[0] for file, row in rows.items() if file != "scan_step_0"} == {expected}
    assert rows["scan_step_0"].blocks == rows["scan_step_0"].default  # nothing is clearly faster
    table = tables.read(path)
    assert table is not None
    again = tune(folder, HERE, ["bfloat16"], path, lambda *_: None, lambda _: iter(()), rounds=2)  # nothing is asked again
    assert [one.row.blocks for one in again.kernels] == [one.row.blocks for one in report.kernels]
    taken = tables.for_folder([table], kernel_texts(folder)).tables[0].kernels
    assert {row.kernel: row.blocks for row in taken} == {file: row.blocks for file, row in rows.items()}


def test_a_table_that_would_mix_chunks_is_not_taken(folder: Path, tmp_path: Path) -> None:
    """A run that is stopped may leave the rows of some kernels alone."""
    path = tmp_path / "table.json"
    tune(folder, HERE, ["bfloat16"], path, lambda *_: None, measurer(set()), rounds=1)
    table = tables.read(path)
    assert table is not None
    partly = [row for row in table.kernels if row.kernel != "scan_backward"]
    some = Table(device="a GPU", architecture="sm_90", triton="3.6.0", kernels=tuple(partly))
    assert [row.kernel for row in tables.for_folder([some], kernel_texts(folder)).tables[0].kernels] == ["scan_step_0"]


def test_candidates_are_few_and_their_own_blocks_come_first() -> None:
    default = (64, 64, 8, 2)
    found = scans.candidates("scan_forward", default, 2)
    assert found[0] == default
    assert {one[0] for one in found} == {32, 64, 128}
    assert {one[0] for one in scans.candidates("scan_forward", (16, 16, 4, 1), 4)} == {16}
    assert len(found) == len(set(found)) <= scans.MOST


@pytest.mark.triton
def test_the_process_finds_out_what_is_right(folder: Path) -> None:
    """In Triton's interpreter: verdicts alone, as nothing can be timed there."""
    well, odd = (1, 16, 4, 1), (1, 12, 4, 1)
    job = TuneJob(
        folder=str(folder), file="scan_step_0", device="cpu", dtype="float32", verified_in=("float32",), rounds=0,
        tries=(Try(blocks=well), Try(blocks=odd)),
    )  # fmt: skip
    *answers, ended = in_process(job)
    assert isinstance(ended, Ended)
    assert ended.reason == "", ended
    said = [answer for answer in answers if isinstance(answer, TuneMessage)]
    assert [(answer.verified, bool(answer.wrong)) for answer in said if answer.verified] == [(well, False), (odd, True)]
    assert "power of 2" in next(answer.wrong for answer in said if answer.wrong)
