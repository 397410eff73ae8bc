"""The roundings of kernels of matrix states as functions of PyTorch, with gradients: in them the formula is a measure.

Legend: H heads; C tokens of a chunk; K key width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

PART = 16
"""Tokens whose decays a kernel multiplies one by one; products that a tensor core adds at once."""


class _Stored(torch.autograd.Function):
    """A number as a kernel multiplies it, rounded to a dtype; so is its gradient."""

    @staticmethod
    def forward(context: Any, x: Tensor, dtype: torch.dtype) -> Tensor:
        context.dtype = dtype
        return x.to(dtype).to(x.dtype)

    @staticmethod
    def backward(context: Any, *grads: Any) -> tuple[Tensor, None]:
        (grad,) = grads
        return grad.to(context.dtype).to(grad.dtype), None


class _Summed(torch.autograd.Function):
    """begin + a @ b, products added one after another, as kernels add them and libraries do not; so are gradients."""

    @staticmethod
    def forward(context: Any, begin: Tensor, a: Tensor, b: Tensor) -> Tensor:
        context.save_for_backward(a, b)
        return _one_by_one(begin, a, b)

    @staticmethod
    def backward(context: Any, *grads: Any) -> tuple[Tensor, Tensor, Tensor]:
        (grad,) = grads
        a, b = context.saved_tensors
        a_grad = _one_by_one(torch.zeros_like(a), grad, b.transpose(-1, -2))
        return grad, a_grad, _one_by_one(torch.zeros_like(b), a.transpose(-1, -2), grad)


class _Accumulated(torch.autograd.Function):
    """begin + a @ b as tensor cores sum products of 16-bit numbers: 16 at a time, what float32 cannot hold cut off."""

    @staticmethod
    def forward(context: Any, begin: Tensor, a: Tensor, b: Tensor) -> Tensor:
        context.save_for_backward(a, b)
        for at in range(0, a.shape[-1], PART):
            exact = begin.double() + a[..., at : at + PART].double() @ b[..., at : at + PART, :].double()
            begin = exact.float()
            begin = torch.where(begin.abs() > exact.abs(), torch.nextafter(begin, torch.zeros_like(begin)), begin)
        return begin

    @staticmethod
    def backward(context: Any, *grads: Any) -> tuple[Tensor, Tensor, Tensor]:
        (grad,) = grads
        a, b = context.saved_tensors
        return grad, grad @ b.transpose(-1, -2), a.transpose(-1, -2) @ grad


def stored(x: Tensor, dtype: torch.dtype) -> Tensor:
    """A number as a kernel multiplies it, rounded to a dtype; so is its gradient."""
    found: Tensor = _Stored.apply(x, dtype)  # type: ignore[no-untyped-call]
    return found


def product(a: Tensor, b: Tensor, begin: Tensor | None, narrow: bool) -> Tensor:
    """begin + a @ b, in float32 as kernels sum it, of 16-bit operands where they are `narrow`; [H, rows, columns]."""
    if a.dtype != torch.float32:
        return a @ b if begin is None else begin + a @ b
    start = a.new_zeros(*a.shape[:-1], b.shape[-1]) if begin is None else begin
    found: Tensor = (_Accumulated if narrow else _Summed).apply(start, a, b)  # type: ignore[no-untyped-call]
    return found


def _one_by_one(begin: Tensor, a: Tensor, b: Tensor) -> Tensor:
    found = begin.clone(memory_format=torch.contiguous_format)
    for at in range(a.shape[-1]):
        found.addcmul_(a[..., at : at + 1], b[..., at : at + 1, :])
    return found


def inverse_of(system: Tensor, joined: bool) -> Tensor:
    """Of unit triangular matrices [H, C, C]. `joined`: the numbers are those of blocks joined by TF32 products."""
    eye = torch.eye(system.shape[-1], dtype=system.dtype, device=system.device).expand_as(system)
    exact: Tensor = torch.linalg.solve_triangular(system, eye, upper=False, unitriangular=True)
    if not joined:
        return exact
    number = torch.arange(system.shape[-1], device=system.device)
    one, other = number[:, None], number[None, :]
    found = torch.where(one // PART == other // PART, exact.detach(), 0.0)
    size = PART
    while size < system.shape[-1]:
        below = (one // (2 * size) == other // (2 * size)) & (one // size > other // size)
        low = _tf32(torch.where(below, system.detach(), 0.0)) @ _tf32(found)
        found = found - _tf32(found) @ _tf32(low)
        size *= 2
    return exact + (found - exact.detach())


def _tf32(x: Tensor) -> Tensor:
    """fp32 numbers as tensor cores read them for TF32: without their last 13 bits."""
    found: Tensor = torch.bitwise_and(x.contiguous().view(torch.int32), ~0x1FFF).view(torch.float32)
    return found


def exponential(x: Tensor) -> Tensor:
    """e^x with the 22 bits that a GPU's instruction for powers of 2 promises."""
    mantissa, exponent = torch.frexp(x.exp())
    found: Tensor = torch.ldexp((mantissa * 2.0**22).round() * 2.0**-22, exponent)
    return found


def running(fades: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Products of fades [C, H, K] between a token and a later one [i, j, H, K], since the first, and until the last."""
    number = torch.arange(len(fades), device=fades.device)
    later = (number[:, None] > number[None, :])[..., None, None]
    after = torch.where(later, fades[:, None], 1.0).cumprod(0)
    return after, fades.cumprod(0), after[-1]


def rounded(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x as an operand of a product; its gradient is summed in full."""
    return x + (x.detach().to(dtype).to(x.dtype) - x.detach())
