"""attributes

Built by attnc 0.1.0 from attributes.attn (sha256 1f967a9ac510). Do not edit: change the spec and build again.

Legend: T tokens of all sequences, one after another without padding; H query heads; G key and value heads; D key width;
E value width; W model width. `call` holds where each sequence begins (call.batch) and what decoding keeps (call.cache).
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import reference
from .runtime.attention_reference import Reference
from .runtime.cache import Growing, LayerPlan, Slots, State
from .runtime.call import Call
from .runtime.intervals import FULL, HeadGroup
from .runtime.layers import FeedForward, RMSNorm, ShortConv, log_position
from .runtime.mix import Mix, Variant
from .runtime.model import BuiltModel
from .runtime.rotary import Rope, rotate_by
from .runtime.stateful import convolve

# How each launch runs, by kind of device and phase; plan.json has the prices, the runners-up and the refusals.
PROVIDERS = {
    "cuda": {
        "FullAttention": {"train": "triton", "prefill": "triton", "decode": "triton"},
        "FullAttention2": {"train": "triton", "prefill": "triton", "decode": "triton"},
    },
    "cpu": {
        "FullAttention": {"train": "torch", "prefill": "torch", "decode": "torch"},
        "FullAttention2": {"train": "reference", "prefill": "reference", "decode": "reference"},
    },
}


class FullAttention(nn.Module):
    """6 query heads on 3 key and value heads, width 8.

    attributes.attn:5  full
    """

    def __init__(self, slot: int) -> None:
        super().__init__()
        self.slot = slot
        self.q_proj = nn.Linear(24, 6 * 8, bias=False)
        self.k_proj = nn.Linear(24, 3 * 8, bias=False)
        self.v_proj = nn.Linear(24, 3 * 8, bias=False)
        self.o_proj = nn.Linear(6 * 8, 24, bias=False)
        self.q_norm = RMSNorm(8, 1e-06)
        self.k_norm = RMSNorm(8, 1e-06)
        self.output_norm = RMSNorm(8, 1e-06)
        self.output_gate = nn.Linear(24, 6 * 8, bias=False)
        self.sink_logit = nn.Parameter(torch.zeros(6))
        self.scale = nn.Parameter(torch.full((24,), 0.5))
        self.rope = Rope(8, 10000.0)
        self.mixes = (
            Mix(
                "FullAttention",
                (
                    Variant(
                        (
                            # attributes.attn:5  full
                            HeadGroup(0, 2, near=(FULL,), visible=reference.visible_0),
                        ),
                    ),
                ),
                causal=True,
                scale=0.3535533905932738,
                cap=4.0,
            ),
        )

    def plans(self) -> tuple[LayerPlan, ...]:
        """What decoding keeps, one plan a launch."""
        return (
            LayerPlan((Slots(0, 2, Growing()),), key_width=8, value_width=8),
        )

    def forward(self, x: Tensor, call: Call) -> Tensor:  # [T, W] -> [T, W]
        q = self.q_proj(x).unflatten(-1, (6, 8))  # [T, H, D]
        k = self.k_proj(x).unflatten(-1, (3, 8))  # [T, G, D]
        v = self.v_proj(x).unflatten(-1, (3, 8))  # [T, G, E]
        q = self.q_norm(q)
        k = self.k_norm(k)
        turn = call.angles(self.rope)  # cosines and sines, [T, rotated / 2]
        q, k = rotate_by(q, *turn), rotate_by(k, *turn)
        o = self.mixes[0](q, k, v, call.batch, call.slot(self.slot), self.sink_logit)  # [T, H, E]
        o = self.output_norm(o)
        o = o.flatten(-2)  # [T, heads * E]
        o = o * F.silu(self.output_gate(x))
        return self.scale * self.o_proj(o)


class FullAttention2(nn.Module):
    """6 query heads on 3 key and value heads, width 8.

    attributes.attn:6  full
    """

    def __init__(self, slot: int) -> None:
        super().__init__()
        self.slot = slot
        self.q_proj = nn.Linear(24, 6 * 8, bias=False)
        self.k_proj = nn.Linear(24, 3 * 8, bias=False)
        self.v_proj = nn.Linear(24, 3 * 8, bias=False)
        self.o_proj = nn.Linear(6 * 8, 24, bias=False)
        self.q_conv = ShortConv(6 * 8, 3)
        self.k_conv = ShortConv(3 * 8, 3)
        self.v_conv = ShortConv(3 * 8, 3)
        self.q_norm = RMSNorm(8, 1e-06)
        self.k_norm = RMSNorm(8, 1e-06)
        self.rope = Rope(8, 10000.0)
        self.mixes = (
            Mix(
                "FullAttention2",
                (
                    Variant(
                        (
                            # attributes.attn:6  full
                            HeadGroup(0, 2, near=(FULL,), visible=reference.visible_0),
                        ),
                    ),
                ),
                causal=True,
                scale=2.0794415416798357,
                cap=4.0,
                reference=Reference(partial(reference.softplus_weights, exponent=3.0)),
            ),
        )

    def plans(self) -> tuple[LayerPlan, ...]:
        """What decoding keeps, one plan a launch."""
        return (
            LayerPlan(
                (Slots(0, 2, Growing()),),
                key_width=8, value_width=8,
                states=(State("q_conv", (2, 48)), State("k_conv", (2, 24)), State("v_conv", (2, 24)),),
            ),
        )

    def forward(self, x: Tensor, call: Call) -> Tensor:  # [T, W] -> [T, W]
        q = convolve(self.q_conv, self.q_proj(x), call, self.slot, "q_conv")  # [T, channels]
        q = q.unflatten(-1, (6, 8))  # [T, H, D]
        k = convolve(self.k_conv, self.k_proj(x), call, self.slot, "k_conv")  # [T, channels]
        k = k.unflatten(-1, (3, 8))  # [T, G, D]
        v = convolve(self.v_conv, self.v_proj(x), call, self.slot, "v_conv")  # [T, channels]
        v = v.unflatten(-1, (3, 8))  # [T, G, E]
        q = self.q_norm(q)
        k = self.k_norm(k)
        turn = call.angles(self.rope)  # cosines and sines, [T, rotated / 2]
        q, k = rotate_by(q, *turn), rotate_by(k, *turn)
        q = log_position(q, call.batch.positions, 8192.0, 0.1)
        o = self.mixes[0](q, k, v, call.batch, call.slot(self.slot))  # [T, H, E]
        o = o.flatten(-2)  # [T, heads * E]
        return self.o_proj(o)


class Layer(nn.Module):
    """A residual block, norms on both sides of each part."""

    def __init__(self, mixer: nn.Module) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(24, 1e-06)
        self.self_attn = mixer
        self.post_attention_layernorm = RMSNorm(24, 1e-06)
        self.pre_feedforward_layernorm = RMSNorm(24, 1e-06)
        self.post_feedforward_layernorm = RMSNorm(24, 1e-06)
        self.mlp = FeedForward("swiglu", 24, 32)

    def forward(self, x: Tensor, call: Call) -> Tensor:  # [T, W] -> [T, W]
        x = x + self.post_attention_layernorm(self.self_attn(self.input_layernorm(x), call))
        return x + self.post_feedforward_layernorm(self.mlp(self.pre_feedforward_layernorm(x)))


class Backbone(nn.Module):
    """Embedding, 2 layers, final norm."""

    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(32, 24)
        self.layers = nn.ModuleList(
            [
                Layer(FullAttention(0)),  # layer 0
                Layer(FullAttention2(1)),  # layer 1
            ]
        )
        self.norm = RMSNorm(24, 1e-06)

    def forward(self, tokens: Tensor, call: Call) -> Tensor:  # [T] integers or [T, W] embeddings -> [T, W]
        x = tokens if tokens.is_floating_point() else self.embed_tokens(tokens)
        for layer in self.layers:
            x = layer(x, call)
        return self.norm(x)


class Model(BuiltModel):
    """attributes: vocabulary 32, width 24, 2 layers, 14,782 parameters."""

    providers = PROVIDERS
    reference = reference

    def __init__(self) -> None:
        super().__init__()
        self.model = Backbone()
        self.lm_head = nn.Linear(24, 32, bias=False)

    def logits(self, x: Tensor) -> Tensor:  # [T, W] -> [T, vocabulary]
        return 5.0 * torch.tanh((self.lm_head(x)) / 5.0)
