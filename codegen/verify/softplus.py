"""What softplus launches must give: the formula on whole rows, in float64 and in the inputs' own dtype."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from attnc.codegen.verify.cases import Inputs, build, poisoned
from attnc.codegen.verify.dense import rows_of
from attnc.codegen.verify.gradients import Gradients, kernel_gradients, rms
from attnc.codegen.verify.judge import Verdict
from attnc.codegen.verify.report import LIMIT
from attnc.compiler.mixers.softmax import softplus_weights
from attnc.runtime.keys import KeyPart
from attnc.runtime.softplus import SoftplusKernels

DRAWS = 6


def attend(kernels: SoftplusKernels, inputs: Inputs, q: Tensor, parts: tuple[KeyPart, ...]) -> Tensor:
    """The launch on tensors as they are: what a case's table says, without head groups."""
    call = (inputs.rows, inputs.form, inputs.batch, inputs.cap)
    factor = inputs.scale.expand(q.shape[:2])
    with poisoned():
        return kernels.attend(q, parts, factor, call)


def dense(
    inputs: Inputs,
    q: Tensor,
    keys: list[Tensor],
    values: list[Tensor],
    rounded: torch.dtype,
    before: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """o [T, H, E] from the formula, computed in q's dtype; weights are rounded to `rounded` on the way.

    before: keys [n, G, D] and values [n, G, E] that every query sees, beside those of the sequences.
    """
    outputs = []
    exponent = inputs.case.kernel.exponent
    assert exponent is not None, "a softplus launch"
    rows = list(rows_of(inputs, 10**6))
    for s, head, group, place, shown in rows:
        key, value = keys[s][:, group], values[s][:, group]
        if before is not None:
            key, value = (torch.cat((one[:, group], other)) for one, other in zip(before, (key, value), strict=True))
        always = 0 if before is None else len(before[0])
        seen = torch.cat((shown.new_ones(len(shown), always), shown), 1)
        logits = (q[place, head] @ key.T) * inputs.scale[head].to(q.dtype)
        if inputs.cap is not None:
            logits = inputs.cap * torch.tanh(logits / inputs.cap)
        weights = softplus_weights(logits[None], seen, None, exponent=exponent)[0] if seen.shape[1] else logits
        outputs.append(((place, head), weights.to(rounded).to(q.dtype) @ value))
    o = torch.zeros(*q.shape[:2], inputs.case.kernel.value_width, dtype=q.dtype, device=q.device)
    for (place, head), part in outputs:
        o[place, head] = part
    return o


def leaves_of(inputs: Inputs, dtype: torch.dtype) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """q, keys and values in `dtype`, to be differentiated."""
    q = inputs.q.detach().to(dtype).requires_grad_()
    keys, values = ([x.detach().to(dtype).requires_grad_() for x in part] for part in (inputs.keys, inputs.values))
    return q, keys, values


def both(inputs: Inputs, dtype: torch.dtype, o_grad: Tensor | None) -> Gradients:
    """The result and, if asked, the gradients of the formula in `dtype`, by PyTorch."""
    q, keys, values = leaves_of(inputs, dtype)
    o = dense(inputs, q, keys, values, dtype if dtype == torch.float64 else inputs.q.dtype)
    found = {"o": o.detach() if dtype == torch.float64 else o.detach().to(inputs.q.dtype)}
    if o_grad is None:
        return found
    leaves = [q, *keys, *values]
    asked = torch.autograd.grad(o, leaves, o_grad.to(dtype), allow_unused=True)
    grads = [torch.zeros_like(leaf) if grad is None else grad for leaf, grad in zip(leaves, asked, strict=True)]
    count = len(keys)
    named = {"q": grads[0], "k": torch.cat(grads[1 : 1 + count]), "v": torch.cat(grads[1 + count :])}
    return found | {name: grad if dtype == torch.float64 else grad.to(inputs.q.dtype) for name, grad in named.items()}


def from_kernels(kernels: SoftplusKernels, inputs: Inputs, o_grad: Tensor | None) -> Gradients:
    """The same by the kernels."""
    leaves = {"q": inputs.q, "k": inputs.part.k, "v": inputs.part.v}
    leaves = {name: leaf.detach().clone().requires_grad_(o_grad is not None) for name, leaf in leaves.items()}
    part = replace(inputs.part, k=leaves["k"], v=leaves["v"])
    o = attend(kernels, inputs, leaves["q"], (part,))
    found = {"o": o.detach()}
    if o_grad is None:
        return found
    with poisoned():
        grads = torch.autograd.grad(o, list(leaves.values()), o_grad)
    return found | kernel_gradients(inputs, dict(zip(leaves, grads, strict=True)))


@dataclass(frozen=True)
class ExpectedSoftplus:
    """What must come out of a softplus launch, PyTorch's errors, and `rounded_apart` where gradients are asked."""

    want: Gradients
    torch_errors: dict[str, float]
    apart: float
    with_gradients: bool


def expect_softplus(inputs: Inputs, gradients: bool) -> ExpectedSoftplus:
    """Of any kernels on these inputs. PyTorch computes in float32; weights and results are rounded to the inputs' dtype. Its
    errors are root mean squares, the worst of a few draws of the case.
    """
    want = both(inputs, torch.float64, outer(inputs) if gradients else None)
    own = dict.fromkeys(want, 0.0)
    for draw in range(DRAWS):
        other = build(replace(inputs.case, seed=inputs.case.seed + draw))
        exact, theirs = (both(other, dtype, outer(other) if gradients else None) for dtype in (torch.float64, torch.float32))
        own = {name: max(worst, rms(theirs[name], exact[name])) for name, worst in own.items()}
    return ExpectedSoftplus(want, own, rounded_apart(inputs) if gradients else 0.0, gradients)


def compare_softplus(
    kernels: SoftplusKernels, inputs: Inputs, expected: ExpectedSoftplus, names: Collection[str]
) -> dict[str, Verdict]:
    """Of those of o, q, k and v that are named. Gradients may also be off by what weights change where two passes round their
    logits apart, as `twice_rounded` has it for a softmax.
    """
    found = from_kernels(kernels, inputs, outer(inputs) if expected.with_gradients else None)
    verdicts = {}
    for name in names:
        got, want, own = found[name], expected.want[name], expected.torch_errors[name]
        ours = rms(got, want)
        allowed = LIMIT * own + (0.0 if name == "o" else expected.apart * rms(want, torch.zeros_like(want)))
        what = "the result" if name == "o" else f"the gradient of {name}"
        faults = (
            (got.dtype == inputs.q.dtype, f"{what} is {got.dtype}"),
            (not torch.isnan(got).any(), f"{what} holds NaN"),
            (ours <= allowed, f"{what} is off by {ours:.3g}, PyTorch's by {own:.3g}"),
        )
        verdicts[name] = Verdict(ours, own, allowed, next((fault for holds, fault in faults if not holds), ""))
    return verdicts


def rounded_apart(inputs: Inputs) -> float:
    """The largest relative error of a row's weights x^p / sum, where the sum is another pass's: logits are rounded in each, the
    logarithm of x^p changes with the logit z by p share sigmoid(z) / x.
    """
    exponent, worst = inputs.case.kernel.exponent, 0.0
    assert exponent is not None, "a softplus launch"
    for s, head, group, place, seen in rows_of(inputs, 10**6):
        z = (inputs.q[place, head].double() @ inputs.keys[s][:, group].double().T) * inputs.scale[head].double()
        z = z if inputs.cap is None else inputs.cap * torch.tanh(z / inputs.cap)
        count = seen.sum(1, keepdim=True)
        z = z * count.clamp(min=1).log()
        mass = torch.nn.functional.softplus(z).masked_fill(~seen, 0.0)
        share = count / mass.sum(1, keepdim=True).clamp(min=1e-30)
        x = torch.relu(mass * share - (count > 3).to(mass.dtype))
        change = (
            softplus_weights(z / count.clamp(min=2).log(), seen, None, exponent=exponent) * share * torch.sigmoid(z) * z.abs()
        )
        moved = torch.where(x > 0, exponent * change / torch.where(x > 0, x, 1.0), 0.0)
        worst = max(worst, float(moved.sum(1).max()) if moved.numel() else 0.0)
    return 2 * 2.0**-24 * worst


def outer(inputs: Inputs) -> Tensor:
    """The result's gradient, [T, H, E]."""
    generator = torch.Generator().manual_seed(inputs.case.seed + 77)
    shape = (*inputs.q.shape[:2], inputs.case.kernel.value_width)
    return torch.randn(shape, generator=generator).to(inputs.q.device, inputs.q.dtype)
