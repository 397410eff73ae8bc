"""The emitted kernels of matrix states in Triton's interpreter against the formula, token by token in float64.

test_kernels_interpreter.py runs this file.
"""

from __future__ import annotations

import functools
import tempfile
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from scan_cases import FORMS, Case, check, formula, inputs, steps

from attnc.codegen.triton.compile import load
from attnc.codegen.triton.scan import emit_scan
from attnc.codegen.triton.versions import INTERPRETS
from attnc.codegen.verify.cases import poisoned
from attnc.compiler.families import Recurrence

if not INTERPRETS:
    pytest.fail("TRITON_INTERPRET=1 is not set", pytrace=False)

FOLDER = Path(tempfile.mkdtemp(prefix="attnc-"))
Results = dict[str, torch.Tensor | None]


@functools.cache
def kernel(skeleton: str, form: Recurrence) -> ModuleType:
    return load(emit_scan(skeleton, form), FOLDER, f"emitted_{skeleton}_{abs(hash(form))}")


def scan(case: Case, given: Results, chunk: int = 16) -> Results:
    """By chunks. Memory that nobody wrote is NaN."""
    call, form = steps(case, given), case.kernel
    with poisoned():
        made = {}
        if form.decay == "vector" or form.update == "delta":
            made = kernel("scan_chunks", form).prepare(call, blocks=(chunk, 4, 4, 1))
        found = kernel("scan_forward", form).scan(call, made, given["before"], given["sum_before"], blocks=(chunk, 16, 4, 1))
    return dict(zip(("o", "after", "sum_after"), found, strict=False))


def step(case: Case, given: Results) -> Results:
    """Token by token."""
    with poisoned():
        found = kernel("scan_step", case.kernel).step(steps(case, given), given["before"], given["sum_before"])
    return dict(zip(("o", "after", "sum_after"), found, strict=True))


def right(case: Case, *ways: object) -> None:
    given = inputs(case)
    want, own = formula(case, given, torch.float64), formula(case, given, torch.float32)
    for way in ways:
        check(case, way(case, given), want, own)


@pytest.mark.parametrize("name", FORMS)
def test_every_form_by_chunks_and_by_tokens(name: str) -> None:
    """Sequences of none, one and many tokens, around the edges of chunks; repeated queries, keys and values."""
    shares = {"head": (2, 2, 1), "scalar": (1, 1, 2), "gated_delta": (2, 2, 1), "vector_delta": (2, 1, 1)}.get(name, (1, 1, 1))
    right(Case(FORMS[name], (17, 0, 1, 16), heads=max(shares), shares=shares), scan, step)


def test_chunks_of_several_parts() -> None:
    for name in ("gated_delta", "vector_delta"):
        right(Case(FORMS[name], (47, 33), heads=1), functools.partial(scan, chunk=32))


def test_states_begin_at_zero_where_none_are_given() -> None:
    for name in ("head", "vector_delta"):
        right(Case(FORMS[name], (18,), heads=1, before=False), scan, step)


def test_deep_decays_leave_nothing_and_break_nothing() -> None:
    """Every gate -50: what is left is the token's own; and one such gate in front of shallow ones."""
    for name in ("scalar", "vector_delta"):
        right(replace(Case(FORMS[name], (34,), heads=1), gates=(-50.0,)), scan)
    case = Case(FORMS["scalar"], (16,), heads=1, gates=(-1e-3,))
    given = inputs(case)
    given["decay"][5] = -5e3
    want, own = formula(case, given, torch.float64), formula(case, given, torch.float32)
    check(case, scan(case, given), want, own)


def test_a_nan_stays() -> None:
    case = Case(FORMS["scalar"], (20,), heads=1)
    given = inputs(case)
    given["decay"][17] = float("nan")
    found = scan(case, given)
    assert not found["o"][:17].isnan().any()
    assert found["o"][17:].isnan().all()
    assert found["after"].isnan().all()
