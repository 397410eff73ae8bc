"""Kernels that between them have every hole, and the verdicts on them as assertions."""

from __future__ import annotations

from torch import Tensor

from attnc.codegen.verify.cases import Inputs
from attnc.codegen.verify.gradients import Gradients
from attnc.codegen.verify.judge import judge, judge_gradients
from attnc.compiler.families import Softmax

KERNELS = {
    "full": Softmax(1, head_width=64, value_width=64, group=4),
    "mixed": Softmax(1, head_width=128, value_width=128, group=4),
    "sink_logit": Softmax(1, head_width=64, value_width=64, group=8, sink_logit=True),
    "cap": Softmax(1, head_width=256, value_width=256, group=2, cap=True),
    "far": Softmax(1, 1, 1, head_width=64, value_width=64, group=1),
    "strides": Softmax(2, 2, head_width=128, value_width=128, group=3),
    "powers": Softmax(0, 0, 1, head_width=32, value_width=64, group=7),
    "both_ways": Softmax(2, causal=False, head_width=64, value_width=64, group=1),
    "far_both_ways": Softmax(1, 1, 1, causal=False, head_width=80, value_width=80, group=2),
    "wide": Softmax(1, head_width=129, value_width=65, group=3),
    "narrow": Softmax(1, head_width=16, value_width=16, group=16, cap=True, sink_logit=True),
}
"""A GPU runs each."""

SOFTPLUS = {
    "plain": Softmax(1, head_width=64, value_width=64, exponent=15.0),
    "grouped": Softmax(1, head_width=128, value_width=64, group=4, exponent=2.5, cap=True),
    "far": Softmax(1, 1, 1, head_width=64, value_width=64, group=2, exponent=3.0),
    "both_ways": Softmax(1, causal=False, head_width=80, value_width=80, exponent=1.0),
}
"""The same of launches whose weights are re-weighted softplus masses; each has a kernel of `masses` beside its own."""


def check(inputs: Inputs, o: Tensor, lse: Tensor, block: int = 1024) -> tuple[float, float]:
    """The kernel's error and torch's."""
    verdict = judge(inputs, o, lse, block)
    assert not verdict.wrong, verdict
    return verdict.error, verdict.torch_error


def check_gradients(inputs: Inputs, flat: Gradients, o_grad: Tensor, lse_grad: Tensor) -> dict[str, tuple[float, float]]:
    """The kernels' error and torch's for every gradient."""
    verdicts = judge_gradients(inputs, flat, o_grad, lse_grad)
    assert set(verdicts) == {"q", "k", "v"} | ({"sink_logit"} if inputs.sink_logit is not None else set())
    assert not any(verdict.wrong for verdict in verdicts.values()), verdicts
    return {name: (verdict.error, verdict.torch_error) for name, verdict in verdicts.items()}
