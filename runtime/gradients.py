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


def backward(operators: Any) -> Callable[..., tuple[Any, ...]]:
    """The gradients of `attend`: of q, k, v and sink_logit, from those of both its results."""

    def gradients(ctx: Any, o_grad: Tensor, lse_grad: Tensor) -> tuple[Any, ...]:
        q, k, v, scale, rows, sink_logit, o, lse, *places = ctx.saved_tensors
        _, rings, _, _ = ctx.numbers
        if rings:
            raise RuntimeError("no kernel has gradients through a ring of cached keys: train without a cache, or use('torch')")
        call = (q, k, v, scale, rows, places, *ctx.numbers)
        q_grad, delta = operators.backward_queries(*call, o, lse, o_grad, lse_grad)
        k_grad, v_grad = None, None
        if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
            k_grad, v_grad = operators.backward_keys(*call, lse, delta, o_grad)
        sink_grad = None if sink_logit is None else sink_gradient(sink_logit, lse, delta)
        return q_grad, k_grad, v_grad, None, None, [None] * len(places), None, None, None, None, sink_grad

    return gradients


def sink_gradient(sink_logit: Tensor, lse: Tensor, delta: Tensor) -> Tensor:
    """The gradient of sink_logit [H], a logit without a value: minus its weight times delta [T, H], over all tokens."""
    weight = torch.exp(sink_logit.float() - lse.masked_fill(torch.isneginf(lse), float("inf")))
    return -(weight * delta).sum(0, dtype=torch.float64).to(sink_logit.dtype)  # tokens are many, heads few
