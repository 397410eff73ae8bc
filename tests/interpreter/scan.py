"""The emitted kernels of matrix states in Triton's interpreter against the formula, token by token in float64.

test_kernels_interpreter.py runs this file.
"""

from __future__ import annotations

import functools
import tempfile
from itertools import accumulate
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from scan_cases import FORMS, Case, compare, in_chunks, inputs, launched, run

from attnc.codegen.triton.compile import load
from attnc.codegen.triton.scan import files
from attnc.codegen.triton.versions import INTERPRETS
from attnc.compiler.families import Recurrence
from attnc.runtime.batch import Batch
from attnc.runtime.recurrence import Scan
from attnc.runtime.scan_kernels import name_of, scan_kernels
from attnc.runtime.scan_torch import torch_scan

if not INTERPRETS:
    pytest.fail("TRITON_INTERPRET=1 is not set", pytrace=False)

FOLDER = Path(tempfile.mkdtemp(prefix="attnc-"))


@functools.cache
def modules(form: Recurrence, chunk: int = 16, room: int = 0) -> tuple[ModuleType, ...]:
    """The kernel files of a launch, with chunks of so many tokens, on a device with room for so many programs."""
    made = []
    for name, text in files(form).items():
        other = text.replace('("any", 4): (16,', f'("any", 4): ({chunk},').replace('"any": 0}', f'"any": {room}}}')
        other = other.replace("span = max(16, ", "span = max(1, ") if room else other
        made.append(load(other, FOLDER, f"{name}_{chunk}_{room}_{abs(hash(form))}"))
    return tuple(made)


def chunked(form: Recurrence, chunk: int = 16) -> Scan:
    return scan_kernels(modules(form, chunk))


@pytest.mark.parametrize("name", FORMS)
def test_every_form_and_its_gradients(name: str) -> None:
    """Sequences of none, one and many tokens, around the edges of chunks; repeated queries, keys and values."""
    shares = {"head": (2, 2, 1), "scalar": (1, 1, 2), "gated_delta": (2, 2, 1), "vector_delta": (2, 1, 1)}.get(name, (1, 1, 1))
    case = Case(FORMS[name], (17, 0, 1, 14), heads=max(shares), shares=shares)
    compare(case, chunked(case.kernel))
    compare(case, by_tokens(case.kernel), back=False)


def by_tokens(form: Recurrence) -> Scan:
    """One token at a time, as decoding does."""

    def scan(steps: object, before: object, batch: object) -> object:
        few = SimpleNamespace(offsets=batch.offsets, max_new=1)  # it is only asked whether there are few
        return chunked(form)(steps, before, few)

    return scan


def parallel(case: Case, given: dict[str, torch.Tensor | None], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """PyTorch's parallel form in one chunk, instead of the formula token by token."""
    _, batch = Batch.of(torch.zeros(1, sum(case.sizes), dtype=torch.int64), offsets=[0, *accumulate(case.sizes)])
    steps, before, _ = launched(case, given)
    o, after = torch_scan(steps, before, batch)
    return {"o": o, "after": after.matrix} | ({} if after.sum is None else {"sum_after": after.sum})


def test_chunks_of_several_parts() -> None:
    """Beside PyTorch's chunks, of which the delta rule's long ones round more than single steps."""
    for name in ("gated_delta", "vector_delta"):
        case = Case(FORMS[name], (39,), heads=1, gates=(0.0, -0.05, -1.0))
        compare(case, chunked(case.kernel, 32), parallel)


@pytest.mark.parametrize("name", ["vector", "gated_delta"])
def test_a_sequence_in_segments_is_the_same(name: str) -> None:
    """Of which some have no tokens."""
    case = Case(FORMS[name], (33, 0, 3), heads=1, gates=(0.0, -0.05, -0.3))
    made = modules(case.kernel, room=99)
    forward = next(one for one in made if one.__name__.startswith("scan_forward"))
    assert forward.segments_of(torch.device("cpu"), 3, 3, 2.7) == (3, 1)
    compare(case, scan_kernels(made))


def test_states_begin_at_zero_where_none_are_given() -> None:
    for name in ("head", "vector_delta"):
        case = Case(FORMS[name], (18,), heads=1, before=False)
        compare(case, chunked(case.kernel))
        compare(case, by_tokens(case.kernel), back=False)


@pytest.mark.parametrize(("name", "gates"), [("scalar", (-50.0, -50.0, 0.0)), ("vector_delta", (-50.0,))])
def test_deep_decays_leave_nothing_and_break_nothing(name: str, gates: tuple[float, ...]) -> None:
    """What is left is little more than the token's own, and the gradients of gates are as small as they are.

    Beside the formula by chunks, which takes the exponential of a sum of logarithms too, where single steps multiply.
    """
    case = Case(FORMS[name], (34,), heads=1, gates=gates, before=False)
    compare(case, chunked(case.kernel, 32), functools.partial(in_chunks, chunk=32))


def test_shallow_decays_behind_a_deep_one() -> None:
    """A running sum of thousands would have no digits for them."""
    case = Case(FORMS["scalar"], (16,), heads=1, gates=(-1e-3, -1e-3, -5e3), seed=3)
    assert (inputs(case)["decay"] < -1e3).any()
    compare(case, chunked(case.kernel), functools.partial(in_chunks, chunk=16))


def test_a_decay_s_gradient_takes_states_as_they_were_given() -> None:
    """And not as chunks keep them: neither number is one of float16."""
    case = Case(FORMS["gated_delta"], (3,), heads=1, gates=(0.0,), dtype=torch.float16)
    given = inputs(case)
    given |= {name: torch.zeros_like(given[name]) for name in ("q", "k", "before")}
    given["before"][0, 0, 1, 2], decay = 2049.0, given["decay"].requires_grad_()
    _, after = chunked(case.kernel)(*launched(case, given, "train"))
    (grad,) = torch.autograd.grad(4097.0 * after.matrix[0, 0, 1, 2], decay)
    assert torch.equal(grad, torch.full_like(grad, 2049.0 * 4097.0))


def test_a_nan_stays() -> None:
    case = Case(FORMS["scalar"], (20,), heads=1)
    given = inputs(case)
    given["decay"][17] = float("nan")
    found = run(case, chunked(case.kernel), given, back=False)
    assert not found["o"][:17].isnan().any()
    assert found["o"][17:].isnan().all()
    assert found["after"].isnan().all()


def test_the_same_bits_every_time() -> None:
    case = Case(FORMS["vector_erase"], (20,), heads=1)
    given = inputs(case)
    one, other = (run(case, chunked(case.kernel), given) for _ in range(2))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_the_operators_are_what_pytorch_asks_of_operators() -> None:
    case = Case(FORMS["head"], (18, 3), heads=2, shares=(2, 1, 1))
    steps, before, batch = launched(case, {name: x if x is None else x.requires_grad_() for name, x in inputs(case).items()})
    name = name_of({file.__name__: file for file in modules(case.kernel)})
    chunked(case.kernel)
    operator = getattr(torch.ops.attnc, f"{name}_scan").default
    gates = steps.decay, steps.erase, steps.write
    given = (steps.q, steps.k, steps.v, *gates, batch.offsets, case.heads, steps.scale, batch.max_new)
    torch.library.opcheck(operator, (*given, before.matrix, before.sum, True))
