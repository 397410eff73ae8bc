"""What this model means: masks and formulas in plain PyTorch, any dtype, any device, as slow as they are obvious.

Legend: i query positions [Nq, 1], j key positions [1, Nk] (negative for learned keys, which have none), length the number of
tokens that shares of the length are of.
"""

from __future__ import annotations

from typing import Any


def share(percent: float, length: int) -> int:
    """`percent` of `length` tokens, rounded down, at least 1."""
    return max(1, int(length * percent / 100))


def full_mask(i: Any, j: Any, *, causal: bool) -> Any:
    """Query i sees key j: every key up to its own, or all."""
    import torch

    return j <= i if causal else torch.ones_like(i - j, dtype=torch.bool)


def softplus_weights(logits: Any, visible: Any, sink_logit: Any, *, exponent: float) -> Any:
    """LSSAR (arXiv 2501.13428): a = softplus(logit x log N), a / sum a, then relu(a N - 1)^exponent, divided by its sum.

    logits [heads, queries, keys] are log(head width) q.k; N counts a query's visible keys. With up to 3 of them nothing is
    subtracted, as in the paper. Each row is divided by its largest entry before the power, which changes nothing but
    keeps x^15 from vanishing. A row whose weights are all equal has nothing above the mean: zeros.
    """
    import torch

    assert sink_logit is None, "a sink logit has no meaning among softplus weights"
    count = visible.sum(dim=-1, keepdim=True).to(logits.dtype)
    mass = torch.nn.functional.softplus(logits * count.clamp(min=1).log()).masked_fill(~visible, 0.0)
    total = mass.sum(dim=-1, keepdim=True)
    share = mass / total.masked_fill(total == 0, 1.0)
    sharp = torch.relu(share * count - (count > 3).to(share.dtype)).masked_fill(~visible, 0.0)
    top = sharp.detach().amax(dim=-1, keepdim=True)
    sharp = (sharp / top.masked_fill(top == 0, 1.0)) ** exponent
    total = sharp.sum(dim=-1, keepdim=True)
    return sharp / total.masked_fill(total == 0, 1.0)


# attributes.attn:5  full
def visible_0(i: Any, j: Any, length: int) -> Any:
    """full: which keys each query sees, [Nq, Nk]."""
    return full_mask(i, j, causal=True)
