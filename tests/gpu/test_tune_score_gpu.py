"""Losses and times of candidates on a GPU: generated kernels beside what the CPU says, and times that are there."""

from __future__ import annotations

import math
from statistics import fmean

import pytest

import attnc
from attnc.cli import invoke
from attnc.compiler.policies import read_policy
from attnc.tune.journal import Journal
from attnc.tune.models import Models

pytestmark = pytest.mark.gpu

SPEC = """model m { vocab = 256, dim = 256, layers = 2, ffn = swiglu(256), norm = rms(1e-5), heads = 4, kv_heads = 2 }
layers { all: choose(per = head) { all: full, near: sink(4) | window(budget(32..128, default = 64, per = head)) } }"""


def scored(place, name, device, dtype, probes="output,hidden"):
    """The measurements of a run of its own."""
    given = ["--weights", str(place / "built"), "--length", "512", "--samples", "2", "--points", "2", "--device", device]
    given += ["--dtype", dtype, "--probe", probes]
    assert invoke(["tune", "score", str(place / "m.attn"), "-o", str(place / name), *given]) == 0
    return Journal(place / name / "journal.jsonl").rows()


def distance(found, exact, probe):
    """Root mean square over all measurements."""
    losses = [(row.values[probe], exact[key].values[probe]) for key, row in found.items() if row.what == "loss"]
    assert losses
    return math.sqrt(fmean((one - other) ** 2 for one, other in losses))


def test_losses_on_a_gpu_are_as_near_to_float64_as_with_pytorchs_attention(tmp_path, monkeypatch):
    """Both in fp32 on the GPU, the one with kernels as planned, the other with PyTorch's own. Times are measured, too."""
    (tmp_path / "m.attn").write_text(SPEC)
    attnc.build(attnc.check(tmp_path / "m.attn"), tmp_path / "built", init=0)
    with monkeypatch.context() as patch:
        patch.setattr("attnc.cli.run.number_type", lambda _name: None)  # which no user is offered
        exact = scored(tmp_path, "exact", "cpu", "float64")
    found = {"cuda": scored(tmp_path, "cuda", "cuda", "float32")}
    load = Models.load
    with monkeypatch.context() as patch:
        patch.setattr(Models, "load", lambda self, spec: load(self, spec).use("torch"))
        theirs = scored(tmp_path, "torch", "cuda", "float32")
    for probe in ("output", "hidden", "nll", "kl"):
        mine, other = distance(found["cuda"], exact, probe), distance(theirs, exact, probe)
        assert mine <= 1.5 * other, (probe, mine, other)
    timed = [row.values for row in found["cuda"].values() if row.what == "cost"]
    assert len(timed) == 5, "full attention and four candidates"
    assert all(values["decode_ms"] > 0 < values["prefill_ms"] for values in timed)
    solving = ["tune", "solve", str(tmp_path / "cuda"), "--objective", "loss", "--limit", "kv_bytes=60%", "--solver", "hull"]
    assert invoke([*solving, "-o", str(tmp_path / "p.json")]) == 0
    proving = ["tune", "prove", str(tmp_path / "cuda"), "--policy", str(tmp_path / "p.json"), "--trials", "4"]
    assert invoke([*proving, "--max-rise", "1000", "--max-drop", "100"]) == 0
    made = read_policy(tmp_path / "p.json")
    assert made.proved
    assert all(figure.measured for figure in made.figures if figure.what != "kv_bytes")
