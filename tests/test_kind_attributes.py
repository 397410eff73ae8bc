"""Which attributes mean something for a kind, and which tensors it learns."""

from __future__ import annotations

import pytest
from kind_values import KINDS, kind_of, problems, spec

from attnc.compiler.mixers import MIXERS
from attnc.compiler.print_value import print_value

ATTRIBUTES = {
    "activation": "gelu",
    "input_ema": "4",
    "heads": "4",
    "kv_heads": "8",
    "qk_heads": "4",
    "head_dim": "32",
    "value_dim": "32",
    "rope": "10000",
    "rope_dim": "16",
    "positions": "consecutive",
    "qk_norm": "l2",
    "short_conv": "4",
    "share_qk": "true",
    "qk_from": "previous",
    "init_qk": "normal",
    "score": "uniform",
    "temperature": "0.5",
    "sink_logit": "learned",
    "output_norm": "rms",
    "output_gate": "silu",
    "scale": "learned(init = 0)",
    "kv_latent": "16",
    "proportional": "true",
    "causal": "true",
}
AROUND = {"activation", "input_ema", "scale", "output_gate", "causal"}
HEADS = {"heads", "kv_heads", "head_dim", "value_dim", "qk_norm", "short_conv", "init_qk", "output_norm", "rope", "rope_dim"}
TAKEN = {
    "linear": AROUND | HEADS | {"qk_heads"},
    "memory(linear)": AROUND | HEADS,
    "ssm(s4d)": AROUND,
    "ssm(mamba)": AROUND | {"short_conv"},
    "ssm(mamba2)": AROUND | {"short_conv", "heads", "head_dim", "output_norm"},
    "recurrent(gru)": AROUND,
    "feedback": AROUND,
    "conv(3)": {"causal"},
}


@pytest.mark.parametrize("expression", TAKEN)
def test_a_kind_takes_the_attributes_that_mean_something_for_it(expression):
    taken = set()
    for key, value in ATTRIBUTES.items():
        found = problems(f"{expression} {{ {key} = {value} }}")
        assert {one.code for one in found} <= {"A213"}, found
        assert all(one.span.text == f"{key} = {value}" for one in found)
        taken |= set() if found else {key}
    assert taken == TAKEN[expression]


def test_one_codebook_holds_what_a_union_does_not_show():
    assert [one.code for one in problems("codebook(8) | codebook(16)")] == ["A213"]
    assert not problems("window(8) | codebook(16)")


def test_positions_may_count_the_chunks_of_a_summary():
    assert not problems("summary(8) { positions = chunk }")
    assert [one.code for one in problems("(summary(8) | window(16, aligned = 4)) { positions = chunk }")] == ["A213"]


@pytest.mark.parametrize("name", KINDS)
def test_learned_tensors_have_names_of_their_own_and_sizes(name):
    for example in MIXERS[name].examples:
        found = spec(print_value(example))
        mixer = found.layers[1].mixer
        weights = MIXERS[name].weights(example, mixer.attributes, found.model)
        assert len({one.name for one in weights}) == len(weights)
        assert all(size > 0 for one in weights for size in one.shape)


WEIGHTS = {
    # one map of the token a head and channel, and one strength for erasing and writing
    "linear(update = delta, decay = vector)": {
        "decay_proj.weight": (8 * 64, 64),
        "A_log": (8,),
        "dt_bias": (8 * 64,),
        "erase_proj.weight": (8, 64),
    },
    "linear(decay = vector, key = one_minus_decay, lower_bound = learned)": {
        "decay_proj.weight": (8 * 64, 64),
        "lower_bound.weight": (8 * 64,),
    },
    "linear(update = delta, write = vector)": {"erase_proj.weight": (8, 64), "write_proj.weight": (8 * 64, 64)},
    "ssm(s4d, state = 6) { scale = learned }": {
        "in_proj.weight": (64, 64),
        "dt_log": (64,),
        "A_log": (64, 3),
        "A_imag": (64, 3),
        "C": (64, 3, 2),
        "D": (64,),
        "out_proj.weight": (64, 64),
        "scale": (64,),
    },
    "ssm(mamba, state = 4, expand = 2) { short_conv = 3 }": {
        "in_proj.weight": (128, 64),
        "dt_down.weight": (4, 128),
        "dt_up.weight": (128, 4),
        "dt_bias": (128,),
        "B_proj.weight": (4, 128),
        "C_proj.weight": (4, 128),
        "A_log": (128, 4),
        "D": (128,),
        "conv.weight": (128, 3),
        "conv.bias": (128,),
        "out_proj.weight": (64, 128),
    },
    "ssm(mamba2) { heads = 4, head_dim = 8, short_conv = 4, output_gate = silu, output_norm = rms }": {
        "in_proj.weight": (32, 64),
        "B_proj.weight": (16, 64),
        "C_proj.weight": (16, 64),
        "dt_proj.weight": (4, 64),
        "dt_bias": (4,),
        "A_log": (4,),
        "D": (4,),
        "conv.weight": (64, 4),
        "conv.bias": (64,),
        "output_gate.weight": (32, 64),
        "output_norm.weight": (32,),
        "out_proj.weight": (64, 32),
    },
    "memory(swiglu, lr = 0.1)": {"net.gate": (8, 256, 64), "net.up": (8, 256, 64), "net.down": (8, 64, 256)},
    "memory(mlp(depth = 3, expand = 2), lr = learned(per = head))": {
        "net.map_0": (8, 128, 64),
        "net.map_1": (8, 128, 128),
        "net.map_2": (8, 64, 128),
        "lr": (8,),
    },
    "memory(linear, norm = layer)": {
        "net.map_0": (8, 64, 64),
        "lr_proj.weight": (8, 64),
        "lr_proj.bias": (8,),
        "net_norm.weight": (8, 64),
        "net_norm.bias": (8, 64),
    },
    "codebook(32)": {"codebook": (4, 32, 64), "codebook_count": (4, 32)},
    "routed(tokens, top_k = 4, keys = indexer(heads = 2, head_dim = 16))": {
        "indexer.q_proj.weight": (32, 64),
        "indexer.k_proj.weight": (16, 64),
        "indexer.k_norm.weight": (16,),
        "indexer.k_norm.bias": (16,),
        "indexer.weight_proj.weight": (2, 64),
    },
}


@pytest.mark.parametrize(("expression", "expected"), WEIGHTS.items())
def test_the_shapes_of_learned_tensors(expression, expected):
    found = spec(expression)
    kind, attributes = kind_of(found), found.layers[1].mixer.attributes
    weights = MIXERS[kind.kind].weights(kind, attributes, found.model)
    assert {one.name: one.shape for one in weights} == expected
