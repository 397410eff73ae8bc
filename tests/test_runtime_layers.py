"""Rotary positions, norms and feed-forward against the models that the weights come from."""

from __future__ import annotations

import pytest
import torch
from transformers.activations import ACT2FN
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.configuration_llama import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm, LlamaRotaryEmbedding, apply_rotary_pos_emb

from attnc.runtime.layers import FeedForward, RMSNorm, l2_norm
from attnc.runtime.rotary import LinearScale, Llama3, Rope, Yarn, angles, frequencies, rotate

SCALES = [
    (None, {"rope_type": "default"}),
    (LinearScale(8.0), {"rope_type": "linear", "factor": 8.0}),
    (Yarn(32.0, 4096), {"rope_type": "yarn", "factor": 32.0, "original_max_position_embeddings": 4096}),
    (Yarn(1.0, 64), {"rope_type": "yarn", "factor": 1.0, "original_max_position_embeddings": 64}),
    (Yarn(4.0, 32768), {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}),
    (
        Llama3(8.0, 1.0, 4.0, 8192),
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    ),
]


def llama_rotary(parameters, base, width):
    config = LlamaConfig(
        hidden_size=2 * width,
        num_attention_heads=2,
        head_dim=width,
        max_position_embeddings=131072,
        rope_parameters={"rope_theta": base, **parameters},
    )
    return LlamaRotaryEmbedding(config)


@pytest.mark.parametrize("width", [16, 64, 128])
@pytest.mark.parametrize("base", [10000.0, 500000.0])
@pytest.mark.parametrize(("scale", "parameters"), SCALES, ids=lambda x: x.get("rope_type") if isinstance(x, dict) else "")
def test_rotation_equals_that_of_transformers_bit_for_bit(scale, parameters, base, width):
    theirs = llama_rotary(parameters, base, width)
    rope = Rope(width, base, scale)
    radians, factor = frequencies(rope)
    assert torch.equal(radians, theirs.inv_freq)
    assert factor == theirs.attention_scaling
    positions = torch.tensor([0, 1, 2, 17, 4095, 100000])
    x = torch.randn(len(positions), 3, width)
    cos, sin = theirs(x, positions[None])
    wanted = apply_rotary_pos_emb(x.transpose(0, 1)[None], x.transpose(0, 1)[None], cos, sin)[0][0].transpose(0, 1)
    torch.testing.assert_close(rotate(x, positions, rope), wanted, rtol=0, atol=2e-6)
    assert torch.equal(angles(rope, positions)[0], cos[0, :, : width // 2])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_only_the_first_channels_turn_and_lengths_and_dtypes_stay(dtype):
    x = torch.randn(5, 2, 10).to(dtype)
    turned = rotate(x, torch.arange(5), Rope(6, 100.0))
    assert turned.dtype == dtype
    assert torch.equal(turned[..., 6:], x[..., 6:])
    assert torch.equal(turned[0], x[0])
    close = {torch.bfloat16: 0.03, torch.float16: 0.004, torch.float32: 1e-6, torch.float64: 1e-6}[dtype]
    torch.testing.assert_close(turned.double().norm(dim=-1), x.double().norm(dim=-1), rtol=close, atol=close)
    wide = rotate(x.double(), torch.arange(5), Rope(6, 100.0))
    torch.testing.assert_close(turned.double(), wide, rtol=torch.finfo(dtype).eps, atol=2e-7)
    assert rotate(x, torch.arange(5), None) is x


def test_products_of_rotated_vectors_depend_on_the_distance_alone():
    rope = Rope(8, 1000.0)
    q, k = torch.randn(1, 1, 8, dtype=torch.float64), torch.randn(1, 1, 8, dtype=torch.float64)
    near, far = ((rotate(q, torch.tensor([i + 7]), rope) * rotate(k, torch.tensor([i]), rope)).sum() for i in (0, 300))
    torch.testing.assert_close(near, far, rtol=1e-4, atol=1e-5)


def test_norms_equal_those_of_llama_and_gemma():
    x = torch.randn(7, 12) * 3
    weight = torch.randn(12)
    for own, theirs in (
        (RMSNorm(12, 1e-5), LlamaRMSNorm(12, 1e-5)),
        (RMSNorm(12, 1e-6, centre=1), GemmaRMSNorm(12, 1e-6)),
    ):
        torch.testing.assert_close(own(x), theirs(x), rtol=0, atol=2e-6)
        own.weight.data.copy_(weight)
        theirs.weight.data.copy_(weight)
        torch.testing.assert_close(own(x), theirs(x), rtol=1e-6, atol=2e-6)
        assert own(x.bfloat16()).dtype == torch.bfloat16
        assert own.double()(x.double()).dtype == torch.float64


def test_the_l2_norm_makes_heads_of_length_one():
    x = torch.randn(4, 2, 8, dtype=torch.float64)
    wanted = x / (x.square().sum(-1, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(l2_norm(x), wanted, rtol=1e-14, atol=0)
    assert l2_norm(torch.zeros(2, 3)).tolist() == [[0.0] * 3] * 2


@pytest.mark.parametrize(("kind", "activation"), [("swiglu", "silu"), ("geglu", "gelu_pytorch_tanh")])
def test_gated_feed_forward_equals_that_of_llama_and_gemma(kind, activation):
    own = FeedForward(kind, 6, 10)
    theirs = LlamaMLP(LlamaConfig(hidden_size=6, num_attention_heads=1, intermediate_size=10, hidden_act=activation))
    theirs.load_state_dict(own.state_dict())
    x = torch.randn(5, 6)
    assert torch.equal(own(x), theirs(x))


@pytest.mark.parametrize(("kind", "activation"), [("gelu", "gelu"), ("relu", "relu")])
def test_plain_feed_forward_has_no_gate(kind, activation):
    own = FeedForward(kind, 6, 10, bias=True)
    assert sorted(own.state_dict()) == ["down_proj.bias", "down_proj.weight", "up_proj.bias", "up_proj.weight"]
    x = torch.randn(5, 6)
    assert torch.equal(own(x), own.down_proj(ACT2FN[activation](own.up_proj(x))))
