"""One launch over lists on one part of the keys, with its gradients.

Legend: T new tokens; H query heads; E value width.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .batch import Batch
from .gradients import sink_gradient
from .intervals import Form
from .keys import KeyPart
from .list_launch import LaunchLists
from .operators import device_of


class _Attend(torch.autograd.Function):
    """One part's attention by a file that reads lists, with its gradients by the file beside it."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, sink: Tensor | None, call: Call) -> tuple[Tensor, Tensor]:
        """(o [T, H, E], log-sum-exp [T, H]); k and v are flat, as the part's."""
        part = call.part.holding(k, v)
        with device_of(q):
            o, lse = call.reads.attend(q, part, call.rows, call.form, call.batch, call.scale, call.cap, sink, call.lists)
        ctx.call = call
        ctx.save_for_backward(q, k, v, sink, o, lse)
        return o, lse

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, o_grad: Tensor, lse_grad: Tensor) -> tuple[Any, ...]:
        """Of q, k, v and the sink logit."""
        q, k, v, sink, o, lse = ctx.saved_tensors
        call: Call = ctx.call
        part = call.part.holding(k, v)
        assert call.goes_back is not None, "asked for no gradients"
        with device_of(q):
            q_grad, delta, k_grad, v_grad = call.goes_back.attend_backward(
                q, part, call.rows, call.form, call.batch, call.scale, call.cap, call.lists, o, lse, o_grad, lse_grad
            )
        return q_grad, k_grad, v_grad, None if sink is None else sink_gradient(sink, lse, delta), None


@dataclass(frozen=True, eq=False)
class Call:
    """What a launch on one part is given beside q and the sink logit, and the files that attend and go back."""

    reads: ModuleType
    goes_back: ModuleType | None
    part: KeyPart
    rows: Tensor
    form: Form
    batch: Batch
    scale: Tensor
    cap: float | None
    lists: LaunchLists


def attend(q: Tensor, sink: Tensor | None, call: Call) -> tuple[Tensor, Tensor]:
    """o [T, H, E] and the log-sum-exp [T, H], with gradients."""
    found: tuple[Tensor, Tensor] = _Attend.apply(q, call.part.k, call.part.v, sink, call)  # type: ignore[no-untyped-call]
    return found
