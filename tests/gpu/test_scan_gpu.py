"""Kernels of matrix states on a GPU against the formula in float64, beside the formula by chunks with their own roundings."""

from __future__ import annotations

import functools
import re
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from scan_cases import FORMS, Case, compare, expected, formula, in_chunks, inputs, run

from attnc.codegen.triton.compile import load
from attnc.codegen.triton.scan import files
from attnc.compiler.families import Recurrence
from attnc.runtime.recurrence import Scan
from attnc.runtime.scan_kernels import scan_kernels

pytestmark = pytest.mark.gpu

FOLDER = Path(tempfile.mkdtemp(prefix="attnc-"))
WIDTHS = {64: (64, 64), 128: (128, 128), 80: (80, 48), 256: (256, 64)}
GATES = (0.0, -0.01, -0.1, -1.0, -50.0)


@functools.cache
def provider(form: Recurrence, chunk: int | None = None, least: int = 16) -> Scan:
    """The launch's kernels; with other chunks than the tables' in 16 bits, and other least chunks of a segment."""
    numbers = rf"\g<1>{chunk},\g<2> " + ("1" if chunk and chunk > 64 else r"\g<3>")  # long ones have no room for more stages
    made = []
    for name, source in files(form).items():
        text = source.replace("span = max(16, ", f"span = max({least}, ")
        if chunk is not None and name != "scan_step":
            text, found = re.subn(r'(\("sm_\d+", 2\): \()\d+,( \d+, \d+,) (\d+)', numbers, text)
            assert found, f"{name} has no table of chunks"
        made.append(load(text, FOLDER, f"{name}_{chunk}_{least}_{abs(hash(form))}"))
    return scan_kernels(made)


def case_of(name: str, width: int, dtype: torch.dtype, sizes: tuple[int, ...], **rest: object) -> Case:
    key_width, value_width = WIDTHS[width]
    form = replace(FORMS[name], key_width=key_width, value_width=value_width)
    return Case(form, sizes, heads=4, shares=(2, 2, 1), gates=GATES, dtype=dtype, device="cuda", **rest)


def right(case: Case, chunk: int | None = None, least: int = 16) -> None:
    """Beside chunks of their own."""
    own = functools.partial(in_chunks, chunk=chunk or (16 if case.dtype == torch.float32 else 64))
    compare(case, provider(case.kernel, chunk, least), own)


CASES = [(name, 64, dtype) for name in FORMS for dtype in (torch.bfloat16, torch.float16, torch.float32)]
CASES += [(name, width, torch.bfloat16) for name in ("scalar", "gated_delta", "vector_delta") for width in (80, 128, 256)]


@pytest.mark.parametrize(("name", "width", "dtype"), CASES, ids=str)
def test_results_and_gradients(name: str, width: int, dtype: torch.dtype) -> None:
    right(case_of(name, width, dtype, (1, 0, 65, 130)))


@pytest.mark.parametrize("chunk", [16, 32, 64, 128])
@pytest.mark.parametrize("name", ["scalar", "vector", "gated_delta", "vector_delta"])
def test_every_length_of_a_chunk(name: str, chunk: int) -> None:
    """Gated backward passes are known wrong code elsewhere, at some lengths of chunks alone."""
    right(case_of(name, 64, torch.bfloat16, (chunk + 1, 3, 2 * chunk)), chunk)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("name", FORMS)
def test_a_sequence_in_segments(name: str, dtype: torch.dtype) -> None:
    """Of two chunks each, some without tokens."""
    right(case_of(name, 128, dtype, (700, 0, 65)), least=2)


@pytest.mark.parametrize("chunk", [16, 32, 64, 128])
@pytest.mark.parametrize("name", ["plain", "scalar", "vector"])
def test_whole_numbers_are_exact(name: str, chunk: int) -> None:
    """Products and sums of small integers without decay: nothing is rounded, so every bit is known, gradients' too."""
    form = replace(FORMS[name], key_width=64, value_width=64, normalize=False)
    case = Case(form, (70, 5), 2, gates=(0.0,), before=False, integers=True, dtype=torch.float16, device="cuda")
    wanted = expected(case)
    found = run(case, provider(form, chunk), wanted.given)
    for key in ("o", "after", "q_grad", "k_grad", "v_grad"):
        exact = wanted.want[key].to(found[key].dtype)
        small = wanted.want[key].abs() < 2048  # above, float16 has no room for every integer
        assert torch.equal(found[key][small], exact[small]), key


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("name", FORMS)
def test_decoding_token_by_token(name: str, dtype: torch.dtype) -> None:
    case = case_of(name, 128, dtype, (1, 5, 0, 16))
    compare(case, provider(case.kernel), formula if dtype == torch.float32 else in_chunks, back=False)


def test_the_same_bits_every_time() -> None:
    for name in ("scalar", "vector_delta"):
        case = case_of(name, 128, torch.bfloat16, (700, 33))
        given = inputs(case)
        one, other = (run(case, provider(case.kernel), given) for _ in range(2))
        assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("name", ["scalar", "vector", "gated_delta"])
def test_time_of_a_long_text(name: str) -> None:
    """Prints milliseconds of a forward and of a backward pass over 32768 tokens of 32 heads."""
    form = replace(FORMS[name], key_width=128, value_width=128, normalize=False)
    case = Case(form, (32768,), 32, gates=(-0.1,), before=False, dtype=torch.bfloat16, device="cuda")
    given = {key: x if x is None else x.requires_grad_() for key, x in inputs(case).items()}
    from scan_cases import launched
    from triton.testing import do_bench

    arguments, scan = launched(case, given), provider(form)
    forward = do_bench(lambda: scan(*arguments))
    o, _ = scan(*arguments)
    leaves = [x for x in given.values() if x is not None]
    backward = do_bench(lambda: torch.autograd.grad(o, leaves, torch.ones_like(o), retain_graph=True))
    print(f"{name}: forward {forward:.3f} ms, backward {backward:.3f} ms")  # noqa: T201
