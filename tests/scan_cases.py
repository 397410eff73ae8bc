"""Forms of matrix states that between them have every hole, and how far off a kernel may be."""

from __future__ import annotations

from attnc.codegen.verify.report import LIMIT
from attnc.codegen.verify.state_cases import Case, inputs, launched, run
from attnc.codegen.verify.state_formulas import in_chunks
from attnc.codegen.verify.state_judge import Expected, Results, expected, rms
from attnc.compiler.families import Recurrence

__all__ = ["FORMS", "Case", "check", "expected", "in_chunks", "inputs", "launched", "run"]

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
