"""Where a loss that is not finite comes from: the first module or gradient with a number that is none."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

CLEAR = "a second look at the same examples found every number finite"


def first_not_finite(model: nn.Module, run: Callable[[], Tensor]) -> str:
    """A sentence that names it; `run` computes the loss again, and its backward pass is made here."""
    for name, weight in model.named_parameters():
        if not _finite(weight):
            return f"{place(name)} holds a weight that is not finite: {name}"
    seen: list[tuple[str, str]] = []
    handles = [module.register_forward_hook(_watch(name, seen)) for name, module in model.named_modules() if name]
    try:
        loss = run()
        if not seen and not _finite(loss):
            return "every layer is finite, and the loss of its logits is not"
        if not seen:
            loss.backward()  # type: ignore[no-untyped-call]
    finally:
        for handle in handles:
            handle.remove()
    if seen:
        what, name = seen[0]
        return f"the first {what} that is not finite is in {place(name)}: {name}"
    for name, weight in reversed(list(model.named_parameters())):
        if weight.grad is not None and not _finite(weight.grad):
            return f"the first gradient that is not finite is in {place(name)}: {name}"
    return CLEAR


def place(name: str) -> str:
    """`layer 3` for a module or tensor of it, else what it is."""
    found = re.match(r"model\.layers\.(\d+)(?:\.|$)", name)
    if found:
        return f"layer {found.group(1)}"
    return {"model.embed_tokens": "the embedding", "model.norm": "the last norm", "lm_head": "the head"}.get(
        name.removesuffix(".weight").removesuffix(".bias"), "the model"
    )


def _watch(name: str, seen: list[tuple[str, str]]) -> Callable[..., None]:
    """Notes the module if its output is not finite, or later the gradient of its output; the innermost comes first."""

    def watch(_module: nn.Module, _inputs: Any, output: Any) -> None:
        if not isinstance(output, Tensor) or not output.is_floating_point():
            return
        if not _finite(output):
            seen.append(("activation", name))
        elif output.requires_grad:
            output.register_hook(lambda grad: None if _finite(grad) else seen.append(("gradient", name)))  # type: ignore[no-untyped-call]

    return watch


def _finite(x: Tensor) -> bool:
    return bool(torch.isfinite(x.detach()).all())
