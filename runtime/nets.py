"""Nets of fast weights: what they make of inputs, and gradients of a token's squared error as two vectors for each weight.

Legend: n sequences; H heads; C tokens; weights [n, H, outputs, inputs]; x [n, H, C, width].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .fast import Rule, Weights

Norm = tuple[Tensor, Tensor] | None
Apply = Callable[[str, Tensor], Tensor]
"""(name of a weight, its inputs) -> its outputs: the weights that tokens read may differ from token to token."""

EPSILON = 1e-6
"""Of the layer norm."""


def plain(weights: Weights) -> Apply:
    """All tokens read the same weights."""
    return lambda name, x: x @ weights[name].transpose(-1, -2)


def forward(names: Sequence[str], apply: Apply, x: Tensor, rule: Rule, norm: Norm) -> Tensor:
    """What the nets make of x [n, H, C, D], [n, H, C, E]."""
    if rule.gated:
        y = apply("down", F.silu(apply("gate", x)) * apply("up", x))
    else:
        y = x
        for at, name in enumerate(names):
            y = apply(name, F.gelu(y) if at else y)
    if norm is not None:
        y = _normed(y)[0] * norm[0].unsqueeze(-2) + norm[1].unsqueeze(-2)
    return x + y if rule.residual else y


def gradients(
    weights: Weights, kept: Tensor | None, x: Tensor, wanted: Tensor, rule: Rule, norm: Norm
) -> dict[str, tuple[Tensor, Tensor]]:
    """name -> (d, a), so that the gradient of token t's |net(x_t) - wanted_t|^2 is the outer product of d_t and a_t.

    kept [n, H, C, 1]: by how much the weights have decayed where each token takes its gradient; None: not at all.
    """

    def down(name: str, y: Tensor) -> Tensor:
        z = y @ weights[name].transpose(-1, -2)
        return z if kept is None else kept * z

    def up(name: str, d: Tensor) -> Tensor:
        z = d @ weights[name]
        return z if kept is None else kept * z

    if rule.gated:
        gate, wide = down("gate", x), down("up", x)
        open_ = F.silu(gate)
        hidden = open_ * wide
        d = _of_error(down("down", hidden), x, wanted, rule, norm)
        inside, squashed = up("down", d), torch.sigmoid(gate)
        slope = squashed * (1 + gate * (1 - squashed))
        return {"gate": (inside * wide * slope, x), "up": (inside * open_, x), "down": (d, hidden)}
    names, inputs, sums = list(weights), [x], []
    for name in names:
        sums.append(down(name, inputs[-1]))
        inputs.append(F.gelu(sums[-1]))
    d = _of_error(sums[-1], x, wanted, rule, norm)
    found = {}
    for at in reversed(range(len(names))):
        found[names[at]] = d, inputs[at]
        if at:
            d = up(names[at], d) * _gelu_slope(sums[at - 1])
    return {name: found[name] for name in names}


def _of_error(raw: Tensor, x: Tensor, wanted: Tensor, rule: Rule, norm: Norm) -> Tensor:
    """The gradient of the squared error by the net's last outputs, before norm and residual."""
    if norm is None:
        return 2 * ((x + raw if rule.residual else raw) - wanted)
    hat, rstd = _normed(raw)
    y = hat * norm[0].unsqueeze(-2) + norm[1].unsqueeze(-2)
    g = 2 * ((x + y if rule.residual else y) - wanted) * norm[0].unsqueeze(-2)
    return rstd * (g - g.mean(-1, keepdim=True) - hat * (g * hat).mean(-1, keepdim=True))


def _normed(y: Tensor) -> tuple[Tensor, Tensor]:
    """(y less its mean, of variance 1; what it was multiplied by)."""
    less = y - y.mean(-1, keepdim=True)
    rstd = torch.rsqrt(less.square().mean(-1, keepdim=True) + EPSILON)
    return less * rstd, rstd


def _gelu_slope(x: Tensor) -> Tensor:
    """The derivative of x Phi(x), Phi the normal distribution."""
    return (1 + torch.erf(x / math.sqrt(2))) / 2 + x * torch.exp(-x.square() / 2) / math.sqrt(2 * math.pi)
