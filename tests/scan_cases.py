"""Forms of matrix states that between them have every hole, and how far off a kernel may be."""

from __future__ import annotations

from attnc.codegen.verify.cases import poisoned
from attnc.codegen.verify.report import LIMIT
from attnc.codegen.verify.state_cases import Case, inputs, launched, run
from attnc.codegen.verify.state_formulas import formula, in_chunks
from attnc.codegen.verify.state_judge import Measure, expected, other_draws, pooled
from attnc.compiler.families import Recurrence
from attnc.runtime.recurrence import Scan

__all__ = ["FORMS", "Case", "compare", "expected", "formula", "in_chunks", "inputs", "launched", "run"]

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


def compare(case: Case, scan: Scan, own: Measure = formula, back: bool = True) -> dict[str, float]:
    """A provider's error in units of the formula's own in its precision, by name; over the same draws of both, where one is too
    far off.
    """
    drawn, ratios = [], {}
    for one in (case, *other_draws(case)):
        wanted = expected(one, own, back)
        with poisoned():
            got = run(one, scan, wanted.given, back)
        for name, x in got.items():
            assert x.shape == wanted.want[name].shape, name
            assert not x.isnan().any(), name
        drawn.append((wanted, got))
        errors = {name: pooled(drawn, name) for name in drawn[0][1]}
        ratios = {name: ours / its if ours else 0.0 for name, (ours, its) in errors.items()}
        if all(ratio <= LIMIT for ratio in ratios.values()):
            break
    assert all(ratio <= LIMIT for ratio in ratios.values()), ratios
    return ratios
