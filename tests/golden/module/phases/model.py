"""phases

Built by attnc 0.1.0 from phases.attn (sha256 3e99635076cb). Do not edit: change the spec and build again.

Legend: T tokens of all sequences, one after another without padding; H query heads; G key and value heads; D key width;
E value width; W model width. `call` holds where each sequence begins (call.batch) and what decoding keeps (call.cache).
"""

from __future__ import annotations

from torch import Tensor, nn

from . import reference
from .runtime.cache import Growing, LayerPlan, Slots
from .runtime.call import Call
from .runtime.intervals import FULL, HeadGroup, Near
from .runtime.layers import FeedForward, RMSNorm
from .runtime.mix import Guard, Mix, Variant
from .runtime.model import BuiltModel
from .runtime.rotary import Rope, rotate_by
from .runtime.sizes import Share

# How each launch runs, by kind of device and phase; plan.json has the prices, the runners-up and the refusals.
PROVIDERS = {
    "cuda": {
        "BlockLocalFullWindowAttention": {"train": "triton", "prefill": "triton", "decode": "triton"},
    },
    "cpu": {
        "BlockLocalFullWindowAttention": {"train": "torch", "prefill": "torch", "decode": "torch"},
    },
}


class BlockLocalFullWindowAttention(nn.Module):
    """6 query heads on 3 key and value heads, width 8.

    phases.attn:5  block_local(25%, shift = 50%)
    phases.attn:5  full
    phases.attn:5  window(4)
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
                "BlockLocalFullWindowAttention",
                (
                    Variant(
                        (
                            # phases.attn:5  block_local(25%, shift = 50%)
                            HeadGroup(0, 2, near=(Near(align=Share(25.0), shift=Share(50.0)),), visible=reference.visible_0),
                        ),
                        (Guard("phase", "==", "train"),),
                    ),
                    Variant(
                        (
                            # phases.attn:5  full
                            HeadGroup(0, 2, near=(FULL,), visible=reference.visible_1),
                        ),
                        (Guard("phase", "==", "train", holds=False), Guard("length", "<", 12),),
                    ),
                    Variant(
                        (
                            # phases.attn:5  window(4)
                            HeadGroup(0, 2, near=(Near(back=3),), visible=reference.visible_2),
                        ),
                        (Guard("phase", "==", "train", holds=False), Guard("length", "<", 12, holds=False),),
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
    """Embedding, 1 layer, final norm."""

    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(32, 24)
        self.layers = nn.ModuleList(
            [
                Layer(BlockLocalFullWindowAttention(0)),  # layer 0
            ]
        )
        self.norm = RMSNorm(24, 1e-06)

    def forward(self, tokens: Tensor, call: Call) -> Tensor:  # [T] integers or [T, W] embeddings -> [T, W]
        x = tokens if tokens.is_floating_point() else self.embed_tokens(tokens)
        for layer in self.layers:
            x = layer(x, call)
        return self.norm(x)


class Model(BuiltModel):
    """phases: vocabulary 32, width 24, 1 layer, 7,368 parameters."""

    providers = PROVIDERS
    reference = reference

    def __init__(self) -> None:
        super().__init__()
        self.model = Backbone()
        self.lm_head = nn.Linear(24, 32, bias=False)

    def logits(self, x: Tensor) -> Tensor:  # [T, W] -> [T, vocabulary]
        return self.lm_head(x)
