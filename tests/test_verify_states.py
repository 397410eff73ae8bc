"""`attnc verify` on kernels of matrix states: right ones pass, each part of a launch that is broken by hand does not."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from attnc import cli
from attnc.codegen.build import Options, build
from attnc.codegen.verify import states
from attnc.compiler import check_text
from attnc.compiler.families import Recurrence
from attnc.runtime.scan_torch import torch_scan

TEXT = """model states { vocab = 16, dim = 16, layers = 1, ffn = none, norm = rms(1e-6), heads = 1, head_dim = 16, rope = none }
layers { all: linear(update = delta, decay = scalar) { qk_norm = l2 } }
"""
CLASSES = {"random", "whole numbers", "deep gates"}
BROKEN = {
    "scan_step_0": ("tl.store(after + place * (K * V) + tile, state, mask=inside)", "=inside", "=inside & (d[None, :] > 0)"),
    "scan_gradients_0": ("rows[None, :], 0.0), 1) + through", "through", "0.999 * through"),
}


@pytest.mark.triton
def test_what_is_broken_is_wrong_and_what_is_not_is_right(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A column of the state that nobody writes; a gradient of decays whose part from other chunks is off by a thousandth."""
    build(check_text(TEXT, "states.attn"), tmp_path / "built", Options())
    for kernel, (line, old, new) in BROKEN.items():
        path = tmp_path / "built" / "kernels" / f"{kernel}.py"
        text = path.read_text("utf-8")
        assert text.count(line) == 1, kernel
        path.write_text(text.replace(line, line.replace(old, new)), "utf-8")
    code = cli.invoke(["verify", str(tmp_path / "built"), "--device", "cpu", "--json"])
    report = json.loads(capsys.readouterr().out)
    assert code == 1
    assert not any("not compared" in decision for decision in report["decisions"])
    assert {one["kernel"] for one in report["kernels"] if not one["as_built"]} == set(BROKEN)
    rows = {(row["kernel"], row["inputs"]): row for row in report["rows"]}
    assert {inputs for kernel, inputs in rows if kernel == "scan_step_0"} == CLASSES
    assert {inputs for kernel, inputs in rows if kernel == "scan_backward_0"} == {f"gradients, {one}" for one in CLASSES}
    assert all(row["verdict"] == "right" for (kernel, _), row in rows.items() if kernel == "scan_forward_0")
    assert {inputs for kernel, inputs in rows if kernel == "scan_forward_0"} == CLASSES
    assert "NaN" in rows["scan_step_0", "random"]["reason"]
    assert "the gradient of decay" in rows["scan_backward_0", "gradients, random"]["reason"]


def test_a_library_that_the_plan_takes_is_compared_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here plain torch stands for it: right in its own name, and wrong where its results are off by a hundredth."""
    build(check_text(TEXT, "states.attn"), tmp_path / "built", Options(device="h100"))
    files = {path.stem: None for path in (tmp_path / "built" / "kernels").glob("scan_*.py")}
    path = tmp_path / "built" / "plan.json"
    plan = json.loads(path.read_text("utf-8"))
    (launch,) = plan["launches"]
    kernel = Recurrence("scalar", "delta", key_width=16, value_width=16)
    file = SimpleNamespace(scan=None, BLOCKS={("any", 2): (16,)}, architecture=lambda _: "any")
    names = ("scan_step_0", "scan_forward_0", "scan_backward_0")
    assert set(names) <= set(files)
    own = [states.StateSubject(name, (), (file,), kernel, (launch,)) for name in names]
    assert states.library_subjects(tmp_path / "built", own) == []
    for choice in plan["plans"]["cuda"]["choices"]:
        choice["provider"] = "fla" if choice["node"] == plan["launches"][launch] else choice["provider"]
    path.write_text(json.dumps(plan), "utf-8")
    for factor, verdict in ((1.0, "right"), (1.01, "wrong")):

        def library(steps, before, batch, factor=factor):
            o, after = torch_scan(steps, before, batch)
            return (factor * o).to(steps.q.dtype), after

        monkeypatch.setattr(states, "fla_scan", library)
        found = states.library_subjects(tmp_path / "built", own)
        assert [one.file for one in found] == ["fla_step_0", "fla_forward_0", "fla_backward_0"]
        rows = list(states.state_rows(found[1], "float16", "cpu", lambda key: key[2] == "random"))
        assert [(row.kernel, row.verdict) for row in rows] == [("fla_forward_0", verdict)], rows
