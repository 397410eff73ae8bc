"""PyTorch's own flash kernel on packed sequences, with a window or without: what scaled_dot_product_attention does not offer.

Legend: T new tokens of S sequences; H query heads, G KV heads; D key and value width.

One call serves sequences of any lengths, where a call for each would have PyTorch plan its kernel anew for every length.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .autocast import cast
from .batch import Batch
from .gathered import packed
from .intervals import Form, HeadGroup, has_shares
from .keys import KeyPart
from .sizes import alike
from .windows import no_window, window_of

Flash = Callable[..., Any]
"""A function with the arguments and results of torch.ops.aten._flash_attention_forward."""


def suits(q: Tensor, parts: tuple[KeyPart, ...], groups: tuple[HeadGroup, ...], form: Form, batch: Batch) -> bool:
    """Whether the kernel can do the launch on this machine: windows over the call's own keys in 16 bits, on a GPU of 8.0 on."""
    if not q.is_cuda or cast(q)[0].dtype not in (torch.bfloat16, torch.float16):
        return False
    if torch.cuda.get_device_capability(q.device) < (8, 0):
        return False
    return sees(parts, groups, form, batch)


def sees(parts: tuple[KeyPart, ...], groups: tuple[HeadGroup, ...], form: Form, batch: Batch) -> bool:
    """Whether the kernel can say what the heads see and how their keys lie."""
    part = parts[0]
    own = len(parts) == 1 and part.counts == batch.sizes and part.bases == batch.pasts and not part.rings
    widths = part.k_width == part.v_width <= 256 and part.k_width % 8 == 0
    windows = not any(no_window(group, form.causal) for group in groups)
    return own and widths and windows and (alike(batch.totals) or not has_shares(groups))


def flash_attention(
    q: Tensor,
    part: KeyPart,
    groups: tuple[HeadGroup, ...],
    form: Form,
    batch: Batch,
    scale: float,
    using: Flash | None = None,
) -> Tensor:
    """q [T, H, D] -> [T, H, D], one call for the heads of each group. `using`: what runs in place of PyTorch's function."""
    run = using or torch.ops.aten._flash_attention_forward
    ends = batch.offsets.to(torch.int32)
    repeat = q.shape[1] // (groups[-1].last + 1)
    outputs = []
    for group in groups:
        views = packed(part, group.first, group.last)
        assert views is not None, "a call's own keys follow each other"
        k, v = (x.squeeze(0).transpose(0, 1) for x in views)  # [T, heads, D]
        heads = q[:, group.first * repeat : (group.last + 1) * repeat]
        back, ahead = (-1 if end is None else end for end in window_of(group, batch, form.causal))
        plain = form.causal and back == -1
        found = run(
            *cast(heads, k, v), ends, ends, batch.max_new, batch.max_new, 0.0, plain, False,
            scale=scale, window_size_left=back, window_size_right=ahead,
        )  # fmt: skip
        outputs.append(found[0])
    return torch.cat(outputs, dim=1) if len(outputs) > 1 else outputs[0]
