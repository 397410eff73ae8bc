"""Kernels of fast weights on a GPU against plain PyTorch in float64, beside the formula in their roundings; and their time."""

from __future__ import annotations

import functools
import tempfile
from dataclasses import replace
from itertools import product
from pathlib import Path
from types import ModuleType

import pytest
import torch
from fast_cases import FORMS, check
from torch import Tensor

from attnc.codegen.triton.compile import load
from attnc.codegen.triton.fast import emit_fast, emit_step
from attnc.codegen.verify.net_cases import Case, compared, inputs, run
from attnc.codegen.verify.nets import step_classes
from attnc.codegen.verify.report import LIMIT
from attnc.codegen.verify.step_cases import Steps
from attnc.codegen.verify.step_cases import compared as step_errors
from attnc.compiler.families import FastWeights
from attnc.compiler.fast_providers import unkept
from attnc.runtime.fast import Teach
from attnc.runtime.fast_kernels import fast_kernels
from attnc.runtime.fast_step import Given

pytestmark = pytest.mark.gpu

FOLDER = Path(tempfile.mkdtemp(prefix="attnc-"))
WIDE = {name: replace(form, key_width=64, value_width=64, hidden=form.hidden and 256) for name, form in FORMS.items()}
CHUNKED = [name for name, form in WIDE.items() if unkept(form) is None]
UNEVEN = {"sizes": (700, 1, 0, 129), "pasts": (5, 0, 0, 63), "chunk": 64, "heads": 4}


@functools.cache
def module(form: FastWeights, products: str | None = None) -> ModuleType:
    return load(emit_fast(form, products), FOLDER, f"fast_{products}_{abs(hash(form))}")


@functools.cache
def stepping(form: FastWeights) -> ModuleType:
    return load(emit_step(form), FOLDER, f"step_{abs(hash(form))}")


def kernels(form: FastWeights, products: str | None = None) -> Teach:
    return fast_kernels(module(form, products))


@pytest.mark.parametrize(("name", "dtype"), list(product(CHUNKED, (torch.float32, torch.bfloat16))), ids=str)
def test_results_and_gradients(name: str, dtype: torch.dtype) -> None:
    for chunk in (64, 16, 100):
        check(Case(WIDE[name], **UNEVEN | {"chunk": chunk}, dtype=dtype, device="cuda"), kernels(WIDE[name]))


@pytest.mark.parametrize("name", CHUNKED)
def test_odd_widths(name: str) -> None:
    form = replace(FORMS[name], key_width=48, value_width=48, hidden=FORMS[name].hidden and 100)
    check(Case(form, **UNEVEN, device="cuda"), kernels(form))
    if not form.norm:
        form = replace(form, key_width=128, value_width=80)
        check(Case(form, **UNEVEN, device="cuda"), kernels(form))


@pytest.mark.parametrize(("name", "dtype"), list(product(WIDE, (torch.float32, torch.bfloat16))), ids=str)
def test_single_steps(name: str, dtype: torch.dtype) -> None:
    """Through the end of a chunk: what nets return, and what the cache has learned."""
    one = stepping(WIDE[name])
    for case in step_classes(WIDE[name], dtype, "cuda")["steps"]:
        errors = step_errors(case, one)
        wrong = {what: pair for what, pair in errors.items() if not pair[0] <= LIMIT * pair[1]}
        assert not wrong, (case, wrong)


@pytest.mark.parametrize("name", ["titans", "ttt_linear", "gated"])
def test_a_captured_step_replays_for_other_tokens_and_lengths(name: str) -> None:
    """A graph of a token within a chunk, replayed for the one that makes the chunk whole."""
    case = Steps(WIDE[name], chunk=4, begun=2, count=2, heads=4, dtype=torch.bfloat16, device="cuda")
    plain = steps_run(case, case.chunk)
    graphed = steps_run(case, case.chunk, captured=True)
    assert plain.keys() == graphed.keys()
    assert all(torch.equal(plain[key], graphed[key]) for key in plain)


def steps_run(case: Steps, size: int, captured: bool = False) -> dict[str, Tensor]:
    """`size` tokens of one sequence, each by the two launches of a step: what the last one returned, and the states."""
    given, family, heads = torch.Generator("cuda").manual_seed(0), case.family, case.heads

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=given, device="cuda") / shape[-1] ** 0.5

    def rate(form: str) -> Tensor | None:
        return None if form == "none" else torch.full((1, heads) if form == "token" else (heads,), 0.05, device="cuda")

    q, k, v = (normal(1, heads, 64).to(case.dtype) for _ in range(3))
    shapes, past = list(case.shapes.values()), torch.zeros(1, dtype=torch.int64, device="cuda")
    weights = tuple(torch.zeros(1, *shape, device="cuda") for shape in shapes)
    moments = tuple(torch.zeros(1, *shape, device="cuda") for shape in shapes) if case.rule.momentum else ()
    norm = (torch.ones(heads, 64, device="cuda"), torch.zeros(heads, 64, device="cuda")) if family.norm else (None, None)
    held = [torch.zeros(1, size - 1, heads, 64, device="cuda", dtype=case.dtype) for _ in range(2)]
    gates = torch.zeros(1, max(len(case.gates), 1), size - 1, heads, device="cuda")
    places, offsets = torch.zeros(1, dtype=torch.int64, device="cuda"), torch.tensor([0, 1], device="cuda")
    rates = (rate(family.lr), rate(family.momentum), rate(family.decay))
    starts = tuple(normal(*shape).to(case.dtype) for shape in shapes)
    call = Given(q, k, v, rates, norm, weights, moments, starts, held[0], held[1], gates, places, offsets, past, size)
    one, tokens = stepping(family), [tuple(normal(1, heads, 64).to(case.dtype) for _ in range(3)) for _ in range(size)]

    def step() -> Tensor:
        o: Tensor = one.step(call, False)
        one.step(call, True)
        return o

    def begin(at: int) -> None:
        past.fill_(at)
        for own, new in zip((q, k, v), tokens[at], strict=True):
            own.copy_(new)

    begin(0)
    o = step()  # compiled before a graph is made; the same token once more
    graph = torch.cuda.CUDAGraph()
    if captured:
        torch.cuda.synchronize()
        with torch.cuda.graph(graph):
            o = step()
    for at in range(size):
        begin(at)
        if captured:
            graph.replay()
        else:
            o = step()
    found = {f"weight {at}": w for at, w in enumerate(weights)} | {f"moment {at}": w for at, w in enumerate(moments)}
    return {"o": o} | found


def test_more_heads_than_run_at_once() -> None:
    """Blocks of hidden units wait for each other: what does not fit on the GPU comes in later launches."""
    case = Case(WIDE["titans"], (200, 70), (0, 3), 64, 40, 40, torch.bfloat16, "cuda")
    check(case, kernels(WIDE["titans"]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tokens_that_nobody_differentiates_read_their_own_writes(dtype: torch.dtype) -> None:
    for form in (WIDE["ttt_linear"], replace(WIDE["linear"], after_write=True)):
        for chunk in (16, 64):
            check(Case(form, **UNEVEN | {"chunk": chunk}, dtype=dtype, device="cuda", back=False), kernels(form))


def test_the_same_bits_every_time() -> None:
    for name in ("titans", "ttt_linear"):
        case = Case(WIDE[name], **UNEVEN, device="cuda")
        given = inputs(case)
        one, other = (run(case, kernels(case.family), given, torch.float32) for _ in range(2))
        assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("products", ["tf32", "tf32x3", "bf16", "ieee"])
def test_how_products_round(products: str) -> None:
    """Prints by how much results in bf16 are off, in units of the formula's with products of TF32."""
    for name in ("titans", "ttt_linear"):
        case = Case(WIDE[name], **UNEVEN, dtype=torch.bfloat16, device="cuda")
        errors = compared(case, kernels(case.family, products))
        shown = ", ".join(f"{key} {pair[0] / pair[1]:.2f}" for key, pair in errors.items() if pair[1])
        print(f"{name}, products of {products}: {shown}")  # noqa: T201
        assert all(pair[0] < float("inf") for pair in errors.values())
