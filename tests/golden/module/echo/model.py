"""echo

Built by attnc 0.1.0 from echo.attn (sha256 4e7694ab1e24). Do not edit: change the spec and build again.

Legend: T tokens of all sequences, one after another without padding; H query heads; G key and value heads; D key width;
E value width; W model width. `call` holds where each sequence begins (call.batch) and what decoding keeps (call.cache).
"""

from __future__ import annotations

from torch import Tensor, nn

from . import reference
from .runtime.cache import Growing, LayerPlan, Slots
from .runtime.call import Call
from .runtime.intervals import FULL, HeadGroup
from .runtime.layers import FeedForward, RMSNorm
from .runtime.mix import Mix, Variant
from .runtime.model import BuiltModel
from .runtime.rotary import Rope, rotate_by

# How each launch runs, by kind of device and phase; plan.json has the prices, the runners-up and the refusals.
PROVIDERS = {
    "cuda": {
        "FullAttention": {"train": "triton", "prefill": "triton", "decode": "triton"},
        "FullAttention2": {"train": "triton", "prefill": "triton", "decode": "triton"},
    },
    "cpu": {
        "FullAttention": {"train": "torch", "prefill": "torch", "decode": "torch"},
        "FullAttention2": {"train": "torch", "prefill": "torch", "decode": "torch"},
    },
}


class FullAttention(nn.Module):
    """6 query heads on 3 key and value heads, width 8.

    echo.attn:5  full
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
                            # echo.attn:5  full
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
        call.handed["q"], call.handed["k"] = q, k
        turn = call.angles(self.rope)  # cosines and sines, [T, rotated / 2]
        q, k = rotate_by(q, *turn), rotate_by(k, *turn)
        o = self.mixes[0](q, k, v, call.batch, call.slot(self.slot))  # [T, H, E]
        o = o.flatten(-2)  # [T, heads * E]
        return self.o_proj(o)


class FullAttention2(nn.Module):
    """6 query heads on 3 key and value heads, width 8.

    echo.attn:6  full
    """

    def __init__(self, slot: int, source: int) -> None:
        super().__init__()
        self.slot, self.source = slot, source
        self.v_proj = nn.Linear(24, 3 * 8, bias=False)
        self.o_proj = nn.Linear(6 * 8, 24, bias=False)
        self.rope = Rope(8, 10000.0)
        self.mixes = (
            Mix(
                "FullAttention2",
                (
                    Variant(
                        (
                            # echo.attn:6  full
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
            LayerPlan((Slots(0, 2, Growing()),), key_width=8, value_width=8, keys_from=self.source),
        )

    def forward(self, x: Tensor, call: Call) -> Tensor:  # [T, W] -> [T, W]
        v = self.v_proj(x).unflatten(-1, (3, 8))  # [T, G, E]
        q, k = call.handed["q"], call.handed["k"]  # of the nearest earlier layer with its own
        turn = call.angles(self.rope)  # cosines and sines, [T, rotated / 2]
        q, k = rotate_by(q, *turn), rotate_by(k, *turn)
        o = self.mixes[0](q, k, v, call.batch, call.slot(self.slot))  # [T, H, E]
        o = o.flatten(-2)  # [T, heads * E]
        return self.o_proj(o)


class Layer(nn.Module):
    """A residual block, norm first."""

    def __init__(self, mixer: nn.Module) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(24, 1e-06)
        self.self_attn = mixer
        self.post_attention_layernorm = RMSNorm(24, 1e-06)
        self.mlp = FeedForward("swiglu", 24, 32)

    def forward(self, x: Tensor, call: Call) -> Tensor:  # [T, W] -> [T, W]
        x = x + self.self_attn(self.input_layernorm(x), call)
        return x + self.mlp(self.post_attention_layernorm(x))


class Backbone(nn.Module):
    """Embedding, 2 layers, final norm."""

    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(32, 24)
        self.layers = nn.ModuleList(
            [
                Layer(FullAttention(0)),  # layer 0
                Layer(FullAttention2(1, 0)),  # layer 1
            ]
        )
        self.norm = RMSNorm(24, 1e-06)

    def forward(self, tokens: Tensor, call: Call) -> Tensor:  # [T] integers or [T, W] embeddings -> [T, W]
        x = tokens if tokens.is_floating_point() else self.embed_tokens(tokens)
        for layer in self.layers:
            x = layer(x, call)
        return self.norm(x)


class Model(BuiltModel):
    """echo: vocabulary 32, width 24, 2 layers, 10,680 parameters."""

    providers = PROVIDERS
    reference = reference

    def __init__(self) -> None:
        super().__init__()
        self.model = Backbone()
        self.lm_head = nn.Linear(24, 32, bias=False)
        self.lm_head.weight = self.model.embed_tokens.weight

    def logits(self, x: Tensor) -> Tensor:  # [T, W] -> [T, vocabulary]
        return self.lm_head(x)
