"""One kernel on one case: run by itself, with exact results of the others where it reads them, and judged."""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from attnc.codegen.verify.cases import Case, Inputs, build, poisoned
from attnc.codegen.verify.dense import reference
from attnc.codegen.verify.gradients import Gradients, outer_gradients
from attnc.codegen.verify.judge import (
    Expected,
    ExpectedGradients,
    Verdict,
    compare,
    compare_gradients,
    expect,
    expect_gradients,
)
from attnc.codegen.verify.softplus import ExpectedSoftplus, compare_softplus, expect_softplus
from attnc.compiler.families import BACKWARD
from attnc.runtime.softplus import SoftplusKernels

Blocks = tuple[int, ...]
DECODE = "softmax_decode"


@dataclass(frozen=True)
class Trial:
    """A case with what must come out of it, for as many kernels as are tried."""

    inputs: Inputs
    outer: tuple[Tensor, Tensor] | None
    expected: Expected | ExpectedGradients | ExpectedSoftplus


def prepare(skeleton: str, case: Case) -> Trial:
    """For kernels of this skeleton."""
    inputs = build(case)
    if case.kernel.exponent is not None:
        return Trial(inputs, None, expect_softplus(inputs, skeleton in BACKWARD))
    if skeleton not in BACKWARD:
        return Trial(inputs, None, expect(inputs))
    outer = outer_gradients(inputs)
    return Trial(inputs, outer, expect_gradients(inputs, *outer))


def run(module: ModuleType, skeleton: str, trial: Trial, blocks: Blocks | None = None) -> Verdict:
    """The verdict on a kernel file's kernel: of gradients on the worst, of decoding on the worse of two ways to share out work.
    What it raises is a reason too.

    blocks: instead of those that the file would take.
    """
    options = {} if blocks is None else {"blocks": blocks}
    try:
        if isinstance(trial.expected, Expected):
            ways: tuple[dict[str, int], ...] = ({}, {"splits": 0}) if skeleton == DECODE else ({},)
            with poisoned():
                found = [module.attend(*trial.inputs.arguments, **options, **way) for way in ways]
            return max((compare(trial.inputs, trial.expected, o, lse) for o, lse in found), key=Verdict.rank)
        assert isinstance(trial.expected, ExpectedGradients), "softplus launches run whole"
        assert trial.outer is not None, "gradients of the results come with what is expected"
        flat = gradients(module, skeleton, trial.inputs, *trial.outer, options)
        verdicts = compare_gradients(trial.inputs, trial.expected, flat)
    except Exception as error:
        return Verdict(math.nan, math.nan, math.nan, f"{type(error).__name__}: {one_line(str(error))}")
    return max(verdicts.values(), key=Verdict.rank)


def run_softplus(launch: SoftplusKernels, skeleton: str, trial: Trial) -> Verdict:
    """The verdict on one half of a softplus launch, the other half with it: none of them means something alone."""
    assert isinstance(trial.expected, ExpectedSoftplus), "prepared for its kernel"
    names = {BACKWARD[0]: ("q",), BACKWARD[1]: ("k", "v")}.get(skeleton, ("o",))
    try:
        verdicts = compare_softplus(launch, trial.inputs, trial.expected, names)
    except Exception as error:
        return Verdict(math.nan, math.nan, math.nan, f"{type(error).__name__}: {one_line(str(error))}")
    return max(verdicts.values(), key=Verdict.rank)


def gradients(
    module: ModuleType, skeleton: str, inputs: Inputs, o_grad: Tensor, lse_grad: Tensor, options: dict[str, Any]
) -> Gradients:
    """What one backward kernel computes: of q, or of k and v (flat)."""
    o, lse = exact(inputs)
    outer = torch.where(torch.isneginf(lse), 0.0, lse_grad)
    common = inputs.arguments[:-1]
    with poisoned():
        if skeleton == BACKWARD[0]:
            q_grad, _ = module.attend_backward_queries(*common, o, lse, o_grad, outer, **options)
            return {"q": q_grad}
        delta = (o.double() * o_grad.double()).sum(-1).float() - outer
        k_grad, v_grad = module.attend_backward_keys(*common, lse, delta, o_grad, **options)
        return {"k": k_grad, "v": v_grad}


def exact(inputs: Inputs) -> tuple[Tensor, Tensor]:
    """o and the log-sum-exp as a forward kernel without errors would leave them."""
    o, lse = reference(inputs)
    return o.to(inputs.q.dtype), lse.float()


def blocks(module: ModuleType, device: torch.device, dtype: torch.dtype) -> Blocks:
    """The blocks that a kernel file takes on this device."""
    found: Blocks = module.BLOCKS[module.architecture(device), dtype.itemsize]
    return found


def words(case: Case) -> str:
    """The case, for a reader."""
    texts = [f"{'+'.join(map(str, case.sizes))} tokens"]
    if any(case.pasts):
        texts.append(f"after {'+'.join(map(str, case.pasts))}")
    texts.append(f"{len(case.unions) * case.kernel.group} heads")
    if case.keeps is not None and any(case.keeps):
        texts.append("rings")
    if case.found:
        texts.append("one key found")
    return ", ".join(texts)


def one_line(text: str) -> str:
    """The first line of a message that says something."""
    return next((line.strip() for line in text.splitlines() if line.strip()), "no message")[:200]
