"""Small layers of a model: norms, feed-forward, and the short convolution and moving average before q, k and v.

Legend: T tokens of S sequences, packed; W width.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .batch import Batch
from .sizes import alike


class RMSNorm(nn.Module):
    """(centre + weight) * x / sqrt(mean(x^2) + eps) over the last axis (arXiv 1910.07467), in fp32 (float64 if x is).

    centre 0: the weight starts at 1 (Llama); centre 1: at 0 (Gemma).
    """

    def __init__(self, width: int, eps: float, centre: Literal[0, 1] = 0) -> None:
        super().__init__()
        self.eps, self.centre = eps, centre
        self.weight = nn.Parameter(torch.full((width,), 1.0 - centre))

    def forward(self, x: Tensor) -> Tensor:
        """x [..., width] -> the same shape and dtype."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        scaled = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return (scaled * (self.centre + self.weight.to(wide.dtype))).to(x.dtype)


def l2_norm(x: Tensor, eps: float = 1e-6) -> Tensor:
    """x / sqrt(sum(x^2) + eps) over the last axis, in fp32 (float64 if x is): `qk_norm = l2`."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return (wide * torch.rsqrt(wide.square().sum(-1, keepdim=True) + eps)).to(x.dtype)


class FeedForward(nn.Module):
    """down(act(gate(x)) * up(x)) for swiglu (SiLU) and geglu (GELU, tanh form, as Gemma); arXiv 2002.05202.

    down(act(up(x))) for gelu (exact, erf form) and relu.
    """

    def __init__(self, kind: Literal["swiglu", "geglu", "gelu", "relu"], width: int, inner: int, bias: bool = False) -> None:
        super().__init__()
        self.kind = kind
        if kind in ("swiglu", "geglu"):
            self.gate_proj = nn.Linear(width, inner, bias=bias)
        self.up_proj = nn.Linear(width, inner, bias=bias)
        self.down_proj = nn.Linear(inner, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., width] -> [..., width]."""
        match self.kind:
            case "swiglu":
                hidden = F.silu(self.gate_proj(x)) * self.up_proj(x)
            case "geglu":
                hidden = F.gelu(self.gate_proj(x), approximate="tanh") * self.up_proj(x)
            case "gelu":
                hidden = F.gelu(self.up_proj(x))
            case "relu":
                hidden = F.relu(self.up_proj(x))
        out: Tensor = self.down_proj(hidden)
        return out


def earlier(x: Tensor, state: Tensor | None, batch: Batch, back: int) -> Tensor:
    """The input `back` tokens before each token, [T, W], from its own sequence's state where the call has none.

    x [T, W]; state [S, n, W], the n >= back inputs before the call, oldest first, or None (zeros). Rows are shifted, not
    gathered: the gradient of a gather is a sum in any order, or, where bits must repeat, a sort.
    """
    if batch.tokens == 0:
        return x
    index = batch.once(("index",), lambda: _index(batch))
    inside = batch.once(("inside", back), lambda: (index >= back).unsqueeze(-1))
    shifted = F.pad(x, (0, 0, back, 0))[: batch.tokens]
    if state is None:
        return torch.where(inside, shifted, 0)
    n = state.shape[1]
    slot = batch.once(("slot", n, back), lambda: (n - back + index).clamp(max=n - 1))
    return torch.where(inside, shifted, state[batch.sequence, slot].to(x.dtype))


def _index(batch: Batch) -> Tensor:
    """[T], the place of each token in its sequence's part of the call."""
    return torch.arange(batch.tokens, device=batch.offsets.device) - batch.offsets[batch.sequence]


def next_state(x: Tensor, state: Tensor, batch: Batch) -> Tensor:
    """The last n inputs of each sequence after the call, [S, n, W], given those before it (state [S, n, W])."""
    n = state.shape[1]
    if n == 0 or batch.tokens == 0:
        return state
    token, sequence, slot, inside = batch.once(("last", n), lambda: _last(batch, n))
    return torch.where(inside, x[token], state[sequence, slot].to(x.dtype))


def _last(batch: Batch, n: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of the last n inputs of each sequence: its token [S, n], sequence [S, 1] and slot of one before; which are new."""
    device = batch.offsets.device
    size = (batch.offsets[1:] - batch.offsets[:-1]).unsqueeze(1)  # [S, 1]
    place = size - n + torch.arange(n, device=device)  # [S, n], place in the call
    inside = place >= 0
    token = torch.where(inside, place + batch.offsets[:-1].unsqueeze(1), 0)
    sequence = torch.arange(batch.sequences, device=device).unsqueeze(1)
    return token, sequence, torch.where(inside, 0, place + n), inside.unsqueeze(-1)


class _Taps(torch.autograd.Function):
    """`_shifted` of texts of one length that begin here, x [S, N, W], to the bit, in half the launches, which are most of a
    small model's step: nothing is padded or masked, and gradients are added up in place, in the order that autograd takes.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        mixed = x * weight[:, -1]
        for back in range(1, min(weight.shape[1], x.shape[1])):
            mixed[:, back:].add_(x[:, :-back] * weight[:, -1 - back])
        return mixed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        by_x, taps, product = torch.zeros_like(grad), [], torch.zeros_like(grad)
        for back in reversed(range(weight.shape[1])):
            until = max(x.shape[1] - back, 0)
            by_x[:, :until].add_(grad[:, back:] * weight[:, -1 - back])
            torch.mul(grad[:, back:], x[:, :until], out=product[:, back:])
            taps.append(product.flatten(0, 1).sum(0))
        return by_x.to(x.dtype), torch.stack(taps, dim=1).to(weight.dtype)


def _shifted(x: Tensor, weight: Tensor, batch: Batch, state: Tensor | None) -> Tensor:
    """y of `depthwise`, each input shifted under the next tap."""
    mixed = x * weight[:, -1]
    for back in range(1, weight.shape[1]):
        mixed = mixed + earlier(x, state, batch, back) * weight[:, -1 - back]
    return mixed


def depthwise(
    x: Tensor, weight: Tensor, batch: Batch, state: Tensor | None = None, keep: bool = True
) -> tuple[Tensor, Tensor | None]:
    """Causal convolution per channel over the last n tokens of a sequence, never across sequences.

    x [T, W]; weight [W, n], its last column weighs the newest token; state [S, n - 1, W], the inputs before the call, oldest
    first, or None (zeros). Returns y [T, W] and the new state, None where nobody keeps it.
    """
    n = weight.shape[1]
    if state is not None or not batch.tokens or not alike(batch.sizes) or torch.compiler.is_compiling():
        mixed = _shifted(x, weight, batch, state)  # what is compiled is fused
    else:
        mixed = _Taps.apply(x.view(batch.sequences, -1, x.shape[1]), weight).flatten(0, 1)  # type: ignore[no-untyped-call]
    if not keep:
        return mixed, None
    if state is None:
        state = x.new_zeros(batch.sequences, n - 1, x.shape[1])
    return mixed, next_state(x, state, batch)


class ShortConv(nn.Module):
    """`depthwise` with a learned weight [width, n], and bias [width] where there is one, then SiLU: what `short_conv` puts on
    q, k and v, and on the input of a state space.
    """

    def __init__(self, width: int, n: int, bias: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width, n))
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None

    def forward(self, x: Tensor, batch: Batch, state: Tensor | None = None, keep: bool = True) -> tuple[Tensor, Tensor | None]:
        """x [T, width], state [S, n - 1, width] or None (zeros) -> (y [T, width], new state, None where nobody keeps it)."""
        mixed, state = depthwise(x, self.weight, batch, state, keep)
        return F.silu(mixed if self.bias is None else mixed + self.bias), state


def log_position(q: Tensor, positions: Tensor, floor_scale: float, attn_scale: float) -> Tensor:
    """q [T, H, D] times 1 + attn_scale log(1 + floor((i + 1) / floor_scale)) at positions i [T] (Llama 4's temperature)."""
    wide = torch.promote_types(q.dtype, torch.float32)
    factor = 1 + attn_scale * torch.log1p(torch.floor((positions.to(wide) + 1) / floor_scale))
    return (q.to(wide) * factor.view(-1, 1, 1)).to(q.dtype)


class ProductGate(nn.Module):
    """The product of branches, each after an RMS norm of its own: `gate(A, B, by = product)` (Titans, arXiv 2501.00663)."""

    def __init__(self, width: int, eps: float, names: tuple[str, ...]) -> None:
        super().__init__()
        self.names = names
        for name in names:
            self.add_module(f"{name}_norm", RMSNorm(width, eps))

    def forward(self, *branches: Tensor) -> Tensor:
        """Branches [T, W] -> [T, W]."""
        product = torch.ones_like(branches[0])
        for name, branch in zip(self.names, branches, strict=True):
            product = product * self.get_submodule(f"{name}_norm")(branch)
        return product
