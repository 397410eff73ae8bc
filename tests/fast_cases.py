"""Forms of kernels of fast weights for tests, and how far off they may be."""

from __future__ import annotations

from attnc.codegen.verify.net_cases import Case, compared
from attnc.codegen.verify.report import LIMIT
from attnc.compiler.families import FastWeights
from attnc.runtime.fast import Teach

FORMS = {
    "titans": FastWeights(depth=2, hidden=32, momentum="token", decay="token", key_width=16, value_width=16),
    "linear": FastWeights(momentum="token", decay="head", key_width=24, value_width=20),
    "plain": FastWeights(key_width=16, value_width=48),
    "ttt_linear": FastWeights(norm=True, residual=True, after_write=True, key_width=20, value_width=20),
    "ttt_mlp": FastWeights(depth=2, hidden=20, norm=True, residual=True, after_write=True, key_width=16, value_width=16),
    "linear_rows": FastWeights(momentum="token", decay="head", weight_norm=True, key_width=24, value_width=20),
    "titans_rows": FastWeights(
        depth=2, hidden=32, momentum="token", decay="token", weight_norm=True, key_width=16, value_width=16
    ),
    "gated": FastWeights(gated=True, hidden=40, lr="head", momentum="number", weight_norm=True, key_width=16, value_width=20),
}
"""Kernels that between them have every branch."""


def check(case: Case, teach: Teach) -> None:
    """Errors are at most LIMIT times the measure's."""
    errors = compared(case, teach)
    wrong = {name: pair for name, pair in errors.items() if not pair[0] <= LIMIT * pair[1]}
    assert not wrong, wrong
