"""Losses and times of candidates on a GPU: generated kernels beside what the CPU says, and times that are there."""

from __future__ import annotations

import pytest

import attnc
from attnc.cli import invoke
from attnc.compiler.policies import read_policy
from attnc.tune.journal import Journal

pytestmark = pytest.mark.gpu

SPEC = """model m { vocab = 256, dim = 256, layers = 2, ffn = swiglu(256), norm = rms(1e-5), heads = 4, kv_heads = 2 }
layers { all: choose(per = head) { all: full, near: sink(4) | window(budget(32..128, default = 64, per = head)) } }"""


def test_losses_on_a_gpu_are_those_of_a_cpu_and_times_are_measured(tmp_path):
    (tmp_path / "m.attn").write_text(SPEC)
    attnc.build(attnc.check(tmp_path / "m.attn"), tmp_path / "built", init=0)
    found = {}
    for device in ("cpu", "cuda"):
        given = [
            "--weights",
            str(tmp_path / "built"),
            "--length",
            "512",
            "--samples",
            "1",
            "--points",
            "2",
            "--dtype",
            "float32",
        ]
        assert (
            invoke(["tune", "score", str(tmp_path / "m.attn"), "-o", str(tmp_path / device), *given, "--device", device]) == 0
        )
        found[device] = Journal(tmp_path / device / "journal.jsonl").rows()
    for key, row in found["cpu"].items():
        other = found["cuda"][key].values
        assert other["output"] == pytest.approx(row.values["output"], rel=0.02, abs=1e-5), key
        assert other["kl"] == pytest.approx(row.values["kl"], rel=0.1, abs=1e-6), key
    timed = [row.values for row in found["cuda"].values() if row.what == "cost"]
    assert len(timed) == 4
    assert all(values["decode_ms"] > 0 < values["prefill_ms"] for values in timed)
    solving = ["tune", "solve", str(tmp_path / "cuda"), "--objective", "loss", "--limit", "kv_bytes=60%", "--solver", "hull"]
    assert invoke([*solving, "-o", str(tmp_path / "p.json")]) == 0
    proving = ["tune", "prove", str(tmp_path / "cuda"), "--policy", str(tmp_path / "p.json"), "--trials", "4"]
    assert invoke([*proving, "--max-rise", "1000", "--max-drop", "100"]) == 0
    made = read_policy(tmp_path / "p.json")
    assert made.proved
    assert all(figure.measured for figure in made.figures if figure.what != "kv_bytes")
