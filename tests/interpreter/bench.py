"""The bench's own comparison holds for the generated kernels: built launches in Triton's interpreter, every phase.

test_kernels_interpreter.py runs this file.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import attnc
from attnc.bench import exact, exponentials, run
from attnc.bench import work as works
from attnc.bench.launches import launches, open_folder
from attnc.bench.peers import Provided
from attnc.codegen.triton.versions import INTERPRETS

if not INTERPRETS:
    pytest.fail("TRITON_INTERPRET=1 is not set", pytrace=False)

TEXT = """model small {
  vocab = 64, dim = 32, layers = 2, heads = 4, kv_heads = 2, norm = rms(1e-6), ffn = swiglu(32), rope = 10000
}
layers {
  0: heads { 0: full, else: sink(2) | window(8) }
  1: window(12) { sink_logit = learned }
}
"""


def test_generated_kernels_are_what_the_bench_takes_for_right(tmp_path: Path) -> None:
    attnc.build(attnc.check(TEXT), tmp_path / "built")
    found, _ = launches(open_folder(tmp_path / "built"))
    assert len(found) == 2
    for launch in found:
        for phase in works.PHASES:
            work = works.make(launch, phase, 40, 1, torch.float32, torch.device("cpu"))
            assert not isinstance(work, str)
            right = exact.answer(work)
            errors = exact.errors(work, right, run.outcome(work, Provided("triton").prepare(work), right))
            assert all(errors[name] <= right.allowed[name] for name in errors), (launch.words, phase, errors, right.allowed)


def test_exponentials_are_taken_as_often_as_is_counted() -> None:
    x = torch.rand(2 * exponentials.BLOCK)
    want = x.clone()
    for _ in range(3):
        want = torch.exp2(-want)
    exponentials.run(x, 3)
    torch.testing.assert_close(x, want)
