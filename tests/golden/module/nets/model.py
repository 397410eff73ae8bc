"""nets

Built by attnc 0.1.0 from nets.attn (sha256 3c9c7cd44f3c). Do not edit: change the spec and build again.

Legend: T tokens of all sequences, one after another without padding; H query heads; G key and value heads; D key width;
E value width; W model width. `call` holds where each sequence begins (call.batch) and what decoding keeps (call.cache).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from . import reference
from .runtime.cache import LayerPlan, Ring, Slots, State
from .runtime.call import Call
from .runtime.fast import Rule
from .runtime.gates import strength
from .runtime.intervals import HeadGroup, Near
from .runtime.layers import FeedForward, RMSNorm, ShortConv, l2_norm
from .runtime.learning import FastWeights, HeadNorm, Net
from .runtime.mix import Mix, Variant
from .runtime.model import BuiltModel
from .runtime.rotary import Rope, rotate_by
from .runtime.stateful import convolve

# How each launch runs, by kind of device and phase; plan.json has the prices, the runners-up and the refusals.
PROVIDERS = {
    "cuda": {
        "MemoryMixer": {"train": "torch", "prefill": "torch", "decode": "torch"},
        "WindowAttention": {"train": "triton", "prefill": "triton", "decode": "triton"},
        "MemoryMixer2": {"train": "torch", "prefill": "torch", "decode": "torch"},
    },
    "cpu": {
        "MemoryMixer": {"train": "torch", "prefill": "torch", "decode": "torch"},
        "WindowAttention": {"train": "torch", "prefill": "torch", "decode": "torch"},
        "MemoryMixer2": {"train": "torch", "prefill": "torch", "decode": "torch"},
    },
}


class MemoryMixer(nn.Module):
    """memory: 6 nets of 8 x 32 x 8, each of which learns in chunks of 16.

    nets.attn:5  memory(mlp, chunk = 16, momentum = learned, decay = 0.01)
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
        self.net = Net({"map_0": (6, 32, 8), "map_1": (6, 8, 32)})
        self.lr_proj = nn.Linear(24, 6)
        self.momentum_proj = nn.Linear(24, 6)
        self.output_norm = RMSNorm(8, 1e-06)
        self.scan = FastWeights("MemoryMixer", Rule(16, momentum=True), formula=reference.fast_weights)

    def plans(self) -> tuple[LayerPlan, ...]:
        """What decoding keeps, one plan a launch."""
        return (
            LayerPlan(
                states=(
                    State("weight.map_0", (6, 32, 8), torch.float32),
                    State("weight.map_1", (6, 8, 32), torch.float32),
                    State("momentum.map_0", (6, 32, 8), torch.float32),
                    State("momentum.map_1", (6, 8, 32), torch.float32),
                    State("gates", (2, 15, 6), torch.float32),
                    State("k", (15, 3, 8)),
                    State("v", (15, 3, 8)),
                    State("q_conv", (2, 48)),
                    State("k_conv", (2, 24)),
                    State("v_conv", (2, 24)),
                )
            ),
        )

    def forward(self, x: Tensor, call: Call) -> Tensor:  # [T, W] -> [T, W]
        q = convolve(self.q_conv, self.q_proj(x), call, self.slot, "q_conv")  # [T, channels]
        q = q.unflatten(-1, (6, 8))  # [T, heads, D]
        k = convolve(self.k_conv, self.k_proj(x), call, self.slot, "k_conv")  # [T, channels]
        k = k.unflatten(-1, (3, 8))  # [T, heads, D]
        v = convolve(self.v_conv, self.v_proj(x), call, self.slot, "v_conv")  # [T, channels]
        v = v.unflatten(-1, (3, 8))  # [T, heads, E]
        q = l2_norm(q)
        k = l2_norm(k)
        lr = strength(self.lr_proj(x))  # [T, H]
        momentum = strength(self.momentum_proj(x))  # [T, H]
        o = self.scan(q, k, v, self.net(), call, self.slot, lr=lr, momentum=momentum, decay=0.01)  # [T, H, E]
        o = self.output_norm(o)
        o = o.flatten(-2)  # [T, heads * E]
        return self.o_proj(o)


class SumMixer(nn.Module):
    """memory alone."""

    def __init__(self, slot: int) -> None:
        super().__init__()
        self.memory = MemoryMixer(slot)

    def forward(self, x: Tensor, call: Call) -> Tensor:  # [T, W] -> [T, W]
        return self.memory(x, call)


class WindowAttention(nn.Module):
    """6 query heads on 3 key and value heads, width 8.

    nets.attn:6  window(4)
    """

    def __init__(self, slot: int) -> None:
        super().__init__()
        self.slot = slot
        self.q_proj = nn.Linear(24, 6 * 8, bias=False)
        self.k_proj = nn.Linear(24, 3 * 8, bias=False)
        self.v_proj = nn.Linear(24, 3 * 8, bias=False)
        self.o_proj = nn.Linear(6 * 8, 24, bias=False)
        self.rope = Rope(8, 10000.0)
        self.mixes = (
            Mix(
                "WindowAttention",
                (
                    Variant(
                        (
                            # nets.attn:6  window(4)
                            HeadGroup(0, 2, near=(Near(back=3),), visible=reference.visible_0),
                        ),
                    ),
                ),
                causal=True,
                scale=0.3535533905932738,
            ),
        )

    def plans(self) -> tuple[LayerPlan, ...]:
        """What decoding keeps, one plan a launch."""
        return (
            LayerPlan((Slots(0, 2, Ring(0, 4)),), key_width=8, value_width=8),
        )

    def forward(self, x: Tensor, call: Call) -> Tensor:  # [T, W] -> [T, W]
        q = self.q_proj(x).unflatten(-1, (6, 8))  # [T, H, D]
        k = self.k_proj(x).unflatten(-1, (3, 8))  # [T, G, D]
        v = self.v_proj(x).unflatten(-1, (3, 8))  # [T, G, E]
        turn = call.angles(self.rope)  # cosines and sines, [T, rotated / 2]
        q, k = rotate_by(q, *turn), rotate_by(k, *turn)
        o = self.mixes[0](q, k, v, call.batch, call.slot(self.slot))  # [T, H, E]
        o = o.flatten(-2)  # [T, heads * E]
        return self.o_proj(o)


class MemoryMixer2(nn.Module):
    """memory: 6 gated nets of 8 x 32 x 8, each of which learns in chunks of 64.

    nets.attn:6  memory(swiglu, lr = learned(per = head), residual = true, norm = layer, read = after_write)
    """

    def __init__(self, slot: int) -> None:
        super().__init__()
        self.slot = slot
        self.q_proj = nn.Linear(24, 6 * 8, bias=False)
        self.k_proj = nn.Linear(24, 3 * 8, bias=False)
        self.v_proj = nn.Linear(24, 3 * 8, bias=False)
        self.o_proj = nn.Linear(6 * 8, 24, bias=False)
        self.net = Net({"gate": (6, 32, 8), "up": (6, 32, 8), "down": (6, 8, 32)})
        self.lr = nn.Parameter(torch.zeros(6))
        self.net_norm = HeadNorm(6, 8)
        self.scan = FastWeights("MemoryMixer2", Rule(64, gated=True, after_write=True, residual=True), formula=reference.fast_weights)

    def plans(self) -> tuple[LayerPlan, ...]:
        """What decoding keeps, one plan a launch."""
        return (
            LayerPlan(
                states=(
                    State("weight.gate", (6, 32, 8), torch.float32),
                    State("weight.up", (6, 32, 8), torch.float32),
                    State("weight.down", (6, 8, 32), torch.float32),
                    State("k", (63, 3, 8)),
                    State("v", (63, 3, 8)),
                )
            ),
        )

    def forward(self, x: Tensor, call: Call) -> Tensor:  # [T, W] -> [T, W]
        q = self.q_proj(x).unflatten(-1, (6, 8))  # [T, heads, D]
        k = self.k_proj(x).unflatten(-1, (3, 8))  # [T, heads, D]
        v = self.v_proj(x).unflatten(-1, (3, 8))  # [T, heads, E]
        lr = strength(self.lr)  # [H]
        o = self.scan(q, k, v, self.net(), call, self.slot, norm=self.net_norm(), lr=lr)  # [T, H, E]
        o = o.flatten(-2)  # [T, heads * E]
        return self.o_proj(o)


class SumMixer2(nn.Module):
    """Outputs added: window + memory."""

    def __init__(self, slot: int) -> None:
        super().__init__()
        self.window = WindowAttention(slot)
        self.memory = MemoryMixer2(slot + 1)

    def forward(self, x: Tensor, call: Call) -> Tensor:  # [T, W] -> [T, W]
        return self.window(x, call) + self.memory(x, call)


class Layer(nn.Module):
    """A residual block, norm first."""

    def __init__(self, mixer: nn.Module) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(24, 1e-06)
        self.mixer = mixer
        self.post_attention_layernorm = RMSNorm(24, 1e-06)
        self.mlp = FeedForward("swiglu", 24, 32)

    def forward(self, x: Tensor, call: Call) -> Tensor:  # [T, W] -> [T, W]
        x = x + self.mixer(self.input_layernorm(x), call)
        return x + self.mlp(self.post_attention_layernorm(x))


class Backbone(nn.Module):
    """Embedding, 2 layers, final norm."""

    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(32, 24)
        self.layers = nn.ModuleList(
            [
                Layer(SumMixer(0)),  # layer 0
                Layer(SumMixer2(1)),  # layer 1
            ]
        )
        self.norm = RMSNorm(24, 1e-06)

    def forward(self, tokens: Tensor, call: Call) -> Tensor:  # [T] integers or [T, W] embeddings -> [T, W]
        x = tokens if tokens.is_floating_point() else self.embed_tokens(tokens)
        for layer in self.layers:
            x = layer(x, call)
        return self.norm(x)


class Model(BuiltModel):
    """nets: vocabulary 32, width 24, 2 layers, 25,010 parameters."""

    providers = PROVIDERS
    reference = reference

    def __init__(self) -> None:
        super().__init__()
        self.model = Backbone()
        self.lm_head = nn.Linear(24, 32, bias=False)

    def logits(self, x: Tensor) -> Tensor:  # [T, W] -> [T, vocabulary]
        return self.lm_head(x)
