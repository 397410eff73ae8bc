"""`attnc bench` on a GPU: generated kernels and other libraries are found right, timed in turns, and told in one report."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from attnc import cli
from attnc.bench import calibrate, timing
from attnc.bench.report import BenchReport
from attnc.bench.tables_report import CalibrationReport
from attnc.compiler.data import from_json

SPECS = Path(__file__).parents[2] / "docs" / "bench"


def report(capsys: pytest.CaptureFixture[str], name: str, *words: str) -> BenchReport:
    code = cli.invoke(["bench", str(SPECS / f"{name}.attn"), "--length", "1024", "--seconds", "0.05", "--json", *words])
    out = capsys.readouterr().out
    assert code == 0, out
    return from_json(BenchReport, out)


@pytest.mark.parametrize(
    ("name", "others"),
    [("dense", {"sdpa", "cudnn", "flex"}), ("sink-window", {"sdpa", "flex"}), ("head-mix", {"flex", "split"})],
)
def test_kernels_and_libraries_are_timed_in_every_phase(
    name: str, others: set[str], capsys: pytest.CaptureFixture[str]
) -> None:
    found = report(capsys, name)
    assert found.machine.device == torch.cuda.get_device_name()
    assert [row.phase for row in found.rows] == ["forward", "backward", "decode"]
    for row in found.rows:
        status = {result.name: (result.status, result.reason) for result in row.results}
        for one in {"triton", *(others - ({"split"} if row.phase == "decode" else set()))}:
            assert status[one] == ("timed", None), (row.phase, one, status[one])
        assert next(result for result in row.results if result.ours).name == "triton"
        for result in row.results:
            if result.timed is not None:
                assert 0 < result.timed.least <= result.timed.median <= result.timed.most
                assert 0 < result.timed.share < 1.5


def test_what_does_not_fit_has_a_row_and_the_run_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    found = report(capsys, "dense", "--phases", "forward", "--against", "", "--batch", "64", "--length", "1048576,256")
    assert [(row.length, row.reason) for row in found.rows] == [(1048576, "out of memory"), (256, None)]


def test_a_time_is_the_devices_own_and_not_that_of_the_host() -> None:
    """Ten small kernels take the device far less than the host, which the clock lets run ahead."""
    x = torch.zeros(1024, device="cuda")

    def small() -> None:
        for _ in range(10):
            x.add_(1)

    times = timing.interleaved({"small": small}, timing.clock(torch.device("cuda")), 0.05)
    assert times["small"].median < 60e-6
    roof = timing.roof(torch.device("cuda"), torch.bfloat16, 0.2)
    assert 1e13 < roof.flops < 1e16
    assert 1e11 < roof.bandwidth < 2e13


def test_this_gpu_is_measured_and_plans_use_its_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ATTNC_CONFIG_DIR", str(tmp_path))
    monkeypatch.setitem(calibrate.LENGTHS, "cuda", {"forward": 4096, "backward": 4096, "decode": 16384})
    code = cli.invoke(["calibrate", "--seconds", "0.05", "--json"])
    found = from_json(CalibrationReport, capsys.readouterr().out)
    assert code == 0, found.failures
    assert found.new.title == torch.cuda.get_device_name()
    assert {(lack.provider, lack.reason) for lack in found.lacks} <= {
        ("fa4", "flash-attn-4 is not installed"),
        ("flex", "its lists of blocks would be made anew for every token"),
    }
    for name in ("matrix_flops", "vector_flops", "bandwidth", "exponentials", "launch"):
        old, new = getattr(found.old, name), getattr(found.new, name)
        assert 0.2 < new / old < 5, (name, old, new)
    assert all(0.01 < share < 1.2 for provider in ("triton", "torch") for share in found.new.efficiency[provider].values())
    assert cli.invoke(["show", str(SPECS / "dense.attn")]) == 0
    assert f"plan for {found.new.name}" in capsys.readouterr().out
