"""Keys and values from one latent on a GPU, at DeepSeek-V2's widths of a head: 128 own channels, 64 rotated, values of 128."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from gpu.test_models_gpu import LENGTH, logits, made, trained, weights_of
from models import rms

from attnc.codegen.build import Options, build
from attnc.compiler import check_text

TEXT = """model latent {
  vocab = 256, dim = 256, layers = 2, ffn = swiglu(256), norm = rms(1e-6)
  heads = 4, head_dim = 128, kv_latent = 512, rope_dim = 64
}
layers { 0: full, else: sink(4) | window(40) }
"""


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=lambda dtype: str(dtype).removeprefix("torch."))
def test_a_latent_on_its_kernels_is_as_near_to_float64_as_on_torch(dtype: torch.dtype, tmp_path: Path) -> None:
    """In prefill, in chunks, in decode and in training."""
    build(check_text(TEXT, "latent.attn"), tmp_path / "built", Options(seed=0))
    weights = weights_of(tmp_path / "built")
    texts = torch.randint(0, 256, (2, LENGTH), device="cuda")
    runs = {way: made(tmp_path / "built", dtype, way, weights) for way in ("triton", "torch")}
    exact = made(tmp_path / "built", torch.float64, "reference", weights)
    for step in (1, 5):
        want = logits(exact, texts, step)
        found = {way: logits(model, texts, step) for way, model in runs.items()}
        for phase in (0, 1):
            errors = {way: rms(found[way][phase] - want[phase]) for way in runs}
            assert errors["triton"] <= 1.5 * errors["torch"], (step, phase, errors)
    gradients = trained(exact, texts)
    errors = {}
    for way, model in runs.items():
        found = trained(model, texts)
        errors[way] = sum((rms(found[key] - want) / rms(want)) ** 2 for key, want in gradients.items() if rms(want) > 0) ** 0.5
    assert errors["triton"] <= 1.5 * errors["torch"], errors
