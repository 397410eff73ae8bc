"""What `torch.autocast` does to attention: q, k and v in its dtype, all the rest as written, as for PyTorch's own attention.

Without it q, k and v have one dtype: mixed ones are a mistake, as they are in PyTorch.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from .keys import KeyPart


def enabled(x: Tensor) -> bool:
    """Whether autocast is on for x's device."""
    return torch.is_autocast_enabled(x.device.type)


def cast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors, in autocast's dtype where it is on for their device; float64 stays, as it does in PyTorch."""
    if not enabled(tensors[0]):
        return tensors
    dtype = torch.get_autocast_dtype(tensors[0].device.type)
    return tuple(x if x.dtype == torch.float64 else x.to(dtype) for x in tensors)


def cast_parts(parts: tuple[KeyPart, ...]) -> tuple[KeyPart, ...]:
    """The parts, their keys and values cast. A cache of another dtype is copied: `new_cache` within autocast avoids it."""
    return tuple(_cast_part(part) for part in parts)


def _cast_part(part: KeyPart) -> KeyPart:
    k, v = cast(part.k, part.v)
    return part if k is part.k and v is part.v else replace(part, k=k, v=v)


def check_dtypes(q: Tensor, parts: tuple[KeyPart, ...]) -> None:
    """Raises ValueError, naming the argument, unless q and all keys and values have one dtype."""
    for part in parts:
        for name, x in (("k", part.k), ("v", part.v)):
            if x.dtype != q.dtype:
                where = f"{name} is {word(x.dtype)} and q {word(q.dtype)}"
                raise ValueError(f"q, k and v, new and cached, have one dtype, or torch.autocast: {where}")


def off(x: Tensor) -> torch.autocast:
    """The context in which products are computed in the dtypes that the code says."""
    return torch.autocast(x.device.type, enabled=False)


def word(dtype: torch.dtype) -> str:
    """`float32` for torch.float32."""
    return str(dtype).removeprefix("torch.")
