"""Built models on their generated kernels in Triton's interpreter: compiled, checkpointed, and in another dtype.

test_kernels_interpreter.py runs this file.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
import torch

import attnc
from attnc.codegen.build import Options, build
from attnc.codegen.triton.versions import INTERPRETS
from attnc.compiler import check_text

if not INTERPRETS:
    pytest.fail("TRITON_INTERPRET=1 is not set", pytrace=False)

TEXT = """model small {
  vocab = 32, dim = 32, layers = 2, heads = 2, kv_heads = 1, head_dim = 16, ffn = swiglu(32), norm = rms(1e-6), rope = 10000,
  sink_logit = learned
}
layers { 0: window(8), 1: sink(2) | window(5) }
"""
SOFTPLUS = """model small {
  vocab = 32, dim = 32, layers = 1, heads = 2, kv_heads = 1, head_dim = 16, ffn = none, norm = rms(1e-6)
}
layers { all: sink(2) | window(5) { score = softplus(exponent = 3), qk_norm = l2 } }
"""
FOLDER = Path(tempfile.mkdtemp(prefix="attnc-"))


def made(text: str = TEXT) -> torch.nn.Module:
    folder = FOLDER / ("built" if text == TEXT else "softplus")
    if not folder.exists():
        build(check_text(text, "small.attn"), folder, Options(seed=0))
    return attnc.load(folder, use="triton")


def texts(length: int) -> torch.Tensor:
    return torch.randint(0, 32, (2, length), generator=torch.Generator().manual_seed(length))


def trained(model: torch.nn.Module, call: object, tokens: torch.Tensor) -> list[torch.Tensor]:
    """The logits, and the gradient of every parameter."""
    logits = call(tokens).logits
    return [logits, *torch.autograd.grad(logits.float().square().mean(), list(model.parameters()))]


def test_a_compiled_model_has_the_same_bits() -> None:
    model = made()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for length in (20, 33, 40, 21):
        for one, other in zip(trained(model, model, texts(length)), trained(model, compiled, texts(length)), strict=True):
            assert torch.equal(one, other)
    with torch.no_grad():
        assert torch.equal(model(texts(9)).logits, compiled(texts(9)).logits)


def test_a_compiled_model_of_two_launches_a_layer_has_the_same_bits() -> None:
    model = made(SOFTPLUS)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for length in (20, 21):
        for one, other in zip(trained(model, model, texts(length)), trained(model, compiled, texts(length)), strict=True):
            assert torch.equal(one, other)
