"""Built models on a GPU under torch.compile, checkpointing, autocast and CUDA graphs, and storages beyond 2^31 elements."""

from __future__ import annotations

import functools
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from models import rms
from torch.utils.checkpoint import checkpoint

import attnc
from attnc.codegen.build import Options, build
from attnc.codegen.triton.compile import load
from attnc.codegen.triton.emit import emit
from attnc.compiler import check_text
from attnc.compiler.families import FAMILIES, Softmax
from attnc.runtime.batch import Batch
from attnc.runtime.intervals import Form
from attnc.runtime.keys import packed_keys
from attnc.runtime.launch import Kernels

TEXT = """model small {
  vocab = 64, dim = 64, layers = 2, heads = 4, kv_heads = 2, head_dim = 32, ffn = swiglu(64), norm = rms(1e-6), rope = 10000,
  sink_logit = learned
}
layers { 0: window(40), 1: heads { 0: sink(4) | window(20), 1: stride(8) } }
"""


FEW = 64


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("built") / "small"
    build(check_text(TEXT, "small.attn"), path, Options(seed=0))
    return path


def texts(length: int) -> torch.Tensor:
    return torch.randint(0, 64, (2, length), generator=torch.Generator().manual_seed(length)).cuda()


def trained(model: torch.nn.Module, call: object, tokens: torch.Tensor) -> list[torch.Tensor]:
    """The logits, and the gradient of every parameter."""
    logits = call(tokens).logits
    return [logits.detach(), *torch.autograd.grad(logits.float().square().mean(), list(model.parameters()))]


def pooled(*found: list[torch.Tensor]) -> list[tuple[torch.Tensor, ...]]:
    """The same tensors side by side; those of few numbers, whose errors are chance, as one, each over its size in the last."""
    sizes = [rms(right.double()) for right in found[-1]]
    few = [index for index, right in enumerate(found[-1]) if right.numel() < FEW]
    small = tuple(torch.cat([one[index].double().flatten() / sizes[index] for index in few]) for one in found)
    return [small, *(pair for index, pair in enumerate(zip(*found, strict=True)) if index not in few)]


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_compiled_model_trains_as_the_plain_one(dtype: torch.dtype, folder: Path) -> None:
    """The same bits where operations are; as near to float64 where they are fused. One graph for lengths that vary."""
    torch._dynamo.reset()
    model = attnc.load(folder, "cuda", dtype, "triton")
    exact = attnc.load(folder, "cuda", torch.float64, "reference")
    plain = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=True)
    fused = torch.compile(model, fullgraph=True, dynamic=True)
    for length in (200, 333, 9):
        want, own = trained(exact, exact, texts(length)), trained(model, model, texts(length))
        assert same(own, trained(model, plain, texts(length)))
        for got, mine, right in pooled(trained(model, fused, texts(length)), own, want):
            assert rms(got - right) <= 1.5 * max(rms(mine - right), rms(right.to(dtype) - right)), length


def test_checkpointed_layers_have_the_same_gradients(folder: Path) -> None:
    model = attnc.load(folder, "cuda", torch.bfloat16, "triton")
    want = trained(model, model, texts(150))
    for layer in model.model.layers:
        layer.forward = functools.partial(checkpoint, layer.forward, use_reentrant=False)
    assert same(want, trained(model, model, texts(150)))
    torch._dynamo.reset()
    assert same(want, trained(model, torch.compile(model, fullgraph=True, backend="aot_eager"), texts(150)))


def test_autocast_trains_and_decodes_in_its_dtype(folder: Path) -> None:
    model = attnc.load(folder, "cuda", torch.float32, "triton")
    exact = attnc.load(folder, "cuda", torch.float64, "reference")
    low = attnc.load(folder, "cuda", torch.bfloat16, "triton")
    tokens = texts(90)
    with torch.autocast("cuda", torch.bfloat16):
        got = trained(model, model, tokens)
        with torch.no_grad():
            cache = model.new_cache(2, 90)
            assert cache.layer(0).k.dtype == torch.bfloat16
            steps = torch.cat([model(piece, cache=cache).logits for piece in tokens.split([70, 1, 16, 3], dim=1)], dim=1)
    assert got[0].dtype == torch.bfloat16
    assert all(gradient.dtype == torch.float32 for gradient in got[1:])
    want, own = trained(exact, exact, tokens), trained(low, low, tokens)
    for one, mine, right in zip(got, own, want, strict=True):
        assert rms(one - right) <= 1.5 * rms(mine - right)
    assert rms(steps - want[0]) <= 1.5 * rms(own[0] - want[0])


def test_a_captured_call_replays_for_other_tokens(folder: Path) -> None:
    model = attnc.load(folder, "cuda", torch.bfloat16, "triton")
    tokens = texts(64)
    with torch.no_grad():
        model(tokens)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            logits = model(tokens).logits
        other = texts(64).flip(0)
        tokens.copy_(other)
        graph.replay()
        assert torch.equal(logits, model(other).logits)


@functools.cache
def wide_kernels() -> tuple[Kernels, Form]:
    form = Softmax(1, head_width=128, value_width=128, group=16)
    folder = Path(tempfile.mkdtemp(prefix="attnc-"))
    files = [load(emit(name, form), folder, f"large_{name}") for name in FAMILIES["softmax"]]
    return Kernels.of(*files), Form(1, 0, 0, True)


@pytest.mark.parametrize("tokens", [9, 900])
def test_queries_keys_and_results_beyond_two_to_the_31_elements(tokens: int) -> None:
    """A sequence that lies beyond the range of 32 bits in q, k, v and o comes out as it does alone. Takes 60 GB."""
    kernels, form = wide_kernels()
    heads, width = 32, 128
    before = 2**31 // (heads * width) + 1000  # places that are no sequence's
    k_before = 2**31 // (2 * width) + 1000
    q = torch.zeros(before + tokens, heads, width, dtype=torch.bfloat16, device="cuda")
    k, v = (torch.zeros(k_before + tokens, 2, width, dtype=torch.bfloat16, device="cuda") for _ in range(2))
    for x in (q, k, v):
        x[-tokens:] = torch.randn(tokens, *x.shape[1:], device="cuda")
    rows = torch.tensor([[[0, 1, 0, 30, 0]] * 2], dtype=torch.int32, device="cuda")
    scale = torch.full((heads,), width**-0.5, device="cuda")
    _, alone = Batch.of(torch.empty(1, tokens, 1, device="cuda"))
    leaves = [x[-tokens:].clone().requires_grad_() for x in (q, k, v)]
    o, lse = kernels(leaves[0], alone.keys(*leaves[1:]), rows, form, alone, scale)
    grads = torch.autograd.grad((o.float().square().sum() + lse.sum()), leaves)

    offsets = torch.tensor([before, before + tokens], device="cuda")
    far = replace(alone, offsets=offsets)
    keys = packed_keys(k, v, torch.tensor([k_before, k_before + tokens], device="cuda"), (tokens,), alone.past, (0,))
    for x in (q, k, v):
        x.requires_grad_()
    keys = replace(keys, k=k.view(-1), v=v.view(-1))
    got, got_lse = kernels(q, keys, rows, form, far, scale)
    assert got.numel() > 2**31
    assert torch.equal(got[-tokens:], o)
    assert torch.equal(got_lse[-tokens:], lse)
    loss = got[-tokens:].float().square().sum() + got_lse[-tokens:].sum()
    for one, other in zip(torch.autograd.grad(loss, (q, k, v)), grads, strict=True):
        assert torch.equal(one[-tokens:], other)
