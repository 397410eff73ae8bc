"""Gates of matrix states: logarithms of decays, strengths of writing and erasing, in fp32 (float64 where the input is).

Legend: T tokens, packed; H states; K rows and V columns of each.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def wide(x: Tensor) -> Tensor:
    """x in fp32, or in float64 if it is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def softplus_decay(x: Tensor, rate: Tensor, offset: Tensor) -> Tensor:
    """-exp(rate) softplus(x + offset), logarithms of a decay: Mamba-2's gate, as gated DeltaNet and Kimi's delta attention
    have it (arXiv 2412.06464, 2510.26692).

    x [T, H] or [T, H x K]; rate [H], `A_log`; offset, `dt_bias`, as many as x has. Returns [T, H] or [T, H, K].
    """
    x = wide(x)
    step = torch.logaddexp(x + offset.to(x.dtype), x.new_zeros(()))
    heads = rate.shape[0]
    speed = -rate.to(x.dtype).exp()
    if x.shape[-1] == heads:
        return speed * step
    return speed.unsqueeze(-1) * step.reshape(*step.shape[:-1], heads, x.shape[-1] // heads)


def time_step(x: Tensor, offset: Tensor) -> Tensor:
    """softplus(x + offset): the steps of time of a state space (Mamba, arXiv 2312.00752); offset `dt_bias`."""
    y = wide(x) + offset.to(torch.promote_types(x.dtype, torch.float32))
    return torch.logaddexp(y, y.new_zeros(()))


def sigmoid_decay(x: Tensor, low: Tensor | float = 0.0) -> Tensor:
    """log(low + (1 - low) sigmoid(x)), logarithms of a decay that is never below `low` (HGRN-2, arXiv 2404.07904).

    x [...]; low a number in 0..1, or a tensor that broadcasts to x. Exact for strong gates: nothing is rounded to 0 before the
    logarithm.
    """
    x = wide(x)
    if isinstance(low, Tensor):
        return F.logsigmoid(x) + torch.logaddexp(low.to(x.dtype).clamp(min=1e-30).log() - x, x.new_zeros(()))
    if low == 0:
        return F.logsigmoid(x)
    return torch.log(low + (1 - low) * torch.sigmoid(x))


def one_minus(decay: Tensor) -> Tensor:
    """1 - exp(decay): the gate as a key (HGRN-2)."""
    return -torch.expm1(decay)


def strength(x: Tensor, beta: float = 1.0) -> Tensor:
    """beta sigmoid(x): how strongly the delta rule erases or writes."""
    gate = torch.sigmoid(wide(x))
    return gate if beta == 1 else beta * gate


def slopes(heads: int) -> tuple[float, ...]:
    """Logarithms of Lightning's decays as MiniCPM-SALA uses them: ALiBi's slopes (arXiv 2108.12409), negated.

    2^(-8 (h + 1) / heads) for a power of two; else those of the next lower one, and every second of the next higher.
    """
    power = 1 << (heads.bit_length() - 1)
    found = [2.0 ** (-8 * (h + 1) / power) for h in range(power)]
    found += [2.0 ** (-8 * (2 * h + 1) / (2 * power)) for h in range(heads - power)]
    return tuple(-slope for slope in found)


def retention(heads: int) -> tuple[float, ...]:
    """Logarithms of RetNet's decays (arXiv 2307.08621): 1 - 2^(-5 - h)."""
    return tuple(math.log1p(-(2.0 ** (-5 - h))) for h in range(heads))


class LowerBound(nn.Module):
    """A learned bound under a gate, [channels], which rises with depth: HGRN-2's cumulative softmax over the layers.

    Layer i of n is bounded by the sum of softmax(weights of all layers)[1..i]; the first by 0. `rise` tells them of each other.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(channels))
        self.every: tuple[LowerBound, ...] = (self,)

    def forward(self) -> Tensor:
        """[channels], in fp32 (float64 if the weight is)."""
        place = next(i for i, bound in enumerate(self.every) if bound is self)
        shares = torch.softmax(wide(torch.stack([bound.weight for bound in self.every])), dim=0)
        return shares[1 : place + 1].sum(dim=0)


def rise(layers: Iterable[nn.Module]) -> None:
    """Lower bounds of as many channels, in the order of the layers, rise together."""
    bounds = [module for layer in layers for module in layer.modules() if isinstance(module, LowerBound)]
    for bound in bounds:
        bound.every = tuple(other for other in bounds if other.weight.shape == bound.weight.shape)
