"""Tuning without a GPU: what is tried, what is believed, what is kept, and how a folder takes it."""

from __future__ import annotations

import itertools
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kernel_cases import KERNELS
from tune_folder import H200, TEXT, small

from attnc.codegen.build import Options, build
from attnc.codegen.triton.blocks import ARCHITECTURES, blocks
from attnc.codegen.triton.compile import SHARED_LIMIT
from attnc.codegen.triton.emit import emit
from attnc.codegen.tune import candidates as prior
from attnc.codegen.tune import table as tables
from attnc.codegen.tune.messages import TuneJob, TuneMessage
from attnc.codegen.tune.table import Table, Try, Tuned
from attnc.codegen.tune.tune import CannotMeasureError, in_process, kernel_texts, tune, winner
from attnc.codegen.verify.process import Ended
from attnc.compiler import check_text
from attnc.compiler.data import from_json
from attnc.compiler.families import FAMILIES, Softmax
from attnc.dsl import SpecError

FILES = [f"{skeleton}_0" for skeleton in FAMILIES["softmax"]]
Answer = TuneMessage | Ended
WELL = Ended(0, "")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small(tmp_path_factory.mktemp("tune"))


def seconds_of(one: tuple[int, ...]) -> float:
    """A machine on which large blocks are fast."""
    return 1.0 / (one[0] * one[1])


def right_and_timed(job: TuneJob) -> Iterator[Answer]:
    """A measurer that finds everything right."""
    for one in job.tries:
        if not one.verified and not one.refused:
            yield TuneMessage(begun=one.blocks)
            yield TuneMessage(verified=one.blocks)
    for number in range(job.rounds):
        for one in job.tries:
            if not one.refused and len(one.seconds) <= number:
                yield TuneMessage(begun=one.blocks)
                yield TuneMessage(measured=one.blocks, seconds=seconds_of(one.blocks) * (1 + number / 100))
    yield WELL


def quiet(_kernel: str, _answer: Answer) -> None:
    pass


def run(folder: Path, path: Path, measurer=right_and_timed, **options):
    return tune(folder, H200, ["bfloat16"], path, quiet, measurer, rounds=3, **options)


# --- candidates


@pytest.mark.parametrize("name", KERNELS)
def test_few_candidates_near_the_default_that_fit(name: str) -> None:
    kernel = KERNELS[name]
    for skeleton, architecture, size in itertools.product(FAMILIES["softmax"], ARCHITECTURES, (2, 4)):
        default = blocks(skeleton, max(kernel.head_width, kernel.value_width))[architecture, size]
        found = prior.candidates(skeleton, kernel, default, architecture, size)
        assert found[0] == default
        assert 1 <= len(found) <= prior.MOST
        assert len(set(found)) == len(found)
        for one in found:
            assert len(one) == 4
            assert all(number > 0 for number in one)
            assert all(number & (number - 1) == 0 for number in one[:3]), one
            changed = [max(a, b) / min(a, b) for a, b in zip(one, default, strict=True)]
            assert max(changed[:3]) <= 2, (one, default)
            assert one == default or prior.fits(skeleton, kernel, one, architecture, size)


def test_there_is_something_to_choose_from() -> None:
    counts = {
        skeleton: len(prior.candidates(skeleton, kernel, blocks(skeleton, 128)["sm_90", 2], "sm_90", 2))
        for skeleton in FAMILIES["softmax"]
        for kernel in [Softmax(1, head_width=128, value_width=128)]
    }
    assert min(counts.values()) >= 3, counts


def test_the_prior_knows_the_limits_that_the_compiler_tests_know() -> None:
    assert prior.SHARED == SHARED_LIMIT
    wide = Softmax(1, head_width=256, value_width=256)
    assert not prior.fits("softmax_prefill", wide, (256, 256, 4, 2), "sm_90", 2), "registers"
    assert not prior.fits("softmax_prefill", wide, (64, 128, 8, 5), "sm_90", 4), "shared memory"


# --- verdicts and times


def test_the_fastest_that_is_right_wins_and_stays(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    report = run(folder, path)
    assert [one.file for one in report.kernels] == sorted(FILES)
    for one in report.kernels:
        tried = [candidate.blocks for candidate in one.row.tries]
        assert one.row.blocks == min(tried, key=seconds_of)
        assert all(candidate.verified and len(candidate.seconds) == 3 for candidate in one.row.tries)
    table = from_json(Table, path.read_text("utf-8"))
    assert (table.device, table.architecture, table.triton) == ("NVIDIA H200", "sm_90", "3.6.0")
    assert {row.blocks for row in table.kernels} == {one.row.blocks for one in report.kernels}

    def never(_job: TuneJob) -> Iterator[Answer]:
        raise AssertionError("all is known")

    assert run(folder, path, never).kernels == report.kernels
    with pytest.raises(AssertionError, match="all is known"):
        run(folder, path, never, again=True)


def test_candidates_take_turns(folder: Path, tmp_path: Path) -> None:
    order: list[tuple[int, ...]] = []

    def listening(_kernel: str, answer: Answer) -> None:
        if isinstance(answer, TuneMessage) and answer.measured is not None:
            order.append(answer.measured)

    report = tune(folder, H200, ["bfloat16"], tmp_path / "t.json", listening, right_and_timed, rounds=3)
    count = len(report.kernels[0].row.tries)
    assert count > 1
    assert order[:count] == order[count : 2 * count] == order[2 * count : 3 * count]
    assert len(set(order[:count])) == count


FAKE = """
import json, os, sys, time
job = json.load(sys.stdin)
say = lambda **message: print(json.dumps(message), flush=True)
alive = {}
for number, one in enumerate(job["tries"]):
    blocks = one["blocks"]
    if not one["verified"] and not one["refused"]:
        say(begun=blocks)
        if number == 1:
            os.kill(os.getpid(), 11)
        if number == 2:
            time.sleep(60)
        if number == 3:
            say(verified=blocks, wrong="300 tokens: error 0.1, PyTorch's 1e-3")
            continue
        say(verified=blocks)
    if not one["refused"]:
        alive[number] = len(one["seconds"])
for turn in range(job["rounds"]):
    for number, known in alive.items():
        if known <= turn:
            say(begun=job["tries"][number]["blocks"])
            if number == 4 and turn == 1:
                sys.exit("CUDA error: an illegal memory access was encountered")
            say(measured=job["tries"][number]["blocks"], seconds=[5.0, 0, 0, 0, 0, 3.0, 4.0, 4.0, 4.0][number] * 1e-6)
"""


def test_what_crashes_hangs_or_is_wrong_is_out_with_its_reason(folder: Path, tmp_path: Path) -> None:
    measurer = partial(in_process, command=[sys.executable, "-c", FAKE], seconds=1.5)
    small = tmp_path / "one"
    (small / "kernels").mkdir(parents=True)
    (small / "kernels" / "softmax_prefill_0.py").write_text(kernel_texts(folder)["softmax_prefill_0"], "utf-8")
    (row,) = [one.row for one in run(small, tmp_path / "table.json", measurer).kernels]
    assert len(row.tries) > 5
    reasons = [one.refused for one in row.tries]
    assert reasons[0] == ""
    assert "signal SIGSEGV" in reasons[1]
    assert "no answer within the time limit" in reasons[2]
    assert reasons[3] == "300 tokens: error 0.1, PyTorch's 1e-3"
    assert "illegal memory access" in reasons[4]
    assert row.blocks == row.tries[5].blocks
    assert [len(one.seconds) for one in row.tries[:6]] == [3, 0, 0, 0, 1, 3]


def test_nobody_is_believed_that_was_not_found_right(folder: Path, tmp_path: Path) -> None:
    def hasty(job: TuneJob) -> Iterator[Answer]:
        first, second, *_ = job.tries
        if not first.seconds:
            yield TuneMessage(measured=second.blocks, seconds=1e-9)
        yield from right_and_timed(replace(job, tries=tuple(one for one in job.tries if one.blocks != second.blocks)))

    for one in run(folder, tmp_path / "table.json", hasty).kernels:
        assert one.row.tries[1].refused == "measured before it was found right"
        assert one.row.blocks != one.row.tries[1].blocks


def test_a_default_that_nothing_beats_clearly_stays() -> None:
    def row(*seconds: float) -> Tuned:
        tries = tuple(Try(blocks=(16 << at, 16, 4, 1), verified=True, seconds=(one,) * 3) for at, one in enumerate(seconds))
        return Tuned(kernel="softmax_prefill", sha256="0", dtype="float32", default=(16, 16, 4, 1), tries=tries)

    assert winner(row(1.0, 0.995)) == (16, 16, 4, 1)
    assert winner(row(1.0, 0.5)) == (32, 16, 4, 1)
    assert winner(row()) == (16, 16, 4, 1)
    out = row(1.0, 2.0)
    assert winner(replace(out, tries=(replace(out.tries[0], refused="wrong"), out.tries[1]))) == (32, 16, 4, 1)


def test_a_process_that_never_comes_to_a_candidate_is_an_error(folder: Path, tmp_path: Path) -> None:
    for ended in (Ended(1, "no driver"), WELL):
        with pytest.raises(CannotMeasureError, match="no driver" if ended.code else "answered nothing"):
            run(folder, tmp_path / "table.json", lambda _, ended=ended: iter([ended]))


@pytest.mark.triton
def test_the_process_finds_out_what_is_right(tmp_path: Path) -> None:
    """The real one in Triton's interpreter: verdicts alone, as nothing can be timed there."""
    build(check_text(TEXT.replace("heads = 2, head_dim = 64", "heads = 1, head_dim = 16"), "x.attn"), tmp_path / "x", Options())
    well, odd, out = ((32, 4, 4, 1), (24, 4, 4, 1), (8, 4, 4, 1))
    job = TuneJob(
        folder=str(tmp_path / "x"),
        file="softmax_decode_0",
        device="cpu",
        dtype="float32",
        verified_in=("float32",),
        rounds=0,
        tries=(Try(blocks=well), Try(blocks=odd), Try(blocks=out, refused="x")),
    )
    *answers, ended = in_process(job)
    assert isinstance(ended, Ended)
    assert ended.reason == "", ended
    said = [answer for answer in answers if isinstance(answer, TuneMessage)]
    assert [(answer.verified, bool(answer.wrong)) for answer in said if answer.verified] == [(well, False), (odd, True)]
    assert "power of 2" in next(answer.wrong for answer in said if answer.wrong)
    assert [answer.begun for answer in said if answer.begun] == [well, well, odd]


# --- what is kept


@pytest.mark.parametrize("stop", [0, 1, 5, 20, 33])
def test_whoever_is_killed_loses_one_measurement(folder: Path, tmp_path: Path, stop: int) -> None:
    """The process ends in the middle of any answer; the next run asks only for what is not in the file."""
    path, given = tmp_path / "table.json", 0

    def killed(job: TuneJob) -> Iterator[Answer]:
        nonlocal given
        for answer in right_and_timed(job):
            if given == stop:
                raise KeyboardInterrupt
            given += 1
            yield answer

    with pytest.raises(KeyboardInterrupt):
        run(folder, path, killed)
    before = from_json(Table, path.read_text("utf-8"))
    asked: list[TuneJob] = []

    def counting(job: TuneJob) -> Iterator[Answer]:
        asked.append(job)
        yield from right_and_timed(job)

    resumed = run(folder, path, counting)
    assert asked[0].tries == next(row for row in before.kernels if row.blocks is None).tries
    whole = run(folder, tmp_path / "other.json")
    assert resumed.kernels == whole.kernels


@pytest.mark.parametrize(
    "damaged", ["", "{", '{"schema_version": 2, "device": "x", "architecture": "sm_90", "triton": "3.6.0"}', "[]", "\x00"]
)
def test_a_damaged_table_is_an_error_and_stays_as_it_is(damaged: str, folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "tuned" / "table.json"
    path.parent.mkdir()
    path.write_text(damaged)
    for action in (lambda: run(folder, path), lambda: tables.read_all(path.parent), lambda: tables.read_given(path)):
        with pytest.raises(SpecError) as caught:
            action()
        (diagnostic,) = caught.value.diagnostics
        assert diagnostic.code == "A513"
        assert "table.json" in diagnostic.message
        assert diagnostic.help
    assert path.read_text() == damaged


def test_two_that_write_at_once_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    empty = Table(device="x", architecture="sm_90", triton="3.6.0")

    def add(number: int) -> None:
        new = Tuned(kernel="softmax_decode", sha256=str(number), dtype="float32", default=(16, 4, 4, 1), tries=())
        tables.update(path, empty, lambda table: table.with_row(new))

    threads = [threading.Thread(target=add, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {row.sha256 for row in from_json(Table, path.read_text("utf-8")).kernels} == {str(number) for number in range(8)}
    assert sorted(one.name for one in tmp_path.iterdir()) == ["table.json", "table.json.lock"]


def test_a_table_has_a_file_of_its_own_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ATTNC_DATA_DIR", str(tmp_path))
    path = tables.table_path(tables.user_folder(), "NVIDIA H200", "3.6.0")
    assert path == tmp_path / "tuned" / "nvidia-h200-triton-3.6.0.json"


@given(st.sampled_from(sorted(KERNELS)), st.sampled_from(FAMILIES["softmax"]))
def test_a_kernel_is_known_by_its_text_whatever_its_blocks(name: str, skeleton: str) -> None:
    text = emit(skeleton, KERNELS[name])
    assert tables.identity(text) == tables.identity(text.replace('("sm_90", 2): (', '("sm_90", 2): (1'))
    assert tables.identity(text) != tables.identity(text.replace("tl.float32", "tl.float16", 1))
