"""Compositions that ask for more than one thing at once: built, they equal the oracle in every way to run them."""

from __future__ import annotations

import pytest
from models import FLOAT32, WAYS, Case

from attnc.compiler import check_text
from attnc.compiler.laws import owed

BODY = (
    "vocab = 64, dim = 24, layers = {layers}, heads = {heads}, kv_heads = {kv_heads}, head_dim = 8,"
    " ffn = swiglu(32), norm = rms(1e-6)"
)


def spec_text(layers: str, model: str = "", mixes: str = "", heads: int = 6, kv_heads: int = 3) -> str:
    rules = [rule for rule in layers.splitlines() if rule.strip()]
    body = BODY.format(layers=len(rules), heads=heads, kv_heads=kv_heads)
    return f"model composed {{ {body}{model} }}\n{mixes}\nlayers {{\n{layers}\n}}\n"


SPECS = {
    "head groups turn their keys each in its own way": spec_text(
        "all: heads { 0: full { rope = none }, 1: window(4) { rope = 500, rope_dim = 4 },"
        " 2: stride(3) { positions = consecutive } }"
    ),
    "head groups weigh their keys each in its own way": spec_text(
        "all: heads { 0: full { score = softplus(exponent = 3) }, 1: window(4) { score = uniform },"
        " 2: stride(3) { temperature = log_position(floor_scale = 3) } }"
    ),
    "a sink logit for some heads": spec_text("all: heads { 0: full, else: window(4) { sink_logit = learned } }"),
    "chunks of two sizes": spec_text(
        "all: heads { 0: window(8, aligned = 4), else: block_local(3, shift = 50%) } { positions = chunk }"
    ),
    "chunks numbered by a key set that another contains": spec_text("all: full | block_local(4) { positions = chunk }"),
    "each head group decides by its own condition": spec_text(
        "all: heads { 0: when { length < 9: full, else: window(3) },"
        " 1: when { phase == decode: sink(2) | window(3), else: full }, 2: stride(3) }"
    ),
    "conditions that some head groups share": spec_text(
        "all: heads { 0: when { length < 8: full, length < 16: stride(2), else: window(3) },"
        " 1: when { length < 8: full, else: window(2) },"
        " 2: when { length < 8: window(3) | sink(1), else: sink(1) | window(3) } }"
    ),
    "heads within the cases of when": spec_text(
        "all: when { length < 9: heads { 0: full, else: window(3) },"
        " phase == decode: heads { 0..1: stride(2), else: full }, else: power_of_two(2) }"
    ),
    "heads that are not side by side": spec_text("all: heads { [0, 2, 4]: full, else: window(3) }", heads=7, kv_heads=7),
    "q and k taken over by several launches": spec_text(
        "0: heads { 0: full { rope = none }, else: window(4) }\n"
        "1: heads { 0: full { rope = none }, else: window(4) } { qk_from = previous }"
    ),
    "q and k taken over past a convolution": spec_text(
        "0: full\n1: conv(3)\n2: full { qk_from = previous, output_gate = silu }\n3: window(4)"
    ),
    "ranks taken over from a ring": spec_text(
        "0: sink(1) | window(4) { positions = consecutive }\n"
        "1: sink(1) | window(4) { positions = consecutive, qk_from = previous, short_conv = 3 }"
    ),
    "q for k, and a plain mean": spec_text(
        "all: full { share_qk = true, short_conv = 3, qk_norm = rms, score = uniform }", kv_heads=6
    ),
    "all that stands between projections and output": spec_text(
        "all: heads { 0: full, else: window(5) }"
        " { qk_norm = l2, short_conv = 2, output_norm = rms, output_gate = linear, scale = learned(init = 2) }"
    ),
    "every number of the model": spec_text(
        "all: heads { 0: full { temperature = 0.5 }, else: sink(1) | window(5) }",
        ", embedding_scale = 3, residual_scale = 0.5, logit_scale = 2, logit_cap = 3, score_cap = 2, score_scale = 0.7,"
        " norm_place = sandwich, bias = all, tie = true",
    ),
    "learned keys beside a sink logit": spec_text(
        "all: persistent(2) | window(4) { sink_logit = learned, temperature = log_position(floor_scale = 3) }",
        ", score_cap = 2",
    ),
    "learned keys under softplus": spec_text("all: persistent(2) | window(4) { score = softplus(exponent = 3) }"),
    "learned keys have no rank": spec_text("all: persistent(2) | window(4) { positions = consecutive }"),
    "learned keys alone": spec_text("all: persistent(3)"),
    "chunks that turn by their own heads' rotation": spec_text(
        "all: heads { 0: window(2), else: summary(4) | window(8, aligned = 4) { rope = 50 } }"
    ),
    "learned keys of launches that have some heads each": spec_text(
        "all: heads { 0: persistent(2) | full { rope = none }, else: persistent(2) | window(4) }"
    ),
    "a query that is not among its keys has the next rank": spec_text("all: sink(3) { positions = consecutive }"),
    "ranks in both directions": spec_text(
        "all: heads { 0: full, 1: window(4), 2: stride(2) } { positions = consecutive, rope = 100 }", ", causal = false"
    ),
    "blocks in both directions": spec_text(
        "all: block_local(5, shift = 40%) { positions = chunk, temperature = log_position(floor_scale = 3) }",
        ", causal = false",
    ),
    "chains of sums and products": spec_text("all: (full >> (window(3) + conv(2))) >> gate(full, conv(3), by = product)"),
    "gates of gates with parts of the same name": spec_text(
        "all: gate(gate(full, full, full_2, by = softmax), full, conv(2))", mixes="mix full_2 = window(2)"
    ),
    "a gate shares projections": spec_text(
        "0: gate(window(8, aligned = 4), full | stride(4), by = sigmoid, shared = [q])\n"
        "1: gate(window(5), heads { 0: full, else: stride(4) }, window(3), by = softmax, shared = [q, v, k]) + conv(3)",
        ", bias = all, value_dim = 6",
    ),
    "a gate between phases": spec_text("all: gate(when { phase == decode: full, else: window(25%) }, window(3), by = sigmoid)"),
    "keys and values of one latent": spec_text(
        "0: full\n1: heads { 0: window(4), 1: sink(2) | window(6), else: stride(3) }",
        ", value_dim = 6, kv_latent = 10, rope_dim = 4, bias = qkv",
    ),
    "a latent without positions under what stands around it": spec_text(
        "all: sink(1) | window(5) { kv_latent = 12, rope = none, sink_logit = learned, output_gate = sigmoid,"
        " output_norm = rms, temperature = log_position(floor_scale = 3) }",
        ", score_cap = 2",
        kv_heads=6,
    ),
    "a latent under conditions": spec_text(
        "all: when { length < 9: full, phase == decode: sink(2) | window(4), else: heads { 0: full, else: window(3) } }"
        " { kv_latent = 12, rope_dim = 6, rope_scale = linear(2) }"
    ),
    "a latent under softplus": spec_text("all: full { kv_latent = 12, rope_dim = 2, score = softplus(exponent = 3) }"),
    "a latent that looks ahead": spec_text("all: window(5) { kv_latent = 12, rope_dim = 4 }", ", causal = false"),
    "latents in branches": spec_text(
        "0: gate(full { kv_latent = 12, rope_dim = 4 }, window(3) { kv_latent = 8, rope_dim = 4 }, by = softmax)\n"
        "1: (window(4) { kv_latent = 9, rope_dim = 2 }) + full"
    ),
    "a convolution alone, with no use for what its model says of mixers": spec_text(
        "all: conv(3, expand = 2)",
        ", norm_place = sandwich, bias = all, activation = silu, input_ema = 2, output_norm = rms, output_gate = silu,"
        " scale = learned(init = 2), short_conv = 3",
    ),
    "no feed-forward between two norms": spec_text("all: full", ", norm_place = sandwich").replace("swiglu(32)", "none"),
    "words of Python as names of parts": spec_text(
        "all: (forward + class) >> gate(training, call) >> (self + slot)",
        mixes="\n".join(
            f"mix {word} = window({n})" for n, word in enumerate(("forward", "class", "training", "call", "self", "slot"), 2)
        ),
    ),
    "a choice at its default, by shares": spec_text(
        "all: heads { 0: choose(per = head) { a: window(30%), b: full }, else: block_local(25%, shift = 50%) | sink(1) }"
    ),
    "choices of parts with weights of their own, in parts and in choices": spec_text(
        "0: (full >> choose(per = layer) { a: linear(update = delta) { qk_norm = l2 }, b: full }) { output_gate = silu }\n"
        "1: choose(per = layer) { a: choose(per = layer) { a: linear, b: full }, b: full }\n"
        "2: conv(3) + choose(per = layer) { a: full >> conv(2), b: full }"
    ),
    "a route as what is chosen": spec_text(
        "all: choose(per = layer) { a: route(per = token, by = router(linear)) { a: full, b: window(3) }, b: window(4) }"
        " { output_norm = rms }",
    ).replace("rms(1e-6)", "layer(1e-5)"),
    "matrix states with fixed decays, and Lightning as MiniCPM-SALA has it": spec_text(
        "0: linear { activation = none, scale = learned(init = 2) }\n"
        "1: linear(decay = slopes) { kv_heads = 6, rope = 100, rope_dim = 4, qk_norm = rms, output_norm = rms,"
        " output_gate = sigmoid }\n"
        "2: full + linear(decay = retention, feature = elu, normalize = sum) { qk_heads = 2, value_dim = 5 }",
        ", bias = all",
    ),
    "matrix states of some heads, the others softmaxes": spec_text(
        "0: heads { [0, 2]: linear(update = delta, decay = scalar) { short_conv = 3, qk_norm = l2, output_norm = rms,"
        " output_gate = silu }, else: full { sink_logit = learned } } { scale = learned(init = 2) }\n"
        "1: window(4) + heads { 0: linear(decay = vector, key = one_minus_decay), 1: linear(decay = slopes) { rope = 100 },"
        " 2: when { length < 9: full, else: window(3) } } { qk_norm = rms, output_norm = rms }",
        ", bias = all",
    ),
    "matrix states behind feature maps": spec_text(
        "0: linear(feature = taylor(3), decay = vector, normalize = sum) { head_dim = 3 }\n"
        "1: linear(feature = favor, normalize = sum)\n"
        "2: linear(feature = hedgehog, decay = scalar) { qk_norm = l2, short_conv = 3 }\n"
        "3: gate(linear(feature = softmax), linear(feature = relu, decay = vector, lower_bound = 0.3), by = softmax)"
    ),
    "matrix states that erase": spec_text(
        "0: linear(update = delta, decay = vector, erase = vector, write = vector, beta = 2) { qk_norm = l2, value_dim = 5 }\n"
        "1: linear(update = delta, write = vector) { qk_norm = l2, qk_heads = 3, kv_heads = 2, rope = 10 }\n"
        "2: choose(per = layer) { state: linear(update = delta, decay = scalar, erase = vector, lower_bound = learned)"
        " { qk_norm = l2 }, attention: full }\n"
        "3: linear(decay = scalar, key = one_minus_decay, lower_bound = learned)"
    ),
    "matrix states that see both ways": spec_text(
        "0: linear(feature = elu, normalize = sum) { rope = 100 }\n1: linear(feature = taylor(2)) { short_conv = none }",
        ", causal = false",
    ),
    "state spaces of every form": spec_text(
        "0: ssm(s4d, state = 6, expand = 2) { scale = 0.5 }\n1: ssm(mamba, state = 3) { short_conv = 3, output_gate = silu }\n"
        "2: ssm(mamba2, state = 5) { heads = 4, head_dim = 6, short_conv = 2, output_gate = silu, output_norm = rms }",
        ", norm_place = sandwich, bias = all",
    ),
    "state spaces beside others": spec_text(
        "0: gate(window(3), ssm(mamba2, state = 3) { heads = 2, head_dim = 4 }, by = product)\n"
        "1: full >> ssm(mamba, state = 2, expand = 2) { scale = learned(init = 2) }\n"
        "2: ssm(s4d, state = 2) + ssm(s4d, state = 4) { output_gate = sigmoid }",
    ),
    "a state space that sees both ways": spec_text("all: full + ssm(s4d, state = 4)", ", causal = false"),
    "states that are vectors": spec_text(
        "0: linear(decay = vector, state = vector, lower_bound = learned) { short_conv = 3, output_norm = rms }\n"
        "1: linear(decay = scalar, state = vector) { kv_heads = 2, value_dim = 5, output_gate = silu }\n"
        "2: linear(decay = vector, state = vector, lower_bound = learned)"
    ),
    "a route per token": spec_text("all: route(per = token, by = router(linear)) { exact: full, near: window(4) }"),
    "a route with all that it can say": spec_text(
        "0: route(per = token, by = router(linear, estimator = straight_through)) { a: full, b: window(4), c: sink(2) }"
        " { qk_norm = rms, output_norm = rms, output_gate = silu, temperature = 2, rope_scale = yarn(4, original = 8) }\n"
        "1: window(4) + (route(per = token, by = router(linear)) { a: stride(3), b: window(25%) })",
        ", score_cap = 2, value_dim = 6",
    ),
}


@pytest.mark.parametrize("name", SPECS)
def test_a_composition_equals_the_oracle_in_every_phase(name, tmp_path):
    case = Case.of(check_text(SPECS[name]), tmp_path / "built", tokens=30)
    case.check_sizes()
    for way in WAYS:
        case.model.use(way)
        case.check(case.model)


def test_the_compositions_owe_laws_of_every_sort():
    laws = [owed(check_text(text)) for text in SPECS.values()]
    assert any("decode" in one for one in laws)
    assert any("by_phase" in one for one in laws)
    assert any("causal" not in one for one in laws)


def test_a_route_in_float32_rounds_like_the_oracle(tmp_path):
    case = Case.of(check_text(SPECS["a route per token"]), tmp_path / "built")
    case.check(case.narrow(), ("training", "prefill", "decode by 16"), FLOAT32)
