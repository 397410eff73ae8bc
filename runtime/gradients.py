"""Generated kernels as one differentiable function: which of them runs, and how their backward passes fit together.

Legend: T new tokens; H query heads; D, E key, value width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .batch import Batch
from .keys import KeyPart
from .sizes import DECODE_TOKENS, UNBOUNDED
from .softmax import Form

Attend = Callable[..., tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Kernels:
    """The kernels of one launch, a `Kernel` (softmax.py): many new queries of a sequence run `prefill`, a few run `decode`.

    backward_queries  (..., cap, o, lse, o_grad, lse_grad) -> q_grad [T, H, D], delta [T, H]
    backward_keys     (..., cap, lse, delta, o_grad) -> k_grad, v_grad, flat as the part's k and v
    """

    prefill: Attend
    decode: Attend
    backward_queries: Attend
    backward_keys: Attend

    def __call__(
        self,
        q: Tensor,
        part: KeyPart,
        rows: Tensor,
        form: Form,
        batch: Batch,
        scale: Tensor,
        cap: float | None = None,
        sink_logit: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """o [T, H, E] and the log-sum-exp [T, H]; both have gradients where q, the part's keys or the sink logit want some."""
        wanting = [x for x in (q, part.k, part.v, sink_logit) if x is not None and x.requires_grad]
        if torch.is_grad_enabled() and wanting:
            call = (self, part, rows, form, batch, scale, cap)
            o, lse = _Attention.apply(q, part.k, part.v, sink_logit, call)  # type: ignore[no-untyped-call]
            return o, lse
        attend = self.decode if batch.max_new <= DECODE_TOKENS else self.prefill
        return attend(q, part, rows, form, batch, scale, cap, sink_logit)


class _Attention(torch.autograd.Function):
    """The forward kernel, and the backward ones for queries, then for keys, which read what the first leave."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, sink_logit: Tensor | None, call: tuple[Any, ...]) -> Any:
        kernels, part, *rest = call
        o, lse = kernels.prefill(q, part, *rest, sink_logit)
        ctx.save_for_backward(q, k, v, sink_logit, o, lse)
        ctx.call = (kernels, replace(part, k=k.new_empty(0), v=v.new_empty(0)), *rest)
        return o, lse

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, o_grad: Tensor, lse_grad: Tensor) -> Any:
        q, k, v, sink_logit, o, lse = ctx.saved_tensors
        kernels, part, *rest = ctx.call
        if any(band.ring < UNBOUNDED for band in part.bands):
            raise RuntimeError("no kernel has gradients through a ring of cached keys: train without a cache, or use('torch')")
        part = replace(part, k=k, v=v)
        q_grad, delta = kernels.backward_queries(q, part, *rest, o, lse, o_grad, lse_grad)
        k_grad, v_grad = kernels.backward_keys(q, part, *rest, lse, delta, o_grad)
        sink_grad = None if sink_logit is None else sink_gradient(sink_logit, lse, delta)
        return q_grad, k_grad, v_grad, sink_grad, None


def sink_gradient(sink_logit: Tensor, lse: Tensor, delta: Tensor) -> Tensor:
    """The gradient of sink_logit [H], a logit without a value: minus its weight times delta [T, H], over all tokens."""
    weight = torch.exp(sink_logit.float() - lse.masked_fill(torch.isneginf(lse), float("inf")))
    return -(weight * delta).sum(0, dtype=torch.float64).to(sink_logit.dtype)  # tokens are many, heads few
