"""How far off a result may be: at most 1.5 times as far from float64 as PyTorch's own in the same dtype on the same inputs."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from attnc.codegen.verify.cases import Inputs, build
from attnc.codegen.verify.dense import counts, reference, torch_own
from attnc.codegen.verify.gradients import (
    Gradients,
    dense_gradients,
    kernel_gradients,
    outer_gradients,
    own_errors,
    rms,
    twice_rounded,
)
from attnc.codegen.verify.report import LIMIT

COUNTED, FEW = 1024, 65536
"""Of so many numbers one draw says enough of PyTorch's largest error, and of its mean; of fewer the worst of several does."""


@dataclass(frozen=True)
class Verdict:
    """Errors of a kernel and of PyTorch against float64, how large the first may be, and what is wrong, or nothing."""

    error: float
    torch_error: float
    allowed: float
    wrong: str = ""

    def rank(self) -> tuple[bool, float]:
        """The worse, the higher: wrong ones first, then by the share of what is allowed."""
        ratio = self.error / self.allowed if self.allowed else 0.0
        return bool(self.wrong), ratio if math.isfinite(ratio) else math.inf


def error(got: Tensor, want: Tensor) -> float:
    """The largest difference where `want` is finite; NaN wherever there is one."""
    there = torch.isfinite(want)
    return float((got.double() - want)[there].abs().max()) if there.any() else 0.0


@dataclass(frozen=True)
class Expected:
    """What must come out of a forward kernel, and PyTorch's errors: of o, and of the log-sum-exp with roundings to base 2.

    exact  o and the rows of which it holds to the bit, where nothing is rounded
    """

    o: Tensor
    lse: Tensor
    torch_error: float
    allowed_lse: float
    exact: tuple[Tensor, Tensor] | None


def expect(inputs: Inputs, block: int = 1024) -> Expected:
    """Of any kernel on these inputs.

    The kernels count in base 2: their log-sum-exp is rounded three times more than torch's, to the scale, and there and back.
    Torch's is the worst of so many draws of the case that COUNTED rows are seen: a call of two rows says little about either,
    and so does a sharp softmax, whose largest error is that of the one row where two keys are nearly alike.
    """
    want, want_lse = reference(inputs, block)
    torchs, torchs_lse = torch_error(inputs, want, want_lse, block)
    draws = max(-(-COUNTED // max(1, want_lse.numel())), 8 if inputs.case.magnitude > 1 else 1)
    for draw in range(1, min(16, draws)):
        other = build(replace(inputs.case, seed=inputs.case.seed + draw))
        more = torch_error(other, *reference(other, block), block)
        torchs, torchs_lse = max(torchs, more[0]), max(torchs_lse, more[1])
    finite = want_lse[torch.isfinite(want_lse)].abs()
    based = 3 * 2.0**-24 * (float(finite.max()) if finite.numel() else 0.0)
    return Expected(want, want_lse, torchs, LIMIT * torchs_lse + based, _exact(inputs, want, block))


def judge(inputs: Inputs, o: Tensor, lse: Tensor, block: int = 1024) -> Verdict:
    """Of a forward kernel's results."""
    return compare(inputs, expect(inputs, block), o, lse)


def compare(inputs: Inputs, expected: Expected, o: Tensor, lse: Tensor) -> Verdict:
    """Of a forward kernel's results beside what is expected."""
    ours, ours_lse = error(o, expected.o), error(lse, expected.lse)
    empty, torchs = torch.isneginf(expected.lse), expected.torch_error
    numbers, rows = expected.exact or (o, slice(0))
    faults = (
        (o.dtype == inputs.q.dtype, f"the result is {o.dtype}"),
        (lse.dtype == torch.float32, f"the log-sum-exp is {lse.dtype}"),
        (not torch.isnan(o).any(), "the result holds NaN"),
        (not torch.isnan(lse).any(), "the log-sum-exp is NaN somewhere"),
        (torch.equal(torch.isneginf(lse), empty), "rows without keys are not those of the reference"),
        (bool((o[empty] == 0).all()), "rows without keys are not 0"),
        (ours <= LIMIT * torchs, f"error {ours:.3g}, PyTorch's {torchs:.3g}"),
        (ours_lse <= expected.allowed_lse, f"log-sum-exp's error {ours_lse:.3g}, allowed {expected.allowed_lse:.3g}"),
        (torch.equal(o[rows], numbers[rows].to(o.dtype)), "integers are not exact"),
    )
    return Verdict(ours, torchs, LIMIT * torchs, next((fault for holds, fault in faults if not holds), ""))


def _exact(inputs: Inputs, want: Tensor, block: int) -> tuple[Tensor, Tensor] | None:
    """Results where nothing is rounded, and which rows have some: a value found, or a mean over a power of two of keys."""
    if inputs.case.found:
        return want.round(), torch.ones(want.shape[:2], dtype=torch.bool, device=want.device)
    if not inputs.case.integers or inputs.case.magnitude != 0:
        return None
    count = counts(inputs, block)
    return (want * count[..., None]).round() / count.clamp(min=1)[..., None], (count & (count - 1)) == 0


def torch_error(inputs: Inputs, want: Tensor, want_lse: Tensor, block: int) -> tuple[float, float]:
    """Torch's errors, at least those of rounding the right results to the dtypes that they are asked for in."""
    own, own_lse = torch_own(inputs, block)
    rounded = error(want.to(inputs.q.dtype), want), error(want_lse.float(), want_lse)
    return max(error(own, want), rounded[0]), max(error(own_lse, want_lse), rounded[1])


@dataclass(frozen=True)
class ExpectedGradients:
    """What must come out of backward kernels, PyTorch's errors, and `twice_rounded` of the inputs."""

    want: Gradients
    torch_errors: dict[str, float]
    twice: float


def expect_gradients(inputs: Inputs, o_grad: Tensor, lse_grad: Tensor) -> ExpectedGradients:
    """Of any kernels on these inputs.

    PyTorch's error is the larger one of two: autograd of its own attention, and the fused backward pass's formula in its
    operations, whose weights come from a log-sum-exp (coarse where logits are large) and whose `delta` comes from a rounded
    result. Errors are root mean squares: one wrong number among thousands is far above rounding, and luck of one draw is not.
    Where gradients have few numbers, PyTorch's error is the worst of several draws of the case.
    """
    want = dense_gradients(inputs, o_grad, lse_grad, reference, torch.float64)
    own = own_errors(inputs, o_grad, lse_grad)
    numbers = max(1, min(x.numel() for x in want.values()))
    for draw in range(1, min(8, max(-(-COUNTED // numbers), 8 if numbers < FEW else 1))):
        other = build(replace(inputs.case, seed=inputs.case.seed + draw))
        more = own_errors(other, *outer_gradients(other))
        own = {name: max(own[name], more[name]) for name in own}
    return ExpectedGradients(want, own, twice_rounded(inputs))


def judge_gradients(inputs: Inputs, flat: Gradients, o_grad: Tensor, lse_grad: Tensor) -> dict[str, Verdict]:
    """Of those of q, k, v and sink_logit that `flat` holds, as autograd gives them."""
    return compare_gradients(inputs, expect_gradients(inputs, o_grad, lse_grad), flat)


def compare_gradients(inputs: Inputs, expected: ExpectedGradients, flat: Gradients) -> dict[str, Verdict]:
    """The same beside what is expected."""
    got = kernel_gradients(inputs, flat)
    want, own = expected.want, expected.torch_errors
    return {name: _gradient(inputs, name, got[name], want[name], own[name], expected.twice) for name in got}


def _gradient(inputs: Inputs, name: str, got: Tensor, want: Tensor, own: float, twice: float) -> Verdict:
    ours = rms(got, want)
    allowed = LIMIT * own + twice * rms(want, torch.zeros_like(want))
    faults = (
        (not torch.isnan(got).any(), f"the gradient of {name} holds NaN"),
        (
            ours <= allowed,
            f"the gradient of {name} is off by {ours:.3g}, PyTorch's by {own:.3g}",
        ),
        (
            not inputs.case.found or inputs.case.kernel.cap or torch.equal(got, want.round().to(got.dtype)),
            f"the gradient of {name} is not exact in integers",
        ),
    )
    return Verdict(ours, own, allowed, next((fault for holds, fault in faults if not holds), ""))
