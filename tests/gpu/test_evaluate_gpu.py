"""Evaluation and the runs of `make evidence` on a GPU."""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import attnc
from attnc.compiler.data import from_json
from attnc.dsl import SpecError
from attnc.evaluate import asking
from attnc.evaluate.evidence import Evidence
from attnc.evaluate.run import Options, evaluate
from attnc.evaluate.subject import Subject
from attnc.tasks.text import topics

TOP = Path(__file__).parents[2]
SPEC = """model m {
  vocab = 256, dim = 128, layers = 2, ffn = swiglu(256), norm = rms(1e-6), heads = 4, kv_heads = 2, rope = 10000
}
layers { 0: sink(4) | window(64), 1: full }
"""
ALLOWED = 1.5


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("evaluated") / "m"
    attnc.build(attnc.check(SPEC), place, device="h100", init=0)
    return place


def losses(folder, device, dtype, use="plan"):
    model = Subject.of(folder, device, dtype, reference=False)
    model.model.use(use)
    found = asking.losses(model, model.tokenizer("bytes"), topics(), 512, 16, 4, lambda _: None)
    return torch.tensor([nats / count for nats, count in found], dtype=torch.float64)


def test_losses_are_as_exact_as_with_the_attention_of_pytorch(folder):
    truth = losses(folder, "cpu", torch.float64)
    for dtype in (torch.float32, torch.bfloat16):
        ours, theirs = ((losses(folder, "cuda", dtype, use) - truth).square().mean().sqrt() for use in ("triton", "torch"))
        assert ours <= ALLOWED * theirs, f"{dtype}: off by {ours:.2e}, with PyTorch's attention {theirs:.2e}"


def test_every_task_is_asked_and_gives_the_same_again(folder):
    model = Subject.of(folder, "cuda", torch.bfloat16, reference=False)
    tasks = ("nll", "mqar", "copy", "needle", "passkey", "multikey")
    options = Options(tasks=tasks, lengths=(1024,), trials=10, form="tokens")
    with pytest.raises(SpecError, match="A564"):
        evaluate(model, options, lambda *_: None)
    options = replace(options, tasks=options.tasks[1:])
    assert evaluate(model, options, lambda *_: None) == evaluate(model, options, lambda *_: None)


def test_memory_that_ends_is_said_with_what_to_lower(folder):
    model = Subject.of(folder, "cuda", torch.bfloat16, reference=False)
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(1e-3)
    try:
        with pytest.raises(SpecError, match="--batch below 512") as caught:
            evaluate(model, Options(tasks=("copy",), lengths=(16384,), trials=512, batch=512), lambda *_: None)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert {one.code for one in caught.value.diagnostics} == {"A565"}


def test_every_mix_of_the_page_of_evidence_trains_here(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(TOP / "tools")  # for processes of its own too
    tool = importlib.import_module("evidence")
    tool.main(["--steps", "5", "--seeds", "1", "--trials", "20", "--out", str(tmp_path)])
    runs = from_json(Evidence, (tmp_path / "evidence" / "mqar.json").read_text()).runs
    assert [run.spec for run in runs] == list(tool.SPECS)
    assert all(run.loss < 10 for run in runs)
