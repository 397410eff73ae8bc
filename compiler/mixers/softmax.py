"""What logits become: the weights of a softmax, and of softplus with re-weighting. Copied into built folders as they stand."""

from __future__ import annotations

from typing import Any


def softmax_weights(logits: Any, visible: Any, sink_logit: Any) -> Any:
    """exp(logit) over the sum of exp over the visible keys, and over the sink's logit, whose value is zero.

    logits [heads, queries, keys]; visible [queries, keys]; sink_logit [heads] or None. A query that sees no key gets zeros.
    """
    import torch

    hidden = logits.masked_fill(~visible, float("-inf"))
    top = hidden.detach().amax(dim=-1, keepdim=True)
    if sink_logit is not None:
        top = torch.maximum(top, sink_logit.detach().to(top.dtype).view(-1, 1, 1))
    top = top.masked_fill(top == float("-inf"), 0.0)
    mass = torch.exp(hidden - top)
    total = mass.sum(dim=-1, keepdim=True)
    if sink_logit is not None:
        total = total + torch.exp(sink_logit.to(top.dtype).view(-1, 1, 1) - top)
    return mass / total.masked_fill(total == 0, 1.0)


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
