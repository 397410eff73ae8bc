"""What `torch.autocast` does to attention: q, k and v in its dtype, all the rest in float32, as for PyTorch's own attention."""

from __future__ import annotations

import torch
from torch import Tensor


def cast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors, in autocast's dtype where it is on for their device; float64 stays, as it does in PyTorch."""
    kind = tensors[0].device.type
    if not torch.is_autocast_enabled(kind):
        return tensors
    dtype = torch.get_autocast_dtype(kind)
    return tuple(x if x.dtype == torch.float64 else x.to(dtype) for x in tensors)


def off(device: torch.device) -> torch.autocast:
    """The context in which products are computed in the dtype that the code says."""
    return torch.autocast(device.type, enabled=False)
