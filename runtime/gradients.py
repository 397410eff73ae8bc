"""How the backward kernels of a launch fit together: those for queries first, then for keys, which read what the first leave.

Legend: T new tokens; H query heads; D, E key, value width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def save(ctx: Any, inputs: Sequence[Any], output: tuple[Tensor, Tensor]) -> None:
    """Keep what `backward` reads of a call of the operator `attend` (operators.py)."""
    q, k, v, scale, rows, places, *numbers, sink_logit = inputs
    ctx.numbers = numbers
    ctx.save_for_backward(q, k, v, scale, rows, sink_logit, *output, *places)


def backward(operators: Any, exponent: float | None) -> Callable[..., tuple[Any, ...]]:
    """The gradients of `attend`: of q, k, v and sink_logit, from those of both its results. With an `exponent` (softplus.py) of
    the last of `scale` instead of the sink_logit.
    """

    def gradients(ctx: Any, o_grad: Tensor, lse_grad: Tensor) -> tuple[Any, ...]:
        q, k, v, scale, rows, sink_logit, o, lse, *places = ctx.saved_tensors
        _, rings, _, _ = ctx.numbers
        if rings:
            raise RuntimeError("no kernel has gradients through a ring of cached keys: train without a cache, or use('torch')")
        call = (q, k, v, scale, rows, places, *ctx.numbers)
        lse_grad = lse_grad if exponent is None else of_logarithm(lse, lse_grad, exponent)
        q_grad, delta = operators.backward_queries(*call, o, lse, o_grad, lse_grad)
        k_grad, v_grad = None, None
        if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
            k_grad, v_grad = operators.backward_keys(*call, lse, delta, o_grad)
        v_grad = None if exponent == 0 else v_grad  # sums of masses have no values
        sink_grad = None if sink_logit is None else sink_gradient(sink_logit, lse, delta)
        scale_grad = None if not exponent else torch.nn.functional.pad(delta[1].unsqueeze(-1), (2, 0))
        return q_grad, k_grad, v_grad, scale_grad, None, [None] * len(places), None, None, None, None, sink_grad

    return gradients


def of_logarithm(sums: Tensor, sums_grad: Tensor, exponent: float) -> Tensor:
    """What the backward kernels take as the log-sum-exp's gradient: that of the logarithm of sum(x^p), or of sum(a) itself.

    sums [T, H, 2]: the largest x, or a, and the sum of weights beside it, of which alone `sums_grad` is.
    """
    peak, norm, grad = *sums.unbind(-1), sums_grad[..., 1]
    return grad * norm if exponent else grad / peak


def sink_gradient(sink_logit: Tensor, lse: Tensor, delta: Tensor) -> Tensor:
    """The gradient of sink_logit [H], a logit without a value: minus its weight times delta [T, H], over all tokens."""
    weight = torch.exp(sink_logit.float() - lse.masked_fill(torch.isneginf(lse), float("inf")))
    return -(weight * delta).sum(0, dtype=torch.float64).to(sink_logit.dtype)  # tokens are many, heads few
