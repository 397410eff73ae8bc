"""`attnc train` on a GPU: the same bits from the same seed, killed or not; compiled; and memory that ends."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from training import built, settings

from attnc.dsl import SpecError
from attnc.tasks.copying import Copy
from attnc.train import run as running
from attnc.train.report import TrainReport

pytestmark = pytest.mark.gpu

HEAD = (
    "vocab = 64, dim = 64, layers = 2, heads = 4, kv_heads = 2, head_dim = 16, ffn = swiglu(64), norm = rms(1e-6), rope = 10000"
)
LAYERS = "0: heads { 0: full, 1: sink(2) | window(budget(4..32, default = 8)) }, 1: window(16)"
RECIPE = """loss = [lm], distill = [kl, hidden], teacher = full, randomize = budgets
lora = [v, o], train = [q, k, ffn, embedding, norm]"""


def place(tmp_path: Path, name: str, recipe: str = RECIPE) -> Path:
    """A fresh copy of the folder, whose spec has the recipe."""
    folder = tmp_path / name
    shutil.copytree(built(LAYERS, HEAD), folder, ignore=shutil.ignore_patterns("__pycache__"))
    spec = folder / "spec.attn"
    spec.write_text(spec.read_text() + f"\nrecipe {{ {recipe} }}\n")
    return folder


def trained(folder: Path, **changes: object) -> TrainReport:
    usual = {"steps": 6, "every": 2, "length": 48, "batch": 4, "device": "cuda", "dtype": "bfloat16"}
    return running.train(folder, settings(**{**usual, **changes}), Copy(items=4), lambda _: None, lambda _: None)


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_seed_gives_the_same_bits_and_so_does_a_resumed_run(tmp_path, monkeypatch, dtype):
    one, two, three = (place(tmp_path, name) for name in ("one", "two", "three"))
    trained(one, dtype=dtype)
    trained(two, dtype=dtype)
    assert weights(one) == weights(two) != weights(built(LAYERS, HEAD))
    step = running.Trainer.step

    def dies(self, *arguments):
        if self.done == 5:
            raise KeyboardInterrupt
        return step(self, *arguments)

    monkeypatch.setattr(running.Trainer, "step", dies)
    with pytest.raises(KeyboardInterrupt):
        trained(three, dtype=dtype)
    monkeypatch.setattr(running.Trainer, "step", step)
    report = running.resume(three, {}, lambda _: Copy(items=4), lambda _: None, lambda _: None)
    assert report.resumed == 4
    assert weights(three) == weights(one)


def test_a_compiled_model_learns_what_a_plain_one_learns(tmp_path):
    usual = {"steps": 40, "dtype": "float32", "batch": 32, "lr": 3e-3}
    plain = trained(place(tmp_path, "plain", "loss = [lm]"), **usual)
    compiled = trained(place(tmp_path, "compiled", "loss = [lm]"), **usual, compiled=True)
    assert compiled.last["lm"] == pytest.approx(plain.last["lm"], rel=1e-3)
    assert plain.last["lm"] < plain.first["lm"]


def test_a_step_that_does_not_fit_says_what_to_lower_and_leaves_the_weights(tmp_path):
    folder = place(tmp_path, "large", "loss = [lm]")
    free, total = torch.cuda.mem_get_info()
    torch.cuda.set_per_process_memory_fraction(min(1.0, (total - free + 2**29) / total))
    try:
        with pytest.raises(SpecError, match=r"(?s)A576.*--batch 4096 --accumulate 2"):
            trained(folder, batch=8192, length=2048)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert weights(folder) == weights(built(LAYERS, HEAD))
