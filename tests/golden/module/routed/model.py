"""routed

Built by attnc 0.1.0 from routed.attn (sha256 e80854a95ca0). Do not edit: change the spec and build again.

Legend: T tokens of all sequences, one after another without padding; H query heads; G key and value heads; D key width;
E value width; W model width. `call` holds where each sequence begins (call.batch) and what decoding keeps (call.cache).
"""

from __future__ import annotations

from torch import Tensor, nn

from . import reference
from .runtime.cache import Growing, LayerPlan, Slots
from .runtime.call import Call
from .runtime.intervals import HeadGroup
from .runtime.layers import FeedForward, RMSNorm
from .runtime.model import BuiltModel
from .runtime.rotary import Rope, rotate_by
from .runtime.route import TokenRoute, routes

# How each launch runs, by kind of device and phase; plan.json has the prices, the runners-up and the refusals.
PROVIDERS = {
    "cuda": {
    },
    "cpu": {
    },
}


class RoutedAttention(nn.Module):
    """6 query heads on 3 key and value heads, width 8.

    routed.attn:5  route(per = token, by = router(linear)) { exact: full, near: window(4) }
    """

    def __init__(self, slot: int) -> None:
        super().__init__()
        self.slot = slot
        self.q_proj = nn.Linear(24, 6 * 8, bias=False)
        self.k_proj = nn.Linear(24, 3 * 8, bias=False)
        self.v_proj = nn.Linear(24, 3 * 8, bias=False)
        self.o_proj = nn.Linear(6 * 8, 24, bias=False)
        self.rope = Rope(8, 10000.0)
        self.router = nn.Linear(24, 2, bias=False)  # to exact, near
        self.join = nn.Linear(24, 6 * 2, bias=False)
        self.route = TokenRoute((HeadGroup(0, 2, visible=reference.visible_0), HeadGroup(0, 2, visible=reference.visible_1),), scale=0.3535533905932738)

    def plans(self) -> tuple[LayerPlan, ...]:
        """What decoding keeps, one plan a launch."""
        return (
            LayerPlan((Slots(0, 2, Growing()),), key_width=8, value_width=10),
        )

    def forward(self, x: Tensor, call: Call) -> Tensor:  # [T, W] -> [T, W]
        q = self.q_proj(x).unflatten(-1, (6, 8))  # [T, H, D]
        k = self.k_proj(x).unflatten(-1, (3, 8))  # [T, G, D]
        v = self.v_proj(x).unflatten(-1, (3, 8))  # [T, G, E]
        turn = call.angles(self.rope)
        q, k = rotate_by(q, *turn), rotate_by(k, *turn)
        chosen = routes(self.router(x), "gumbel", self.training)  # [T, 2], one-hot
        weights = self.join(x).unflatten(-1, (6, 2)).softmax(dim=-1)  # [T, H, 2]
        o = self.route(q, k, v, chosen, weights, call.batch, call.slot(self.slot))  # [T, H, E]
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
                Layer(RoutedAttention(0)),  # layer 0
            ]
        )
        self.norm = RMSNorm(24, 1e-06)

    def forward(self, tokens: Tensor, call: Call) -> Tensor:  # [T] integers or [T, W] embeddings -> [T, W]
        x = tokens if tokens.is_floating_point() else self.embed_tokens(tokens)
        for layer in self.layers:
            x = layer(x, call)
        return self.norm(x)


class Model(BuiltModel):
    """routed: vocabulary 32, width 24, 1 layer, 7,704 parameters."""

    providers = PROVIDERS
    reference = reference

    def __init__(self) -> None:
        super().__init__()
        self.model = Backbone()
        self.lm_head = nn.Linear(24, 32, bias=False)

    def logits(self, x: Tensor) -> Tensor:  # [T, W] -> [T, vocabulary]
        return self.lm_head(x)
