"""The generated kernels of states of single channels as operators of PyTorch, with their gradients.

They are `torch.ops.attnc.channels_HASH_scan` and `..._scan_backward`, HASH of the kernel file's text: folders that hold the
same kernel share them.

Legend: T new tokens of S sequences; C channels; M numbers of a channel's state.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from .batch import Batch
from .channels import Channels
from .operators import NAMESPACE, device_of

PARTS = "Tensor u, Tensor? step, Tensor rates, Tensor? write, Tensor? read, Tensor? weights"
SCHEMAS = {
    "scan": f"({PARTS}, Tensor? before, Tensor offsets, SymInt max_new, bool keep) -> (Tensor y, Tensor after, Tensor starts)",
    "scan_backward": f"({PARTS}, Tensor starts, Tensor offsets, Tensor y_grad, Tensor after_grad) -> Tensor[]",
}
"""What the operators take: tensors as the kernel file's functions of these names."""

Provider = Callable[[Channels, Tensor | None, Batch], tuple[Tensor, Tensor]]


def channel_kernels(module: ModuleType) -> Provider:
    """The provider `triton`, a `ChannelScan` (channels.py), of a kernel file."""
    texts = [Path(str(file)).read_bytes() for file in (module.__file__, __file__)]
    name = "channels_" + hashlib.sha256(b"\0".join(texts)).hexdigest()[:16]
    operator = define(name, module)

    def scan(given: Channels, before: Tensor | None, batch: Batch) -> tuple[Tensor, Tensor]:
        parts = (given.u, given.step, given.rates, given.write, given.read, given.weights)
        for x in parts:
            if x is not None and x.dtype == torch.float64:
                raise ValueError("generated kernels have no float64: use('torch')")
        keep = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (*parts, before))
        y, after, _ = operator(*parts, before, batch.offsets, batch.max_new, keep)
        return y, after

    return scan


def define(name: str, module: ModuleType) -> Any:
    """The operator `name`_scan; the first that asks for a name defines it, for the life of the process."""
    if not hasattr(torch.ops.attnc, f"{name}_scan"):
        functions = {"scan": module.scan, "scan_backward": _listed(module.scan_backward)}
        fakes: dict[str, Callable[..., Any]] = {"scan": _fake_scan(module), "scan_backward": _fake_backward}
        for kind, schema in SCHEMAS.items():
            title = f"{NAMESPACE}::{name}_{kind}"
            torch.library.define(title, schema, tags=(torch.Tag.pt2_compliant_tag,))
            torch.library.impl(title, "default", _on_device(functions[kind]))
            torch.library.register_fake(title, fakes[kind])
        backward = getattr(torch.ops.attnc, f"{name}_scan_backward").default
        torch.library.register_autograd(f"{NAMESPACE}::{name}_scan", _gradients(backward), setup_context=_save)
        torch.library.register_autograd(f"{NAMESPACE}::{name}_scan_backward", _no_second_derivative)
    return getattr(torch.ops.attnc, f"{name}_scan").default


def _on_device(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function where Triton launches on u's device."""

    def run(u: Tensor, *rest: Any) -> Any:
        with device_of(u):
            return function(u, *rest)

    return run


def _listed(function: Callable[..., Sequence[Tensor]]) -> Callable[..., list[Tensor]]:
    return lambda *given: list(function(*given))


def _fake_scan(module: ModuleType) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    """Results without numbers: what compilers ask for."""

    def fake(u: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
        offsets, keep, state = rest[6], rest[8], module.STATE
        sequences = offsets.shape[0] - 1
        tiles = u.shape[0] // module.BLOCKS[module.architecture(u.device)][0] + sequences if keep else 0
        shapes = ((sequences, u.shape[1], state), (tiles, u.shape[1], state))
        after, starts = (u.new_empty(shape, dtype=torch.float32) for shape in shapes)
        return torch.empty_like(u, memory_format=torch.contiguous_format), after, starts

    return fake


def _fake_backward(u: Tensor, *rest: Any) -> list[Tensor]:
    step, rates, write, read, weights, starts, _, _, after_grad = rest
    parts = (u, step, rates, write, read, weights, after_grad)
    dtypes = (u.dtype, torch.float32 if step is None else step.dtype, *(torch.float32,) * 5)
    return [starts.new_empty(0 if x is None else x.shape, dtype=dtype) for x, dtype in zip(parts, dtypes, strict=True)]


def _save(ctx: Any, inputs: Sequence[Any], output: tuple[Tensor, Tensor, Tensor]) -> None:
    *parts, before, offsets, _, _ = inputs
    ctx.before = before is not None
    ctx.save_for_backward(*parts, output[2], offsets)
    ctx.mark_non_differentiable(output[2])


def _gradients(backward: Any) -> Callable[..., tuple[Any, ...]]:
    """Gradients of u, step, rates, write, read, weights and the states before, from those of y and the states after."""

    def gradients(ctx: Any, y_grad: Tensor, after_grad: Tensor, _starts: Tensor | None) -> tuple[Any, ...]:
        *parts, starts, offsets = ctx.saved_tensors
        found = backward(*parts, starts, offsets, y_grad, after_grad)
        given = [None if x is None else grad.to(x.dtype) for x, grad in zip(parts, found, strict=False)]
        return *given, found[-1] if ctx.before else None, None, None, None

    return gradients


def _no_second_derivative(*_anything: object) -> None:
    raise RuntimeError("the generated kernels have no second derivative: use('torch') or use('reference')")
