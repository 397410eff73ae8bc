"""Kinds that plain PyTorch runs: formulas, whole models in every way to run them, derivatives, caches, bad input."""

from __future__ import annotations

import pytest
import torch
from models import FLOAT32, Case
from test_models import SPECS
from test_table import PLAIN
from training import examples, trainer

import attnc
from attnc.codegen.build import Options, build
from attnc.compiler import check_path, check_text
from attnc.compiler.mixers.feedback import feedback
from attnc.compiler.reduce import reduce
from attnc.runtime import condensed
from attnc.runtime import feedback as solving
from attnc.runtime.batch import Batch
from attnc.runtime.call import Call

BODY = "vocab = 32, dim = 12, heads = 3, kv_heads = 3, head_dim = 4, ffn = none, norm = rms(1e-6)"
MODELS = {
    "recurrent cells and feedback": (
        "layers { 0: recurrent(lstm) { activation = silu, output_gate = sigmoid, scale = 0.5 }\n"
        "  1: (recurrent(gru) >> feedback(heads = 3)) { activation = gelu, output_gate = linear, scale = learned(init = 2) }\n"
        "  2: gate(window(3) { activation = gelu, output_gate = silu }, feedback(gain = -0.9), by = softmax)\n"
        "  3: (window(2) >> ssm(s4d, state = 2) { output_gate = silu }) { activation = silu } }"
    ),
    "codebooks beside windows": (
        "layers { 0: sink(2) | window(4) | codebook(5)"
        " { input_ema = 3, output_gate = silu, kv_heads = 1, sink_logit = learned }\n"
        "  1: block_local(4) | codebook(3) { rope = none, qk_norm = rms, short_conv = 2 }\n"
        "  2: gate(codebook(3), heads { 0: full, else: window(3) } { input_ema = 2 }, by = softmax) }"
    ),
    "chunks beside tokens": (
        "layers { 0: sink(1) | window(5) | summary(4, stride = 2, pool = last_query) { sink_logit = learned, kv_heads = 1 }\n"
        "  1: block_local(4) | summary(4, pool = max, value_pool = attention)\n"
        "  2: gate(summary(3, pool = recurrence) { positions = chunk, output_gate = sigmoid },"
        " summary(5, stride = 3, pool = attention, value_pool = sum) { rope = none }, by = softmax)\n"
        "  3: summary(4, pool = recurrence) { kv_heads = 1, short_conv = 2, temperature = 2 } }"
    ),
    "contexts": (
        "mix ltm = memory(mlp(expand = 2), chunk = 2, lr = learned, momentum = learned, decay = learned)"
        " { short_conv = 3, qk_norm = l2, output_norm = rms, output_gate = silu }\n"
        "mix fast = memory(linear, chunk = 6, lr = 0.1, read = after_write, residual = true, norm = layer)"
        " { kv_heads = 1, rope = 100, qk_norm = l2, activation = silu }\n"
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
    case = Case.of(spec_of(MODELS[name]), tmp_path / "out", tokens=17)
    case.check_sizes()
    case.check(case.model, ("training", "packed", "chunks", "decode by 16", "padded decode"))
    case.check(case.model.use("reference"), ("padded decode",))
    if name != "contexts":  # which add no arithmetic to that of memories
        case.check(case.narrow(), ("decode by 16",), FLOAT32)


@pytest.mark.parametrize("name", PLAIN)
def test_a_built_spec_is_the_oracle_and_trains(name, tmp_path):
    case = Case.of(reduce(check_path(SPECS / f"{name}.attn"), 32)[0], tmp_path / "out", tokens=19)
    case.check_sizes()
    case.check(case.model, ("training", "chunks", "padded decode"))
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


CODES = "window(3) | codebook(4, ema = 0.9, commit = 0.5)"


def test_old_keys_learn_straight_through_their_codes(tmp_path, monkeypatch):
    """Blocks that are computed again on the way back; derivatives are those of softmax over quantised keys, all T x T of it."""
    monkeypatch.setattr(condensed, "BLOCK", 4)
    scan = small(f"layers {{ all: {CODES} {{ rope = none }} }}", tmp_path / "out").model.layers[0].self_attn.scan
    make = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(9, 3, 4, generator=make, dtype=torch.float64).requires_grad_() for _ in "qkv")
    codes, seed = (torch.randn(*shape, generator=make, dtype=torch.float64) for shape in ((3, 4, 4), (9, 3, 4)))
    call = Call(Batch.of(torch.zeros(1, 9, dtype=torch.int64))[1])
    o = scan(q, k, v, call, 0, codes, codes[..., 0])
    near = ((k[:, :, None] - codes) ** 2).sum(-1).argmin(-1)
    straight = codes[torch.arange(3), near] + k - k.detach()
    i, j = torch.arange(9)[:, None], torch.arange(9)[None]
    exact, quantised = (torch.einsum("ihd,jhd->hij", q, x) / 2 for x in (k, straight))
    logits = torch.where(i - j < 3, exact, quantised).masked_fill(j > i, -torch.inf)
    want = torch.einsum("hij,jhd->ihd", logits.softmax(-1), v)
    for one, other in zip(*(torch.autograd.grad((y * seed).sum(), (q, k, v)) for y in (o, want)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
    pull = 0.5 * (k - codes[torch.arange(3), near]).square().sum(-1).mean()
    torch.testing.assert_close(call.losses["commit"], pull)


def test_codes_follow_the_keys_that_fall_to_them(tmp_path):
    """Averages of Transformer-VQ: of sums and of counts; nothing moves without a training call."""
    model = small(f"layers {{ all: {CODES} }}", tmp_path / "out")
    layer = model.model.layers[0].self_attn
    seen = []
    layer.k_proj.register_forward_hook(lambda _module, _inputs, k: seen.append(k.detach().view(-1, 3, 4)))
    texts = torch.randint(0, 32, (2, 7), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        model(texts)
    model.follow()
    codes, count = layer.codebook.clone(), layer.codebook_count.clone()
    assert torch.equal(codes, model.state_dict()["model.layers.0.self_attn.codebook"])
    model(texts).losses["commit"].backward()
    model(texts[:1])
    keys = torch.cat(seen[1:])
    near = ((keys[:, :, None] - codes) ** 2).sum(-1).argmin(-1)
    fell = torch.nn.functional.one_hot(near, 4).to(keys.dtype)  # [keys, heads, codes]
    sums = 0.9 * codes * count[..., None] + 0.1 * torch.einsum("thn,thd->hnd", fell, keys)
    counts = 0.9 * count + 0.1 * fell.sum(0)
    model.follow()
    torch.testing.assert_close(layer.codebook_count.detach(), counts)
    torch.testing.assert_close(layer.codebook.detach(), sums / counts[..., None])


def test_training_moves_codes_and_counts_their_pull(tmp_path):
    one = trainer(tmp_path, f"all: {CODES}")
    before = one.model.model.layers[0].self_attn.codebook.clone()
    values, _, _ = one.step(examples())
    assert one.model.adds == ("commit",)
    assert values["commit"] > 0
    assert not torch.equal(one.model.model.layers[0].self_attn.codebook, before)
