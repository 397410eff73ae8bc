"""Forms of matrix states that between them have every hole, and how far off a kernel may be."""

from __future__ import annotations

from dataclasses import replace

import torch

from attnc.codegen.verify.cases import poisoned
from attnc.codegen.verify.report import LIMIT
from attnc.codegen.verify.state_cases import Case, Given, Results, gradients, inputs, launched, leaves_of, outer, run
from attnc.codegen.verify.state_formulas import formula, in_chunks
from attnc.codegen.verify.state_judge import Expected, Measure, expected, rms
from attnc.compiler.families import Recurrence
from attnc.runtime.recurrence import Scan

__all__ = ["FORMS", "Case", "check", "compare", "expected", "in_chunks", "inputs", "launched", "run"]

FORMS = {
    "plain": Recurrence(key_width=16, value_width=16),
    "head": Recurrence("head", normalize=True, key_width=16, value_width=20),
    "scalar": Recurrence("scalar", key_width=24, value_width=16),
    "vector": Recurrence("vector", normalize=True, key_width=20, value_width=16),
    "delta": Recurrence("none", "delta", key_width=16, value_width=16),
    "gated_delta": Recurrence("scalar", "delta", key_width=16, value_width=24),
    "strengths_of_channels": Recurrence("head", "delta", "vector", "vector", key_width=20, value_width=20),
    "vector_delta": Recurrence("vector", "delta", "scalar", "vector", key_width=24, value_width=16),
    "vector_erase": Recurrence("vector", "delta", "vector", "scalar", key_width=16, value_width=16),
}

DRAWS = 3
"""Of few numbers one draw says little: behind deep gates a few of them make all of the error."""


def compare(case: Case, scan: Scan, own: Measure = formula, back: bool = True) -> dict[str, float]:
    """A provider's error in units of the formula's own in fp32, by name: root mean squares over the same draws of both."""
    errors: dict[str, list[float]] = {}
    for draw in range(DRAWS):
        one = replace(case, seed=case.seed + draw)
        given = inputs(one)
        exact, rounded = results(one, given, torch.float64, formula, back), results(one, given, torch.float32, own, back)
        with poisoned():
            got = run(one, scan, given, back)
        for name, x in got.items():
            assert x.shape == exact[name].shape, name
            assert not x.isnan().any(), name
            both = errors.setdefault(name, [0.0, 0.0])
            for side, found in enumerate((x, rounded[name])):
                both[side] += float((found.double() - exact[name]).square().sum())
    ratios = {name: (ours / its) ** 0.5 if ours else 0.0 for name, (ours, its) in errors.items()}
    assert all(ratio <= LIMIT for ratio in ratios.values()), ratios
    return ratios


def results(case: Case, given: Given, dtype: torch.dtype, one: Measure, back: bool) -> Results:
    """What a formula makes of the inputs, and going back the gradients of what is given, as `name_grad`."""
    leaves = leaves_of(given, dtype) if back else given
    ends = outer(case)
    found = one(case, leaves, dtype)
    found = {name: found[name] for name in ends}
    grads = gradients(found, leaves, [ends])[0] if back else {}
    return {name: x.detach() for name, x in found.items()} | {f"{name}_grad": x for name, x in grads.items()}


def check(wanted: Expected, got: Results, share: float = LIMIT) -> dict[str, float]:
    """Errors beside what is allowed, by name."""
    ratios = {}
    for name, x in got.items():
        assert x.shape == wanted.want[name].shape, name
        assert not x.isnan().any(), name
        error = rms(x, wanted.want[name])
        ratios[name] = error / wanted.errors[name] if error else 0.0
    assert all(ratio <= share for ratio in ratios.values()), ratios
    return ratios
