"""Softplus launches on a GPU: those with every hole, and the shipped specs', against the formula on whole rows."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from kernel_cases import SOFTPLUS
from softplus_cases import check_softplus, launch

from attnc.codegen import kernels
from attnc.codegen.triton.compile import load
from attnc.codegen.triton.emit import emit
from attnc.codegen.verify.cases import FULL, Case, Union, build
from attnc.codegen.verify.softplus import attend, outer
from attnc.compiler import check_path, passes
from attnc.compiler import graph as graphs
from attnc.compiler.families import FAMILIES, Softmax

FOLDER = Path(tempfile.mkdtemp(prefix="attnc-"))
SPEC = Path(__file__).parents[2] / "specs" / "softplus.attn"
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
Record = Callable[..., None]


def shipped() -> Softmax:
    """The kernel of softplus.attn's layers, at its full width."""
    spec = check_path(SPEC)
    nodes = (node for _, node in passes.run(graphs.build(spec)).nodes() if isinstance(node, graphs.Mix))
    kernel = kernels.family(next(nodes), spec.model)
    assert kernel is not None
    return kernel


FORMS = {**SOFTPLUS, "softplus.attn": shipped()}


def heads(kernel: Softmax) -> tuple[Union, ...]:
    """Of every sort that the kernel serves, in one launch."""
    found = [Union(nears=(FULL,)), Union(nears=((1, 0, 127, 0),)), Union(sink=70, nears=((64, 0, 192, 0),))]
    found += [Union(strides=(n,)) for n in (8, 333)] if kernel.strides else []
    found += [Union(powers=(16,))] if kernel.powers else []
    return tuple(found)


def compare(name: str, case: Case, record: Record, gradients: bool) -> None:
    """A launch's files of both kernels are right together, or none is."""
    skeletons = FAMILIES["softmax"] if gradients else FAMILIES["softmax"][:2]
    ran = [one for one in skeletons if gradients or one.endswith("decode" if case.cache and case.written else "prefill")]
    rows = []
    for form in (case.kernel.masses, case.kernel):
        for skeleton in ran:
            if gradients and skeleton.endswith("decode"):
                continue
            text = emit(skeleton, form)
            architecture = load(text, FOLDER, "about").architecture(torch.device("cuda"))
            constants = {
                "FORM": (form.nears, form.strides, form.powers, form.causal),
                "HEAD_WIDTH": form.head_width,
                "VALUE_WIDTH": form.value_width,
                "GROUP": form.group,
                "CAP": form.cap,
                "SINK_LOGIT": False,
                "EXPONENT": form.exponent,
            }
            rows.append((skeleton, kernels.digest(text, architecture), constants, case.dtype))
    for row in rows:
        record(*row)
    errors = check_softplus(launch(case.kernel, FOLDER, {}), case, gradients)
    for row in rows:
        ours, theirs = errors["o"]
        record(*row, (ours, theirs))


def trainings() -> list[Any]:
    """In float16 far keys' gradients are below its normal numbers: 1.74 times the reference's error with an exponent of 15."""
    far = pytest.mark.xfail(strict=True, reason="gradients of softplus in float16 are not as near as they should be")
    bad = {("plain", torch.float16), ("softplus.attn", torch.float16)}
    pairs = [(name, dtype) for name in FORMS for dtype in DTYPES]
    return [pytest.param(*pair, marks=[far] if pair in bad else [], id=f"{pair[0]}-{pair[1]}") for pair in pairs]


@pytest.mark.parametrize(("name", "dtype"), trainings())
def test_training(name: str, dtype: torch.dtype, record: Record) -> None:
    """Results and gradients of packed sequences of many lengths."""
    kernel = FORMS[name]
    compare(name, Case(kernel, heads(kernel), (1, 0, 65, 127, 300), (0,) * 5, dtype=dtype, device="cuda"), record, True)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", [name for name in FORMS if FORMS[name].causal])
def test_decode(name: str, dtype: torch.dtype, record: Record) -> None:
    kernel = FORMS[name]
    compare(name, Case(kernel, heads(kernel), (1, 5, 1), (900, 0, 33), dtype=dtype, device="cuda", cache=True), record, False)


@pytest.mark.parametrize("name", FORMS)
def test_the_same_bits_every_time(name: str) -> None:
    kernel = FORMS[name]
    inputs = build(Case(kernel, heads(kernel), (200, 77), (0, 0), dtype=torch.bfloat16, device="cuda"))
    found = []
    for _ in range(2):
        q = inputs.q.clone().requires_grad_()
        o = attend(launch(kernel, FOLDER, {}), inputs, q, (inputs.part,))
        found.append((o, *torch.autograd.grad(o, q, outer(inputs))))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
