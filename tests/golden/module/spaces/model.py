"""spaces

Built by attnc 0.1.0 from spaces.attn (sha256 14368a2c5e42). Do not edit: change the spec and build again.

Legend: T tokens of all sequences, one after another without padding; H query heads; G key and value heads; D key width;
E value width; W model width. `call` holds where each sequence begins (call.batch) and what decoding keeps (call.cache).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import reference
from .runtime.cache import LayerPlan, State
from .runtime.call import Call
from .runtime.channels import ChannelStates, Channels, gated, zero_order_hold
from .runtime.gates import sigmoid_decay, time_step, wide
from .runtime.layers import FeedForward, RMSNorm, ShortConv
from .runtime.model import BuiltModel
from .runtime.scan import MatrixStates
from .runtime.stateful import convolve

# How each launch runs, by kind of device and phase; plan.json has the prices, the runners-up and the refusals.
PROVIDERS = {
    "cuda": {
        "SsmMixer": {"train": "triton", "prefill": "triton", "decode": "triton"},
        "SsmMixer2": {"train": "triton", "prefill": "triton", "decode": "triton"},
        "SsmMixer3": {"train": "torch", "prefill": "torch", "decode": "torch"},
        "LinearMixer": {"train": "triton", "prefill": "triton", "decode": "triton"},
    },
    "cpu": {
        "SsmMixer": {"train": "torch", "prefill": "torch", "decode": "torch"},
        "SsmMixer2": {"train": "torch", "prefill": "torch", "decode": "torch"},
        "SsmMixer3": {"train": "torch", "prefill": "torch", "decode": "torch"},
        "LinearMixer": {"train": "torch", "prefill": "torch", "decode": "torch"},
    },
}


class SsmMixer(nn.Module):
    """ssm: 24 channels with a state of 3 numbers each.

    spaces.attn:5  ssm(mamba, state = 3)
    """

    def __init__(self, slot: int) -> None:
        super().__init__()
        self.slot = slot
        self.in_proj = nn.Linear(24, 24, bias=False)
        self.dt_down = nn.Linear(24, 2, bias=False)
        self.dt_up = nn.Linear(2, 24, bias=False)
        self.dt_bias = nn.Parameter(torch.zeros(24))
        self.B_proj = nn.Linear(24, 3, bias=False)
        self.C_proj = nn.Linear(24, 3, bias=False)
        self.A_log = nn.Parameter(torch.zeros(24, 3))
        self.D = nn.Parameter(torch.zeros(24))
        self.conv = ShortConv(24, 3, bias=True)
        self.output_gate = nn.Linear(24, 24, bias=False)
        self.out_proj = nn.Linear(24, 24, bias=False)
        self.scan = ChannelStates("SsmMixer", formula=reference.channel_states)

    def plans(self) -> tuple[LayerPlan, ...]:
        """What decoding keeps, one plan a launch."""
        return (
            LayerPlan(states=(State("state", (24, 3), torch.float32), State("conv", (2, 24)),)),
        )

    def forward(self, x: Tensor, call: Call) -> Tensor:  # [T, W] -> [T, W]
        u = convolve(self.conv, self.in_proj(x), call, self.slot, "conv")  # [T, C]
        step = time_step(self.dt_up(self.dt_down(u)), self.dt_bias)  # [T, C], in fp32
        rates, write, read = -torch.exp(wide(self.A_log)), self.B_proj(u), self.C_proj(u)  # [C, N], [T, N], [T, N]
        u = wide(u)
        y = self.scan(Channels(step * u, rates, step, write, read), call.batch, call.slot(self.slot))  # [T, C]
        y = y + self.D * u
        y = y * F.silu(self.output_gate(x))
        return self.out_proj(y.to(x.dtype))


class SumMixer(nn.Module):
    """ssm alone."""

    def __init__(self, slot: int) -> None:
        super().__init__()
        self.ssm = SsmMixer(slot)

    def forward(self, x: Tensor, call: Call) -> Tensor:  # [T, W] -> [T, W]
        return self.ssm(x, call)


class SsmMixer2(nn.Module):
    """ssm: 4 states of 5 x 8, written and read alike.

    spaces.attn:6  ssm(mamba2, state = 5)
    """

    def __init__(self, slot: int) -> None:
        super().__init__()
        self.slot = slot
        self.in_proj = nn.Linear(24, 32, bias=False)
        self.B_proj = nn.Linear(24, 5, bias=False)
        self.C_proj = nn.Linear(24, 5, bias=False)
        self.dt_proj = nn.Linear(24, 4, bias=False)
        self.dt_bias = nn.Parameter(torch.zeros(4))
        self.A_log = nn.Parameter(torch.zeros(4))
        self.D = nn.Parameter(torch.zeros(4))
        self.conv = ShortConv(42, 4, bias=True)
        self.output_gate = nn.Linear(24, 32, bias=False)
        self.output_norm = RMSNorm(32, 1e-06)
        self.out_proj = nn.Linear(32, 24, bias=False)
        self.scan = MatrixStates("SsmMixer2", 4, scale=1.0, formula=reference.recurrence)

    def plans(self) -> tuple[LayerPlan, ...]:
        """What decoding keeps, one plan a launch."""
        return (
            LayerPlan(states=(State("state", (4, 5, 8), torch.float32), State("conv", (3, 42)),)),
        )

    def forward(self, x: Tensor, call: Call) -> Tensor:  # [T, W] -> [T, W]
        u = torch.cat((self.in_proj(x), self.B_proj(x), self.C_proj(x)), dim=-1)  # [T, C + 2 N]
        u, write, read = convolve(self.conv, u, call, self.slot, "conv").split((32, 5, 5), dim=-1)
        step = time_step(self.dt_proj(x), self.dt_bias)  # [T, H], in fp32
        u = u.unflatten(-1, (4, 8))  # [T, H, E]
        v = (step.unsqueeze(-1) * u).to(u.dtype)
        decay = -torch.exp(wide(self.A_log)) * step  # logarithms, [T, H]
        y = self.scan(read.unsqueeze(1), write.unsqueeze(1), v, call.batch, call.slot(self.slot), decay=decay)  # [T, H, E]
        y = (wide(y) + self.D.unsqueeze(-1) * wide(u)).flatten(-2)  # [T, C]
        y = y * F.silu(self.output_gate(x))
        y = self.output_norm(y)
        return self.out_proj(y.to(x.dtype))


class SsmMixer3(nn.Module):
    """ssm: 24 channels with a state of 4 numbers each.

    spaces.attn:6  ssm(s4d, state = 4)
    """

    def __init__(self, slot: int) -> None:
        super().__init__()
        self.slot = slot
        self.in_proj = nn.Linear(24, 24, bias=False)
        self.dt_log = nn.Parameter(torch.zeros(24))
        self.A_log = nn.Parameter(torch.zeros(24, 2))
        self.A_imag = nn.Parameter(torch.zeros(24, 2))
        self.C = nn.Parameter(torch.zeros(24, 2, 2))
        self.D = nn.Parameter(torch.zeros(24))
        self.out_proj = nn.Linear(24, 24, bias=False)
        self.scan = ChannelStates("SsmMixer3", formula=reference.channel_states)

    def plans(self) -> tuple[LayerPlan, ...]:
        """What decoding keeps, one plan a launch."""
        return (
            LayerPlan(states=(State("state", (24, 4), torch.float32),)),
        )

    def forward(self, x: Tensor, call: Call) -> Tensor:  # [T, W] -> [T, W]
        u = wide(self.in_proj(x))  # [T, C]
        rates, weights = zero_order_hold(self.dt_log, self.A_log, self.A_imag, self.C)  # [C, N / 2], complex
        y = self.scan(Channels(u, rates, weights=weights), call.batch, call.slot(self.slot))  # [T, C]
        y = F.gelu(y + self.D * u)
        return self.out_proj(y.to(x.dtype))


class SumMixer2(nn.Module):
    """Outputs added: ssm + ssm_2."""

    def __init__(self, slot: int) -> None:
        super().__init__()
        self.ssm = SsmMixer2(slot)
        self.ssm_2 = SsmMixer3(slot + 1)

    def forward(self, x: Tensor, call: Call) -> Tensor:  # [T, W] -> [T, W]
        return self.ssm(x, call) + self.ssm_2(x, call)


class LinearMixer(nn.Module):
    """linear: 6 states of 8; 3 heads of v.

    spaces.attn:7  linear(decay = vector, state = vector)
    """

    def __init__(self, slot: int) -> None:
        super().__init__()
        self.slot = slot
        self.v_proj = nn.Linear(24, 3 * 8, bias=False)
        self.o_proj = nn.Linear(6 * 8, 24, bias=False)
        self.decay_proj = nn.Linear(24, 48, bias=False)
        self.scan = ChannelStates("LinearMixer", formula=reference.channel_states)

    def plans(self) -> tuple[LayerPlan, ...]:
        """What decoding keeps, one plan a launch."""
        return (
            LayerPlan(states=(State("state", (6, 8), torch.float32),)),
        )

    def forward(self, x: Tensor, call: Call) -> Tensor:  # [T, W] -> [T, W]
        v = self.v_proj(x).unflatten(-1, (3, 8))  # [T, heads, E]
        decay = sigmoid_decay(self.decay_proj(x)).unflatten(-1, (6, 8))  # logarithms, [T, H, K]
        y = self.scan(gated(v.repeat_interleave(2, dim=1), decay), call.batch, call.slot(self.slot))  # [T, H E]
        o = y.unflatten(-1, (6, 8)).to(v.dtype)  # [T, H, E]
        o = o.flatten(-2)  # [T, heads * E]
        return self.o_proj(o)


class SumMixer3(nn.Module):
    """linear alone."""

    def __init__(self, slot: int) -> None:
        super().__init__()
        self.linear = LinearMixer(slot)

    def forward(self, x: Tensor, call: Call) -> Tensor:  # [T, W] -> [T, W]
        return self.linear(x, call)


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
                Layer(SumMixer2(1)),  # layer 1
                Layer(SumMixer3(3)),  # layer 2
            ]
        )
        self.norm = RMSNorm(24, 1e-06)

    def forward(self, tokens: Tensor, call: Call) -> Tensor:  # [T] integers or [T, W] embeddings -> [T, W]
        x = tokens if tokens.is_floating_point() else self.embed_tokens(tokens)
        for layer in self.layers:
            x = layer(x, call)
        return self.norm(x)


class Model(BuiltModel):
    """spaces: vocabulary 32, width 24, 3 layers, 17,966 parameters."""

    providers = PROVIDERS
    reference = reference

    def __init__(self) -> None:
        super().__init__()
        self.model = Backbone()
        self.lm_head = nn.Linear(24, 32, bias=False)

    def logits(self, x: Tensor) -> Tensor:  # [T, W] -> [T, vocabulary]
        return self.lm_head(x)
