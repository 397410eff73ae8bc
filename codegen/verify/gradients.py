"""What the backward kernels must give: float64 autograd of dense attention, beside PyTorch's own in the inputs' dtype."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from attnc.codegen.verify.cases import Inputs, poisoned
from attnc.codegen.verify.dense import logits, reference, rows_of, torch_own

Gradients = dict[str, Tensor]
Forward = Callable[[Inputs], tuple[Tensor, Tensor]]
Launch = Callable[..., tuple[Tensor, Tensor]]
"""The kernels of a launch as one differentiable function (runtime/launch.py)."""


def outer_gradients(inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Gradients of the results: o_grad [T, H, E] in q's dtype, lse_grad [T, H] fp32; small integers where q finds keys."""
    generator = torch.Generator().manual_seed(inputs.case.seed + 77)
    shape = (*inputs.q.shape[:2], inputs.case.kernel.value_width)
    if inputs.case.found:
        o_grad, lse_grad = (torch.randint(-2, 3, size, generator=generator).float() for size in (shape, shape[:2]))
    else:
        o_grad, lse_grad = (torch.randn(size, generator=generator) for size in (shape, shape[:2]))
    return o_grad.to(inputs.q.device, inputs.q.dtype), lse_grad.to(inputs.q.device)


def dense_gradients(inputs: Inputs, o_grad: Tensor, lse_grad: Tensor, forward: Forward, dtype: torch.dtype) -> Gradients:
    """q_grad [T, H, D], k_grad and v_grad (all sequences' keys, one after another), sink_grad [H] where there is a sink logit.

    A query that sees nothing has a log-sum-exp of -inf, which depends on nothing.
    """
    q = inputs.q.detach().to(dtype).requires_grad_()
    keys, values = ([x.detach().to(dtype).requires_grad_() for x in part] for part in (inputs.keys, inputs.values))
    wide = torch.promote_types(dtype, torch.float32)
    sink = None if inputs.sink_logit is None else inputs.sink_logit.detach().to(wide, copy=True).requires_grad_()
    o, lse = forward(replace(inputs, q=q, keys=keys, values=values, sink_logit=sink))
    finite = torch.isfinite(lse)
    loss = (o * o_grad.to(o.dtype)).sum() + (lse[finite] * lse_grad[finite].to(lse.dtype)).sum()
    leaves = [q, *keys, *values, *([] if sink is None else [sink])]
    asked = torch.autograd.grad(loss, leaves, allow_unused=True)
    found = [torch.zeros_like(leaf) if grad is None else grad for leaf, grad in zip(leaves, asked, strict=True)]
    count = len(keys)
    gradients = {"q": found[0], "k": torch.cat(found[1 : 1 + count]), "v": torch.cat(found[1 + count : 1 + 2 * count])}
    return gradients if sink is None else gradients | {"sink_logit": found[-1]}


def gradients(launch: Launch, inputs: Inputs, o_grad: Tensor, lse_grad: Tensor) -> Gradients:
    """A launch's gradients through autograd; k and v flat. Memory that nobody wrote is NaN."""
    leaves = {"q": inputs.q, "k": inputs.part.k, "v": inputs.part.v}
    if inputs.sink_logit is not None:
        leaves["sink_logit"] = inputs.sink_logit
    leaves = {name: leaf.detach().clone().requires_grad_() for name, leaf in leaves.items()}
    part = replace(inputs.part, k=leaves["k"], v=leaves["v"])
    rest = (inputs.rows, inputs.form, inputs.batch, inputs.scale, inputs.cap)
    with poisoned():
        o, lse = launch(leaves["q"], part, *rest, leaves.get("sink_logit"))
        seen = torch.isfinite(lse)
        found = torch.autograd.grad((o, lse), list(leaves.values()), (o_grad, torch.where(seen, lse_grad, 0.0)))
    return dict(zip(leaves, found, strict=True))


def kernel_gradients(inputs: Inputs, flat: Gradients) -> Gradients:
    """Flat gradients of a part, as many as there are, laid out as `dense_gradients` lays them."""
    part, kernel = inputs.part, inputs.case.kernel
    heads = torch.arange(len(inputs.case.unions), device=inputs.q.device)
    found: Gradients = {name: flat[name] for name in ("q", "sink_logit") if name in flat}
    for name, begin, stride, width in (
        ("k", part.k_begin, part.k_stride, kernel.head_width),
        ("v", part.v_begin, part.v_stride, kernel.value_width),
    ):
        if name not in flat:
            continue
        columns = torch.arange(width, device=inputs.q.device)
        rows = []
        for s, count in enumerate(part.counts):
            slots = torch.arange(count, device=inputs.q.device)
            index = begin[s, heads][None, :, None] + slots[:, None, None] * stride + columns
            rows.append(flat[name][index])
        found[name] = torch.cat(rows)
    return found


def twice_rounded(inputs: Inputs) -> float:
    """Relative error of weights exp(logit - lse) whose logits the two passes round apart; only large logits make it count."""
    if inputs.case.magnitude <= 1:
        return 0.0
    rows = (
        logits(inputs, inputs.q[at, head], inputs.keys[s][:, group], head, seen)
        for s, head, group, at, seen in rows_of(inputs, 1024)
        if seen.any()
    )
    return 2 * 2.0**-24 * max((float(row[torch.isfinite(row)].abs().max()) for row in rows), default=0.0)


def own_errors(inputs: Inputs, o_grad: Tensor, lse_grad: Tensor) -> dict[str, float]:
    """PyTorch's errors, at least those of rounding the right results; autograd's not where it met no key and made NaN."""
    want = dense_gradients(inputs, o_grad, lse_grad, reference, torch.float64)
    autograd = dense_gradients(inputs, o_grad, lse_grad, torch_own, inputs.q.dtype)
    fused = formula(inputs, o_grad, lse_grad)
    errors = {}
    for name, exact in want.items():
        found = [rms(one, exact) for one in (fused[name], exact.to(fused[name].dtype))]
        asked = rms(autograd[name], exact)
        errors[name] = max(found if math.isnan(asked) else [asked, *found])
    return errors


def formula(inputs: Inputs, o_grad: Tensor, lse_grad: Tensor) -> Gradients:
    """FlashAttention-2's backward pass (arXiv 2307.08691, algorithm 2) on whole rows: operands in q's dtype, the rest fp32.

    The log-sum-exp is that of another pass: its logits come from scaled q and k, as in PyTorch's operator, summed in another
    order, and it counts in base 2, as fused kernels do. So a weight is not exactly 1 where there is one key.
    """
    dtype, wide = inputs.q.dtype, torch.promote_types(inputs.q.dtype, torch.float32)
    q_grad = torch.zeros(inputs.q.shape, dtype=wide, device=inputs.q.device)
    k_grad, v_grad = (
        [torch.zeros(x.shape, dtype=wide, device=x.device) for x in part] for part in (inputs.keys, inputs.values)
    )
    sink_grad = None if inputs.sink_logit is None else torch.zeros_like(inputs.sink_logit, dtype=torch.float64)
    plain = replace(inputs, scale=torch.ones_like(inputs.scale))
    for s, head, group, place, seen in rows_of(inputs, 1024):
        q, key, value = inputs.q[place, head], inputs.keys[s][:, group], inputs.values[s][:, group]
        score = logits(inputs, q.to(wide), key.to(wide), head, seen)
        sink = [logit[head].to(wide).expand(len(score), 1) for logit in (inputs.sink_logit,) if logit is not None]
        if not score.shape[1] and not sink:
            continue
        root = inputs.scale[head].to(wide).sqrt()
        passed = logits(plain, (q.to(wide) * root).flip(1), (key.to(wide) * root).flip(1), head, seen)
        sums = base_two_logsumexp(torch.cat([passed, *sink], 1))
        weight = torch.exp(score - torch.where(torch.isneginf(sums), 0, sums))
        o = (weight.to(dtype) @ value).to(dtype)
        grad = o_grad[place, head]
        outer = torch.where(torch.isneginf(sums), 0, lse_grad[place, head][:, None])
        delta = (o.to(wide) * grad.to(wide)).sum(1, keepdim=True) - outer
        change = weight * ((grad @ value.T).to(wide) - delta) * inputs.scale[head]
        if inputs.cap is not None:
            change = change * (1 - (score.masked_fill(~seen, 0.0) / inputs.cap) ** 2)
        q_grad[place, head] = (change.to(dtype) @ key).to(wide)
        k_grad[s][:, group] += (change.to(dtype).T @ q).to(wide)
        v_grad[s][:, group] += (weight.to(dtype).T @ grad).to(wide)
        if sink_grad is not None:
            sink_grad[head] -= (torch.exp(sink[0] - sums) * delta).sum(dtype=torch.float64)
    found = {"q": q_grad.to(dtype), "k": torch.cat(k_grad).to(dtype), "v": torch.cat(v_grad).to(dtype)}
    return found if sink_grad is None else found | {"sink_logit": sink_grad.to(torch.float32)}


def base_two_logsumexp(score: Tensor) -> Tensor:
    """[n, 1] of score [n, L], rounded to base 2 and back."""
    logits = score / math.log(2)
    top = logits.amax(1, keepdim=True).nan_to_num(neginf=0.0)
    return (top + torch.log2(torch.exp2(logits - top).sum(1, keepdim=True))) * math.log(2)


def rms(got: Tensor, want: Tensor) -> float:
    """Root mean square of the difference; NaN wherever there is one, 0 of nothing."""
    return float((got.double() - want).square().mean().sqrt()) if want.numel() else 0.0
