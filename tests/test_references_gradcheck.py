"""Derivatives of the references in float64 against finite differences: the layers that specs build, and the formulas alone."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from models import made
from torch import Tensor
from torch.autograd import gradcheck

from attnc.compiler import check_text
from attnc.compiler.mixers import MIXERS
from attnc.compiler.mixers.softmax import softmax_weights, softplus_weights
from attnc.runtime import attention_reference
from attnc.runtime.batch import Batch
from attnc.runtime.softmax import merge

HEAD = (
    "model m {{ vocab = 8, dim = 4, layers = {layers}, heads = 4, kv_heads = {kv_heads}, head_dim = 2,"
    " ffn = none, norm = rms(1e-6){more} }}"
)
SIZES = (5, 2)
"""Tokens of two packed sequences: one that patterns reach back in, and one that sees up to two keys."""


def text(layers: str, more: str = "", kv_heads: int = 2) -> str:
    rules = [rule for rule in layers.splitlines() if rule.strip()]
    return HEAD.format(layers=len(rules), kv_heads=kv_heads, more=more) + f"\nlayers {{\n{layers}\n}}\n"


SPECS = {
    "full": text("all: full"),
    "matrix states that erase": text(
        "all: linear(update = delta, decay = vector, erase = vector, write = vector, beta = 2) { qk_norm = l2 }"
    ),
    "matrix states that add": text(
        "0: linear(decay = vector, key = one_minus_decay, lower_bound = learned)\n"
        "1: linear(decay = scalar, feature = taylor(2), normalize = sum)"
    ),
    "cells and a feedback": text("0: recurrent(lstm)\n1: recurrent(gru)\n2: feedback(heads = 2)"),
    "codes": text("all: window(2) | codebook(2)"),
    "chunks weighed by queries, and one that runs on": text(
        "0: window(1) | summary(2, pool = last_query, value_pool = attention)\n1: summary(2, pool = recurrence)"
    ),
    "window": text("all: window(2)"),
    "an aligned window": text("all: window(4, aligned = 2) { positions = chunk }"),
    "sink and window": text("all: sink(1) | window(2)"),
    "blocks that begin later": text("all: block_local(3, shift = 40%)"),
    "stride": text("all: stride(2)"),
    "powers of two": text("all: power_of_two(2)"),
    "learned keys": text("all: persistent(2) | window(2)"),
    "learned keys alone": text("all: persistent(2)"),
    "both ways": text("all: window(3) | stride(3)", ", causal = false"),
    "heads of several kinds": text("all: heads { 0: full { rope = none }, 1: sink(1) | window(2) { sink_logit = learned } }"),
    "values wider than keys": text("all: full { value_dim = 3 }"),
    "ranks as positions": text("all: sink(1) | window(2) { positions = consecutive }"),
    "uniform": text("all: window(3) { score = uniform }"),
    "softplus": text("all: full { score = softplus(exponent = 3), qk_norm = l2 }"),
    "softplus with a cap and a temperature": text(
        "all: full { score = softplus(exponent = 15), temperature = 2 }", ", score_cap = 2"
    ),
    "softplus over learned keys": text("all: persistent(3) | window(3) { score = softplus(exponent = 1.5) }"),
    "cap": text("all: full", ", score_cap = 1.5, score_scale = 0.9"),
    "sink logit": text("all: sink(1) | window(2) { sink_logit = learned }"),
    "sink logit, cap and temperature": text("all: full { sink_logit = learned, temperature = 0.5 }", ", score_cap = 2"),
    "temperature of the position": text("all: full { temperature = log_position(floor_scale = 2, attn_scale = 0.5) }"),
    "norms of q and k": text("all: full { qk_norm = rms, output_norm = rms }"),
    "q for k, and convolutions": text("all: full { share_qk = true, short_conv = 2, qk_norm = l2 }", kv_heads=4),
    "gated by a sigmoid": text("all: full { output_gate = sigmoid, scale = learned(init = 2) }"),
    "gated by silu": text("all: full { output_gate = silu, scale = 0.5 }"),
    "gated linearly": text("all: full { output_gate = linear }"),
    "stretched turns": text("all: full { rope_scale = yarn(4, original = 4), rope = 100 }"),
    "q and k of the layer before": text("0: full\n1: full { qk_from = previous }"),
    "keys and values of one latent": text("all: full { kv_latent = 3, value_dim = 3 }"),
    "a latent without positions": text("all: sink(1) | window(2) { kv_latent = 3, rope = none, sink_logit = learned }"),
    "keys that content chooses": text("all: block_local(2) | routed(blocks(2), top_k = 1)"),
    "diagonal states": text("all: ssm(s4d, state = 2)"),
    "states of channels": text("all: ssm(mamba, state = 2) { output_gate = silu, short_conv = 2 }"),
    "weights that learn": text("all: memory(linear, chunk = 2, momentum = learned, decay = learned)"),
    "branches added": text("all: full + window(2) + conv(2)"),
    "branches in a row": text("all: window(2) >> full"),
    "branches by sigmoid": text("all: gate(full, window(2), by = sigmoid, shared = [q, k])"),
    "branches by softmax": text("all: gate(full, window(2), conv(2), by = softmax)"),
    "the product of branches": text("all: gate(full, conv(2, expand = 2), by = product)"),
    "cases by length": text("all: when { length < 4: full, else: window(2) }"),
    "feed-forward and norms on both sides": text("all: full", ", norm_place = sandwich, bias = all").replace(
        "ffn = none", "ffn = swiglu(3)"
    ),
    "layer norm and gelu": text("all: full").replace("ffn = none", "ffn = gelu(3)").replace("rms(1e-6)", "layer(1e-5)"),
    "a route per token": text("all: route(per = token, by = router(linear)) { exact: full, near: window(2) }"),
}
ROUTED = {"a route per token"}
"""A key's choice has the gradient of a softmax instead (straight-through), so that differences of what it reads say nothing."""

STEPS = ("router.weight", "input_layernorm.weight")
"""What the choice reads, beside the input."""


def check(function: Callable[..., object], *inputs: Tensor, along: bool = False) -> None:
    """Raises where an analytic derivative is not that of finite differences; `along`: each input's in one random direction."""
    leaves = tuple(x.detach().clone().requires_grad_() for x in inputs)
    assert all(leaf.dtype == torch.float64 for leaf in leaves)
    assert gradcheck(function, leaves, eps=1e-6, atol=1e-7, rtol=1e-5, fast_mode=along)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Layers(torch.nn.Module):
    """All layers of a model, without embedding and head."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.layers = model.model.layers
        self.of = sys.modules[type(model).__module__].Call  # the folder's own

    def forward(self, x: Tensor, batch: Batch) -> Tensor:
        call = self.of(batch)
        for layer in self.layers:
            x = layer(x, call)
        return x


@pytest.mark.parametrize("name", SPECS)
def test_the_derivatives_of_a_layers_reference_are_those_of_differences(name: str, tmp_path: Path) -> None:
    """Of its input and of every weight, for two packed sequences."""
    model = made(check_text(SPECS[name]), tmp_path / "built").use("reference")
    launches = (*model.launches(), *model.scans())
    assert all(provider is one.reference for one in launches for provider in one.providers.values())
    offsets = [0, *torch.tensor(SIZES).cumsum(0).tolist()]
    _, batch = Batch.of(torch.zeros(1, sum(SIZES), dtype=torch.int64), offsets=offsets, phase="train")
    layers, routed = Layers(model), name in ROUTED
    names = [key for key, _ in layers.named_parameters() if not (routed and key.endswith(STEPS))]
    x = draw(sum(SIZES), 4, seed=3)

    def run(*given: Tensor) -> Tensor:
        weights, (tokens,) = given[: len(names)], given[len(names) :] or (x,)
        return torch.func.functional_call(layers, dict(zip(names, weights, strict=True)), (tokens, batch))

    check(run, *(layers.get_parameter(key) for key in names), *(() if routed else (x,)), along=True)


def test_every_built_kind_is_differentiated() -> None:
    built = {name for name, kind in MIXERS.items() if kind.built}
    assert {name for name in built if not any(f"{name}(" in spec or f": {name}" in spec for spec in SPECS.values())} == set()


@pytest.mark.parametrize("weights", [softmax_weights, attention_reference.softmax_weights], ids=["built", "runtime"])
@pytest.mark.parametrize("sink", [False, True], ids=["bare", "sink logit"])
def test_the_derivatives_of_a_softmaxs_weights(weights: Callable[..., Tensor], sink: bool) -> None:
    visible = SEEN.clone()
    more = (draw(2, seed=1),) if sink else ()
    check(lambda s, *logit: weights(s, visible, *(logit or (None,))), 3 * draw(2, *SEEN.shape), *more)


SEEN = torch.tensor([[0, 0, 0, 0, 0], [0, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 0, 1, 1], [1, 1, 1, 1, 1]], dtype=torch.bool)
"""Which keys each query sees: none, one, as many as softplus subtracts nothing from, more."""


@pytest.mark.parametrize("exponent", [1.0, 2.5, 15.0])
def test_the_derivatives_of_softplus_weights(exponent: float) -> None:
    check(lambda s: partial(softplus_weights, exponent=exponent)(s, SEEN, None), draw(2, *SEEN.shape))


def test_the_derivatives_of_merged_branches() -> None:
    """Of the joined result and of its log-sum-exp; of a branch without keys, nothing but zeros."""
    some = (draw(3, 2, 2, seed=1), draw(3, 2, seed=2), draw(3, 2, 2, seed=3), draw(3, 2, seed=4))
    check(merge, *some)
    nothing = torch.full((3, 2), float("-inf"), dtype=torch.float64)
    check(lambda o, lse: merge(o, lse, torch.zeros_like(o), nothing), *some[:2])
    check(lambda o, lse: merge(torch.zeros_like(o), nothing, o, lse), *some[:2])
    o, lse = (x.clone().requires_grad_() for x in (torch.zeros_like(some[0]), nothing))
    found = torch.autograd.grad(merge(o, lse, o, lse)[0].sum(), (o, lse))
    assert all(torch.equal(one, torch.zeros_like(one)) for one in found)
