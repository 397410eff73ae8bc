"""Kinds that plain PyTorch runs: formulas, whole models in every way to run them, derivatives, caches, bad input."""

from __future__ import annotations

import pytest
import torch
from models import FLOAT32, Case
from test_models import SPECS
from test_table import PLAIN

import attnc
from attnc.codegen.build import Options, build
from attnc.compiler import check_path, check_text
from attnc.compiler.mixers.feedback import feedback
from attnc.compiler.reduce import reduce
from attnc.runtime import feedback as solving

BODY = "vocab = 32, dim = 12, heads = 3, kv_heads = 3, head_dim = 4, ffn = none, norm = rms(1e-6)"
MODELS = {
    "recurrent cells and feedback": (
        "layers { 0: recurrent(lstm) { activation = silu, output_gate = sigmoid, scale = 0.5 }\n"
        "  1: (recurrent(gru) >> feedback(heads = 3)) { activation = gelu, output_gate = linear, scale = learned(init = 2) }\n"
        "  2: gate(window(3) { activation = gelu, output_gate = silu }, feedback(gain = -0.5), by = softmax)\n"
        "  3: (window(2) >> ssm(s4d, state = 2) { output_gate = silu }) { activation = silu } }"
    ),
    "contexts": (
        "mix ltm = memory(mlp(expand = 2), chunk = 2, lr = learned, momentum = learned, decay = learned)"
        " { short_conv = 3, qk_norm = l2, output_norm = rms, output_gate = silu }\n"
        "mix fast = memory(linear, chunk = 6, lr = 0.1, read = after_write, residual = true, norm = layer)"
        " { kv_heads = 1, rope = 100, qk_norm = l2 }\n"
        "layers { 0: context(ltm, segment = 8, persistent = 2)\n"
        "  1: gate(window(3), context(fast, segment = 6) { qk_norm = rms, output_norm = rms, sink_logit = learned,"
        " output_gate = sigmoid, temperature = 2 }, by = softmax) }"
    ),
}


def spec_of(layers, more=""):
    count = 1 + max((int(one) for one in "123456789" if f"\n  {one}:" in layers), default=0)
    return check_text(f"model m {{ {BODY}, layers = {count}{more} }}\n{layers}")


@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_the_oracle_in_every_way_to_run_it(name, tmp_path, monkeypatch):
    monkeypatch.setattr(solving, "BLOCK", 5)
    case = Case.of(spec_of(MODELS[name]), tmp_path / "out", tokens=20)
    case.check_sizes()
    case.check(case.model)
    case.check(case.model.use("reference"), ("training", "padded decode"))
    case.check(case.narrow(), ("decode",), FLOAT32)


@pytest.mark.parametrize("name", PLAIN)
def test_a_built_spec_is_the_oracle_and_trains(name, tmp_path):
    case = Case.of(reduce(check_path(SPECS / f"{name}.attn"), 32)[0], tmp_path / "out", tokens=19)
    case.check_sizes()
    case.check(case.model)
    case.model(case.texts).logits.square().mean().backward()
    assert all(one.grad is not None and one.grad.isfinite().all() for one in case.model.parameters() if one.requires_grad)


def test_blocks_of_a_solve_are_the_formula_with_its_derivatives(monkeypatch):
    """Numbers of tokens that are no multiples of a block, and one token."""
    monkeypatch.setattr(solving, "BLOCK", 4)
    make = torch.Generator().manual_seed(0)
    for tokens in (1, 11):
        given = [torch.randn(tokens, 2, 3, generator=make, dtype=torch.float64).requires_grad_() for _ in "fqk"]
        gain = (2 * torch.rand(tokens, 2, generator=make, dtype=torch.float64) - 1).requires_grad_()
        seed = torch.randn(tokens, 2, 3, generator=make, dtype=torch.float64)
        found = []
        for way in (lambda *x: solving.solve(*(y.transpose(0, 1) for y in x)).transpose(0, 1), feedback):
            s = way(*given, gain)
            found.append((s, *torch.autograd.grad((s * seed).sum(), (*given, gain), allow_unused=True)))
        for one, other in zip(*found, strict=True):
            torch.testing.assert_close(one, torch.zeros_like(one) if other is None else other, rtol=1e-10, atol=1e-10)


def test_without_gain_feedback_hands_on_its_input():
    f, q = torch.randn(2, 7, 3, generator=torch.Generator().manual_seed(0)), torch.ones(2, 7, 3)
    assert torch.equal(solving.solve(f, q, q, torch.zeros(2, 7)), f)


def small(layers, folder):
    """A model in float32, as it starts."""
    build(spec_of(layers), folder, Options(seed=0))
    return attnc.load(folder)


@pytest.mark.parametrize("layers", ["recurrent(gru)", "feedback", "context(memory(mlp, chunk = 2), segment = 4)"])
def test_a_cache_is_restored_and_one_of_another_model_is_refused(layers, tmp_path):
    model = small(f"layers {{ all: {layers} }}", tmp_path / "out").bfloat16()
    texts = torch.randint(0, 32, (2, 12), generator=torch.Generator().manual_seed(0))
    cache = model.new_cache(2, 20)
    model(texts[:, :7], cache=cache)
    kept = cache.snapshot()
    then = model(texts[:, 7:], cache=cache).logits
    cache.restore(kept)
    assert torch.equal(model(texts[:, 7:], cache=cache).logits, then)
    assert model(texts[:, :0], cache=model.new_cache(2, 20)).logits.shape == (2, 0, 32)
    assert model(texts[:0]).logits.shape == (0, 12, 32)
    other = small("layers { all: recurrent(lstm) }", tmp_path / "other").bfloat16()
    with pytest.raises(ValueError, match="another"):
        model(texts, cache=other.new_cache(2, 20))
