"""The emitted kernels of fast weights in Triton's interpreter beside plain torch, against plain torch in float64.

test_memory.py holds plain torch to the formula. test_kernels_interpreter.py runs this file.
"""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from types import ModuleType

import pytest
import torch
from fast_cases import FORMS, check

from attnc.codegen.triton.compile import load
from attnc.codegen.triton.fast import emit_fast
from attnc.codegen.triton.versions import INTERPRETS
from attnc.codegen.verify.net_cases import Case, inputs, run
from attnc.codegen.verify.nets import NetSubject, net_rows
from attnc.compiler.families import FastWeights
from attnc.runtime import fast_torch
from attnc.runtime.fast import Teach
from attnc.runtime.fast_kernels import fast_kernels

if not INTERPRETS:
    pytest.fail("TRITON_INTERPRET=1 is not set", pytrace=False)

FOLDER = Path(tempfile.mkdtemp(prefix="attnc-"))


@functools.cache
def module(form: FastWeights) -> ModuleType:
    return load(emit_fast(form), FOLDER, f"fast_{abs(hash(form))}")


def kernels(form: FastWeights) -> Teach:
    return fast_kernels(module(form))


@pytest.mark.parametrize("name", FORMS)
def test_every_form_and_its_gradients(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sequences that begin and end within a chunk, one without tokens; two groups of chunks, the second of one sequence."""
    monkeypatch.setattr(fast_torch, "GROUP", 0)
    check(Case(FORMS[name]), kernels(FORMS[name]))


def test_one_chunk_and_what_nobody_keeps() -> None:
    """A text that ends within its only chunk, one as long as it, none in the cache; the same bits every time."""
    case = Case(FORMS["linear"], (8, 3), (0, 0))
    given = inputs(case)
    one, other = (run(case, kernels(case.family), given, torch.float32) for _ in range(2))
    assert all(torch.equal(one[name], other[name]) for name in one)
    check(case, kernels(case.family))


def test_float64_is_refused() -> None:
    case = Case(FORMS["plain"], dtype=torch.float64)
    with pytest.raises(ValueError, match="no float64"):
        run(case, kernels(case.family), inputs(case), torch.float64)


def test_verify_says_what_is_wrong() -> None:
    """Of right kernels, and of ones that forget a little of the momentum's gradient."""
    right = module(FORMS["linear"])
    text = Path(str(right.__file__)).read_text(encoding="utf-8")
    line = "then_moment = by * tl.load(speed + place) + by_moment * tl.load(slows + place)"
    broken = load(text.replace(line, line.replace("by_moment *", "0.99 * by_moment *")), FOLDER, "fast_broken")
    for file, verdicts in ((right, ["right", "right"]), (broken, ["right", "wrong"])):
        rows = list(net_rows(NetSubject("fast", file, ("Mixer",)), "float32", "cpu", lambda _: True))
        assert [row.verdict for row in rows] == verdicts, rows
        assert [row.inputs for row in rows] == ["random", "gradients"]
    assert "_grad is off by" in rows[1].reason
