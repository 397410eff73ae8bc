"""Whole built models on generated kernels in Triton's interpreter against float64 references: a step of training, decoding.

test_kernels_interpreter.py runs this file.
"""

from __future__ import annotations

import tempfile
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from models import made, rms

from attnc.codegen.triton.versions import INTERPRETS
from attnc.compiler import check_text

if not INTERPRETS:
    pytest.fail("TRITON_INTERPRET=1 is not set", pytrace=False)

HEAD = (
    "model m {{ vocab = 16, dim = 32, layers = {layers}, heads = 2, kv_heads = {kv_heads}, head_dim = 16,"
    " ffn = none, norm = rms(1e-6){more} }}"
)
TOKENS = 24
PROMPT = 20
MANY = 64
"""Numbers of which one draw says enough."""
Grown = dict[str, torch.Tensor]


def text(layers: str, more: str = "", kv_heads: int = 1) -> str:
    return HEAD.format(layers=len(layers.splitlines()), kv_heads=kv_heads, more=more) + f"\nlayers {{\n{layers}\n}}\n"


def step(model: torch.nn.Module, tokens: torch.Tensor) -> Grown:
    """The gradient of every parameter for the mean loss of the next token, and the parameters after a step down it."""
    logits = model(tokens[:, :-1]).logits
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
    names, parameters = zip(*model.named_parameters(), strict=True)
    gradients = torch.autograd.grad(loss, parameters)
    after = {f"{name} after": (p - 0.1 * g).detach() for name, p, g in zip(names, parameters, gradients, strict=True)}
    return dict(zip(names, gradients, strict=True)) | after


@torch.no_grad()
def decoded(model: torch.nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """Logits of a prompt, of a few tokens at once and of one."""
    cache = model.new_cache(len(tokens), TOKENS)
    cuts = (0, PROMPT, TOKENS - 1, TOKENS)
    return torch.cat([model(tokens[:, a:b], cache).logits for a, b in pairwise(cuts)], dim=1)


def compare(spec: str, learns: tuple[str, ...] = (), each: bool = True, draws: int = 1) -> None:
    """Errors from the float64 reference, relative root mean squares of each gradient, at most 1.5 times the reference's own in
    float32: `each` where it has many numbers, and the root of the sum of squares of all. Texts are drawn so many times, and
    errors of all draws counted together on both sides.
    """
    with tempfile.TemporaryDirectory() as folder:
        model = made(check_text(spec), Path(folder) / "built").float()  # every dtype holds these weights
        texts = torch.randint(0, 16, (draws, 2, TOKENS), generator=torch.Generator().manual_seed(3))
        found: dict[str, list[Grown]] = {}
        for name, way, dtype in (
            ("exact", "reference", torch.float64),
            ("own", "reference", torch.float32),
            ("kernels", "triton", torch.float32),
        ):
            model.use(way).to(dtype)
            launches = model.launches() or model.scans()
            on_kernels = all(provider is not one.reference for one in launches for provider in one.providers.values())
            assert on_kernels == (way == "triton")
            found[name] = [step(model, tokens) | {"decoded": decoded(model, tokens)} for tokens in texts]
    exact, own, kernels = ({key: torch.stack([one[key] for one in found[name]]) for key in found[name][0]} for name in found)
    for name in learns:
        assert any(name in key and rms(gradient) > 0 for key, gradient in exact.items()), f"{name} is learned"
    rounding = {key: 2.0**-24 * rms(want) for key, want in exact.items()}
    errors = {key: (rms(kernels[key] - want), max(rms(own[key] - want), rounding[key])) for key, want in exact.items()}
    wrong = {key: pair for key, pair in errors.items() if exact[key][0].numel() >= MANY and not pair[0] <= 1.5 * pair[1]}
    assert not (each and wrong), wrong
    relative = [(ours / rms(exact[key]), theirs / rms(exact[key])) for key, (ours, theirs) in errors.items() if theirs > 0]
    ours, theirs = (sum(pair[side] ** 2 for pair in relative) ** 0.5 for side in (0, 1))
    assert ours <= 1.5 * theirs, errors


def test_learned_sink_logits() -> None:
    compare(
        text("all: heads { 0: full { sink_logit = learned }, else: sink(1) | window(6) { sink_logit = learned } }", kv_heads=2),
        ("sink_logit",),
    )


def test_a_temperature_of_the_position_and_a_cap() -> None:
    compare(text("all: full { temperature = log_position(floor_scale = 4, attn_scale = 0.5) }", ", score_cap = 1.5"))


def test_a_sink_logit_under_a_temperature_and_a_cap_beside_learned_keys() -> None:
    layers = "all: persistent(2) | window(6) { sink_logit = learned, temperature = 0.5, output_gate = sigmoid, qk_norm = rms }"
    compare(text(layers, ", score_cap = 2"), ("sink_logit", "persistent_key", "persistent_value"))


def test_softplus() -> None:
    """Not each gradient: the values' weights are powers of 15 of numbers that two passes round apart (softplus_cases.py)."""
    compare(
        text("all: heads { 0: full, else: sink(1) | window(6) } { score = softplus(exponent = 15), qk_norm = l2 }", kv_heads=2),
        each=False,
    )


def test_softplus_under_a_cap_over_strides() -> None:
    compare(text("all: stride(3) | window(2) { score = softplus(exponent = 2.5), temperature = 2 }", ", score_cap = 2"))


def test_softplus_over_learned_keys() -> None:
    compare(text("all: persistent(3) | window(6) { score = softplus(exponent = 3) }"), ("persistent_key",))


def test_keys_and_values_of_one_latent() -> None:
    """Keys of 16 and 8 shared channels, values of 16; decoding expands what a cache holds, a ring too."""
    layers = (
        "0: full { kv_latent = 12, rope_dim = 8 }\n1: sink(1) | window(6) { kv_latent = 12, rope = none, sink_logit = learned }"
    )
    compare(text(layers, kv_heads=2), ("kv_a_layernorm", "kv_b_proj", "sink_logit"))


def test_branches_that_a_gate_weighs() -> None:
    compare(text("all: gate(full, window(4) { sink_logit = learned }, by = softmax)"), ("gate", "sink_logit"))


def test_memories() -> None:
    """Tokens that wait in the cache are learned by the kernels when their chunk is full."""
    compare(
        text(
            "  0: memory(mlp(expand = 1), chunk = 8, momentum = learned, decay = learned) { qk_norm = l2 }\n"
            "  1: memory(linear, chunk = 4, residual = true, norm = layer, read = after_write)"
        ),
        draws=3,
    )
