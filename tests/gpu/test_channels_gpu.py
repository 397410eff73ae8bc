"""Kernels of channel states on a GPU: as `attnc verify` compares them, long texts, a training step, and captured decoding."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
import torch

import attnc
from attnc.codegen.build import Options, build
from attnc.codegen.triton import channels as emitted
from attnc.codegen.triton.compile import load
from attnc.codegen.verify.channels import ChannelSubject, channel_rows
from attnc.compiler import check_text
from attnc.compiler.families import Channels
from attnc.runtime.batch import Batch
from attnc.runtime.channel_kernels import channel_kernels
from attnc.runtime.channels import Channels as Given

pytestmark = pytest.mark.gpu

FAMILIES = {
    "mamba": Channels(state=16),
    "hgrn": Channels(write=False, read=False, state=1),
    "wide": Channels(weights=True, state=200),
}
MODEL = """model m {
  vocab = 512, dim = 256, layers = 3, heads = 4, kv_heads = 2, head_dim = 64, ffn = swiglu(512), norm = rms(1e-6)
}
layers {
  0: ssm(mamba, expand = 2) { short_conv = 4, output_gate = silu }
  1: linear(decay = vector, state = vector) { output_gate = silu }
  2: full
}
"""


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_kernels_are_as_near_to_float64_as_plain_torch(name, dtype, tmp_path):
    module = load(emitted.emit(FAMILIES[name]), tmp_path, f"channels_{name}_{dtype}")
    rows = list(channel_rows(ChannelSubject(f"channels_{name}", module, ()), dtype, "cuda", 700, lambda _key: True))
    assert len(rows) == 4
    assert all(row.verdict == "right" for row in rows), [row for row in rows if row.verdict != "right"]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """The same model in float32 and in float64."""
    folder = tmp_path_factory.mktemp("built") / "m"
    build(check_text(MODEL), folder, Options(seed=0, device="h100"))
    return attnc.load(folder, device="cuda"), attnc.load(folder, device="cuda", dtype=torch.float64, use="torch")


def distance(found, exact):
    """Errors of all tensors together, each in units of its largest number."""
    apart = [((one.double() - true) / true.abs().max()).flatten() for one, true in zip(found, exact, strict=True)]
    return float(torch.cat(apart).square().mean().sqrt())


def trained(model, tokens):
    loss = torch.nn.functional.cross_entropy(model(tokens[:, :-1]).logits.flatten(0, 1), tokens[:, 1:].flatten())
    return [loss.detach()[None], *torch.autograd.grad(loss, list(model.parameters()))]


def test_a_training_step_on_kernels_rounds_no_more_than_in_plain_torch(models):
    model, wide = models
    tokens = torch.randint(0, 512, (2, 1500), device="cuda")
    exact = trained(wide, tokens)
    ours, theirs = (distance(trained(model.use(way), tokens), exact) for way in ("triton", "torch"))
    assert ours <= 1.5 * theirs


@torch.no_grad()
def test_decoding_on_kernels_goes_on_from_a_prefill(models):
    model, wide = models
    tokens = torch.randint(0, 512, (3, 70), device="cuda")
    exact = [wide(tokens).logits]
    theirs = distance([model.use("torch")(tokens).logits], exact)
    cache = model.use("triton").new_cache(3, 70)
    parts = [model(part, cache=cache).logits for part in tokens.split([60, *[1] * 10], dim=1)]
    assert distance([torch.cat(parts, dim=1)], exact) <= 1.5 * theirs


def test_a_long_text_needs_no_memory_for_all_states():
    """Half a million tokens of 1024 channels with 16 numbers would be 32 GiB of states."""

    scan = channel_kernels(load(emitted.emit(FAMILIES["mamba"]), Path(tempfile.mkdtemp()), "channels_long"))
    tokens, width = 2**19, 1024
    u, write, read = (torch.randn(tokens, n, device="cuda") for n in (width, 16, 16))
    given = Given(u, -torch.rand(width, 16, device="cuda"), torch.rand(tokens, width, device="cuda"), write, read)
    _, batch = Batch.of(torch.zeros(1, tokens, dtype=torch.int64, device="cuda"))
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    scan(given, None, batch)
    assert torch.cuda.max_memory_allocated() - before <= 1.1 * u.numel() * 4
