"""How many exponentials a GPU takes a second: a kernel that does nothing else, in registers."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024
PROGRAMS = 64
"""For each multiprocessor."""


@triton.jit  # type: ignore[untyped-decorator]
def kernel(x, STEPS, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: N803, D103
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + place)
    for _ in range(STEPS):
        value = tl.exp2(-value)
    tl.store(x + place, value)


def run(x: Tensor, steps: int) -> None:
    """2^-x, `steps` times over, for each number of x (whole blocks of them), in place."""
    launch: Any = kernel
    launch[(x.numel() // BLOCK,)](x, steps, BLOCK=BLOCK)


def numbers(device: torch.device) -> Tensor:
    """As many as keep the whole device at work."""
    processors = torch.cuda.get_device_properties(device).multi_processor_count
    return torch.rand(processors * PROGRAMS * BLOCK, device=device)
