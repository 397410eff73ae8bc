"""A launch whose heads are split between generated kernels and PyTorch: prefill, gradients, and decoding on rings."""

from __future__ import annotations

from pathlib import Path

import torch
from models import rms

import attnc
from attnc.codegen.build import Options, build
from attnc.compiler import check_text

SPEC = """model mixed { vocab = 32, dim = 32, layers = 1, heads = 8, kv_heads = 4, head_dim = 16, ffn = none, norm = rms(1) }
layers { all: heads { 0..1: full, else: sink(2) | window(5) } }"""
WAYS = ((("torch", 0, 1), ("triton", 2, 3)), (("triton", 0, 0), ("torch", 1, 2), ("triton", 3, 3)))


def outcome(model, way) -> list[torch.Tensor]:
    """Logits of a prefill, of steps of 1 and 5 tokens on a cache whose rings have turned, and all gradients."""
    for mix in model.launches():
        mix.providers = {phase: model.provider(mix, way) for phase in mix.providers}
    texts = torch.arange(40).view(2, 20) % 32
    logits = model(texts).logits
    gradients = torch.autograd.grad(logits.square().sum(), list(model.parameters()))
    cache = model.new_cache(2, 32)
    with torch.no_grad():
        steps = [model(texts[:, first:last], cache).logits for first, last in ((0, 12), (12, 13), (13, 18))]
    return [x.detach() for x in (logits, *steps, *gradients)]


def test_a_split_launch_is_as_near_to_float64_as_pytorch(tmp_path: Path) -> None:
    build(check_text(SPEC), tmp_path / "built", Options(seed=0))
    exact = outcome(attnc.load(tmp_path / "built", dtype=torch.float64), "reference")
    model = attnc.load(tmp_path / "built", dtype=torch.float32)
    plain = outcome(model, "torch")
    for way in WAYS:
        for one, other, right in zip(outcome(model, way), plain, exact, strict=True):
            assert rms(one - right) <= 1.5 * rms(other - right)
