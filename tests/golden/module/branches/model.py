"""branches

Built by attnc 0.1.0 from branches.attn (sha256 8c59fa4928bc). Do not edit: change the spec and build again.

Legend: T tokens of all sequences, one after another without padding; H query heads; G key and value heads; D key width;
E value width; W model width. `call` holds where each sequence begins (call.batch) and what decoding keeps (call.cache).
"""

from __future__ import annotations

from torch import Tensor, nn

from . import reference
from .runtime.cache import Growing, LayerPlan, Ring, Slots, State
from .runtime.call import Call
from .runtime.convolution import GatedConvolution
from .runtime.intervals import FULL, HeadGroup, Near
from .runtime.layers import FeedForward, ProductGate, RMSNorm
from .runtime.mix import Mix, Variant
from .runtime.model import BuiltModel
from .runtime.rotary import Rope, rotate_by
from .runtime.stateful import Weight

# How each launch runs, by kind of device and phase; plan.json has the prices, the runners-up and the refusals.
PROVIDERS = {
    "cuda": {
        "FullAttention": {"train": "triton", "prefill": "triton", "decode": "triton"},
        "ConvMixer": {"train": "torch", "prefill": "torch", "decode": "torch"},
        "FullAttention2": {"train": "triton", "prefill": "triton", "decode": "triton"},
        "WindowAttention": {"train": "triton", "prefill": "triton", "decode": "triton"},
        "FullAttention3": {"train": "triton", "prefill": "triton", "decode": "triton"},
        "WindowAttention2": {"train": "triton", "prefill": "triton", "decode": "triton"},
    },
    "cpu": {
        "FullAttention": {"train": "torch", "prefill": "torch", "decode": "torch"},
        "ConvMixer": {"train": "torch", "prefill": "torch", "decode": "torch"},
        "FullAttention2": {"train": "torch", "prefill": "torch", "decode": "torch"},
        "WindowAttention": {"train": "torch", "prefill": "torch", "decode": "torch"},
        "FullAttention3": {"train": "torch", "prefill": "torch", "decode": "torch"},
        "WindowAttention2": {"train": "torch", "prefill": "torch", "decode": "torch"},
    },
}


class FullAttention(nn.Module):
    """6 query heads on 3 key and value heads, width 8.

    branches.attn:5  full
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
                "FullAttention",
                (
                    Variant(
                        (
                            # branches.attn:5  full
                            HeadGroup(0, 2, near=(FULL,), visible=reference.visible_0),
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
            LayerPlan((Slots(0, 2, Growing()),), key_width=8, value_width=8),
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


class ConvMixer(nn.Module):
    """conv: shifted inputs.

    branches.attn:5  conv(3)
    """

    def __init__(self, slot: int) -> None:
        super().__init__()
        self.slot = slot
        self.in_proj = nn.Linear(24, 72, bias=False)
        self.conv = Weight((24, 3))
        self.out_proj = nn.Linear(24, 24, bias=False)
        self.scan = GatedConvolution("ConvMixer", formula=reference.gated_convolution)

    def plans(self) -> tuple[LayerPlan, ...]:
        """What decoding keeps, one plan a launch."""
        return (
            LayerPlan(states=(State("conv", (2, 24)),)),
        )

    def forward(self, x: Tensor, call: Call) -> Tensor:  # [T, W] -> [T, W]
        y = self.scan(x, call, self.slot, self.in_proj(x), self.conv.weight)  # [T, 24]
        return self.out_proj(y)


class SumMixer(nn.Module):
    """Outputs added: full + conv."""

    def __init__(self, slot: int) -> None:
        super().__init__()
        self.full = FullAttention(slot)
        self.conv = ConvMixer(slot + 1)

    def forward(self, x: Tensor, call: Call) -> Tensor:  # [T, W] -> [T, W]
        return self.full(x, call) + self.conv(x, call)


class FullAttention2(nn.Module):
    """6 query heads on 3 key and value heads, width 8.

    branches.attn:6  full
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
                "FullAttention2",
                (
                    Variant(
                        (
                            # branches.attn:6  full
                            HeadGroup(0, 2, near=(FULL,), visible=reference.visible_0),
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
            LayerPlan((Slots(0, 2, Growing()),), key_width=8, value_width=8),
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


class WindowAttention(nn.Module):
    """6 query heads on 3 key and value heads, width 8.

    branches.attn:6  window(4)
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
                            # branches.attn:6  window(4)
                            HeadGroup(0, 2, near=(Near(back=3),), visible=reference.visible_1),
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


class GateMixer(nn.Module):
    """Branches weighed by a gate: full, window."""

    def __init__(self, slot: int) -> None:
        super().__init__()
        self.full = FullAttention2(slot)
        self.window = WindowAttention(slot + 1)
        self.gate = ProductGate(24, 1e-06, ("full", "window"))

    def forward(self, x: Tensor, call: Call) -> Tensor:  # [T, W] -> [T, W]
        y_full = self.full(x, call)  # [T, W]
        y_window = self.window(x, call)  # [T, W]
        return self.gate(y_full, y_window)  # the product of the normalised branches


class FullAttention3(nn.Module):
    """6 query heads on 3 key and value heads, width 8.

    branches.attn:7  full
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
                "FullAttention3",
                (
                    Variant(
                        (
                            # branches.attn:7  full
                            HeadGroup(0, 2, near=(FULL,), visible=reference.visible_0),
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
            LayerPlan((Slots(0, 2, Growing()),), key_width=8, value_width=8),
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


class WindowAttention2(nn.Module):
    """6 query heads on 3 key and value heads, width 8.

    branches.attn:7  window(4)
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
                "WindowAttention2",
                (
                    Variant(
                        (
                            # branches.attn:7  window(4)
                            HeadGroup(0, 2, near=(Near(back=3),), visible=reference.visible_1),
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


class ChainMixer(nn.Module):
    """One reads the other: full >> window."""

    def __init__(self, slot: int) -> None:
        super().__init__()
        self.full = FullAttention3(slot)
        self.window = WindowAttention2(slot + 1)

    def forward(self, x: Tensor, call: Call) -> Tensor:  # [T, W] -> [T, W]
        x = self.full(x, call)
        return self.window(x, call)


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
    """Embedding, 3 layers, final norm."""

    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(32, 24)
        self.layers = nn.ModuleList(
            [
                Layer(SumMixer(0)),  # layer 0
                Layer(GateMixer(2)),  # layer 1
                Layer(ChainMixer(4)),  # layer 2
            ]
        )
        self.norm = RMSNorm(24, 1e-06)

    def forward(self, tokens: Tensor, call: Call) -> Tensor:  # [T] integers or [T, W] embeddings -> [T, W]
        x = tokens if tokens.is_floating_point() else self.embed_tokens(tokens)
        for layer in self.layers:
            x = layer(x, call)
        return self.norm(x)


class Model(BuiltModel):
    """branches: vocabulary 32, width 24, 3 layers, 28,320 parameters."""

    providers = PROVIDERS
    reference = reference

    def __init__(self) -> None:
        super().__init__()
        self.model = Backbone()
        self.lm_head = nn.Linear(24, 32, bias=False)

    def logits(self, x: Tensor) -> Tensor:  # [T, W] -> [T, vocabulary]
        return self.lm_head(x)
