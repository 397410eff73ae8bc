"""The emitted kernels of fast weights in Triton's interpreter beside plain torch, against plain torch in float64.

test_memory.py holds plain torch to the formula. test_kernels_interpreter.py runs this file.
"""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import pytest
import torch
from fast_cases import FORMS, LIMIT, Case, compared, inputs, run

from attnc.codegen.triton.compile import load
from attnc.codegen.triton.fast import emit_fast
from attnc.codegen.triton.versions import INTERPRETS
from attnc.codegen.verify.cases import poisoned
from attnc.compiler.families import FastWeights
from attnc.runtime import fast_torch
from attnc.runtime.fast import Teach
from attnc.runtime.fast_kernels import fast_kernels

if not INTERPRETS:
    pytest.fail("TRITON_INTERPRET=1 is not set", pytrace=False)

FOLDER = Path(tempfile.mkdtemp(prefix="attnc-"))


@functools.cache
def kernels(form: FastWeights) -> Teach:
    return fast_kernels(load(emit_fast(form), FOLDER, f"fast_{abs(hash(form))}"))


@pytest.mark.parametrize("name", FORMS)
def test_every_form_and_its_gradients(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sequences that begin and end within a chunk, one without tokens; two groups of chunks, the second of one sequence."""
    monkeypatch.setattr(fast_torch, "GROUP", 0)
    case = Case(FORMS[name])
    with poisoned():
        ratios = compared(case, kernels(case.family))
    assert max(ratios.values()) <= LIMIT, ratios


def test_one_chunk_and_what_nobody_keeps() -> None:
    """A text that ends within its only chunk, one as long as it, none in the cache; the same bits every time."""
    case = Case(FORMS["linear"], (8, 3), (0, 0))
    given = inputs(case)
    one, other = (run(case, kernels(case.family), given, torch.float32) for _ in range(2))
    assert all(torch.equal(one[name], other[name]) for name in one)
    ratios = compared(case, kernels(case.family))
    assert max(ratios.values()) <= LIMIT, ratios


def test_float64_is_refused() -> None:
    case = Case(FORMS["plain"], dtype=torch.float64)
    with pytest.raises(ValueError, match="no float64"):
        run(case, kernels(case.family), inputs(case), torch.float64)
