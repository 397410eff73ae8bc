"""What must come out of a kernel of matrix states, and how far from it the formula is in the kernel's own roundings.

PyTorch has no operator of these. So the measure is the formula itself, on the same inputs: token by token in float32, or by
chunks in the roundings and sums of a kernel (state_formulas.py). Errors are root mean squares.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from attnc.codegen.verify.report import LIMIT
from attnc.codegen.verify.state_cases import ELEMENTS, Case, Given, Results, gradients, inputs, leaves_of, outer, words
from attnc.codegen.verify.state_formulas import formula, in_chunks

Measure = Callable[[Case, Given, torch.dtype], Results]

FEW = 2048
"""Of fewer numbers one draw says little: behind deep gates a few of them make all of the error."""


@dataclass(frozen=True)
class Expected:
    """What must come out, and how far off the formula is in the kernel's precision: results and gradients by name.

    Of few numbers the formula's error is the worst of several draws: of inputs, or of what the gradients of results are.
    """

    given: Given
    want: Results
    errors: dict[str, float]


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
    outers = [outer(case, draw) for draw in range(6)]
    exact, rounded = (
        _drawn(case, given, outers, dtype, one, back)
        for dtype, one in ((torch.float64, formula), (torch.float32, own or formula))
    )
    errors = {}
    for name, want in exact[0].items():
        draws = len(exact) if want.numel() < FEW else 1
        kind = case.dtype if name.removesuffix("_grad") in ELEMENTS else torch.float32
        errors[name] = max(rms(rounded[n][name].to(kind), exact[n][name]) for n in range(draws))
    few = [name for name in outers[0] if exact[0][name].numel() < FEW // 8]
    for draw in range(1, 5) if few else ():
        other = replace(case, seed=case.seed + draw)
        given_there = inputs(other)
        one = formula(other, given_there, torch.float64)
        another = (own or formula)(other, given_there, torch.float32)
        for name in few:
            kind = case.dtype if name in ELEMENTS else torch.float32
            errors[name] = max(errors[name], rms(another[name].to(kind), one[name]))
    return Expected(given, exact[0], errors)


def _drawn(case: Case, given: Given, outers: list[Results], dtype: torch.dtype, one: Measure, back: bool) -> list[Results]:
    """Results and gradients for each gradient of the results."""
    leaves = leaves_of(given, dtype) if back else given
    found = one(case, leaves, dtype)
    found = {name: found[name] for name in outers[0]}
    plain = {name: x.detach() for name, x in found.items()}
    if not back:
        return [plain]
    return [plain | {f"{name}_grad": x for name, x in draw.items()} for draw in gradients(found, leaves, outers)]


def rms(got: Tensor, want: Tensor) -> float:
    """The root mean square difference; NaN wherever there is one."""
    return float((got.double() - want).square().mean().sqrt()) if want.numel() else 0.0


def judge(case: Case, wanted: Expected, got: Results) -> Verdict:
    """Of what a kernel gave, by the worst of its results."""
    return max((_of_one(case, wanted, name, x) for name, x in got.items()), key=Verdict.rank)


def _of_one(case: Case, wanted: Expected, name: str, got: Tensor) -> Verdict:
    want, allowed = wanted.want[name], wanted.errors[name]
    title = TITLES.get(name) or f"the gradient of {TITLES.get(name.removesuffix('_grad'), name.removesuffix('_grad'))}"
    if got.shape != want.shape:
        return Verdict(float("nan"), allowed, f"{words(case)}: {title} is {list(got.shape)}, not {list(want.shape)}")
    error = rms(got, want)
    if case.integers:
        exact = bool((got == want.to(got.dtype)).all())
        return Verdict(error, allowed, "" if exact else f"{words(case)}: {title}: whole numbers are off by {error:.3g}")
    wrong = "" if error <= LIMIT * allowed else f"error {error:.3g}, the formula's own {allowed:.3g}"
    wrong = "NaN" if error != error else wrong  # noqa: PLR0124 (NaN)
    return Verdict(error, allowed, wrong and f"{words(case)}: {title}: {wrong}")


TITLES = {"o": "the result", "after": "the state after", "sum_after": "the sum after", "before": "the state before"}
