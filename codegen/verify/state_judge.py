"""What must come out of a kernel of matrix states, and how far from it the formula is in the kernel's own roundings.

PyTorch has no operator of these. So the measure is the formula itself, on the same inputs: token by token in float32, or by
chunks in the roundings and sums of a kernel (state_formulas.py). Errors are root mean squares.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from attnc.codegen.verify.report import LIMIT
from attnc.codegen.verify.state_cases import ELEMENTS, Case, Given, Results, gradients, inputs, leaves_of, outer, words
from attnc.codegen.verify.state_formulas import formula, in_chunks

Measure = Callable[[Case, Given, torch.dtype], Results]

DRAWS = 3
"""Of few numbers one draw says little: behind deep gates a few of them make all of the error. What is too far off by one draw
is judged by the errors of both sides over as many.
"""

FEW = 32
"""Numbers of a result over all draws. Of a head's decay there is one a draw, and where it is deep it counts for nothing."""


@dataclass(frozen=True)
class Expected:
    """What must come out of a draw, and how far off the formula is in the kernel's precision: results and gradients by name."""

    given: Given
    want: Results
    errors: dict[str, float]


Drawn = Sequence[tuple[Expected, Results]]
"""What must come out of some draws of a case, beside what a kernel gave."""


@dataclass(frozen=True)
class Verdict:
    """The error that used most of what is allowed, the measure's, and what is wrong, or nothing."""

    error: float
    measure: float
    wrong: str = ""

    def rank(self) -> float:
        """How much of what is allowed was used; more than anything where it is wrong."""
        return float("inf") if self.wrong else self.error / self.measure if self.measure else 0.0


def measure_of(chunk: int) -> Measure:
    """The formula as kernels with chunks of so many tokens round it; token by token where a chunk is one."""
    return formula if chunk == 1 else partial(in_chunks, chunk=chunk)


def expected(case: Case, own: Measure | None = None, back: bool = True) -> Expected:
    """Results as they are named, gradients as `name_grad`; `own` is the formula in the kernel's precision, by itself fp32."""
    given = inputs(case)
    want = _results(case, given, torch.float64, formula, back)
    rounded = _results(case, given, torch.float32, own or formula, back)
    kinds = {name: case.dtype if name.removesuffix("_grad") in ELEMENTS else torch.float32 for name in want}
    return Expected(given, want, {name: rms(rounded[name].to(kinds[name]), x) for name, x in want.items()})


def _results(case: Case, given: Given, dtype: torch.dtype, one: Measure, back: bool) -> Results:
    """What a formula makes of the inputs, and going back the gradients of what is given, as `name_grad`."""
    leaves = leaves_of(given, dtype) if back else given
    ends = outer(case)
    found = one(case, leaves, dtype)
    found = {name: found[name] for name in ends}
    grads = gradients(found, leaves, [ends])[0] if back else {}
    return {name: x.detach() for name, x in found.items()} | {f"{name}_grad": x for name, x in grads.items()}


def other_draws(case: Case) -> tuple[Case, ...]:
    """The same call with other numbers, DRAWS with the case's own; more where a head's decay is one number."""
    draws = max(DRAWS, FEW // case.heads) if case.kernel.decay == "head" else DRAWS
    return tuple(replace(case, seed=case.seed + draw) for draw in range(1, draws))


def rms(got: Tensor, want: Tensor) -> float:
    """The root mean square difference; NaN wherever there is one."""
    return float((got.double() - want).square().mean().sqrt()) if want.numel() else 0.0


def pooled(drawn: Drawn, name: str) -> tuple[float, float]:
    """The root mean square errors of a result over all draws: a kernel's, and the formula's."""
    ours = [rms(got[name], wanted.want[name]) for wanted, got in drawn]
    its = [wanted.errors[name] for wanted, _ in drawn]
    both = [sum(error * error for error in errors) / len(errors) for errors in (ours, its)]
    return both[0] ** 0.5, both[1] ** 0.5


def judge(case: Case, drawn: Drawn) -> Verdict:
    """Of what a kernel gave, by the worst of its results."""
    return max((_of_one(case, drawn, name) for name in drawn[0][1]), key=Verdict.rank)


def _of_one(case: Case, drawn: Drawn, name: str) -> Verdict:
    wanted, got = drawn[0][0].want[name], drawn[0][1][name]
    title = TITLES.get(name) or f"the gradient of {TITLES.get(name.removesuffix('_grad'), name.removesuffix('_grad'))}"
    if got.shape != wanted.shape:
        return Verdict(float("nan"), float("nan"), f"{words(case)}: {title} is {list(got.shape)}, not {list(wanted.shape)}")
    error, allowed = pooled(drawn, name)
    if case.integers:
        exact = all(bool((got[name] == want.want[name].to(got[name].dtype)).all()) for want, got in drawn)
        return Verdict(error, allowed, "" if exact else f"{words(case)}: {title}: whole numbers are off by {error:.3g}")
    wrong = "" if error <= LIMIT * allowed else f"error {error:.3g}, the formula's own {allowed:.3g}"
    wrong = "NaN" if error != error else wrong  # noqa: PLR0124 (NaN)
    return Verdict(error, allowed, wrong and f"{words(case)}: {title}: {wrong}")


TITLES = {"o": "the result", "after": "the state after", "sum_after": "the sum after", "before": "the state before"}
