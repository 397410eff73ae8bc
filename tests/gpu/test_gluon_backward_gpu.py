"""The backward kernels in Gluon on a GPU of sm_90: right, the same bits every time, captured."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from kernel_cases import KERNELS, check_gradients

from attnc.codegen import kernels
from attnc.codegen.gluon.backward import FILES, emit, fits
from attnc.codegen.triton.compile import load
from attnc.codegen.verify.cases import Case, Inputs, Union, build
from attnc.codegen.verify.classes import sorts
from attnc.codegen.verify.gradients import Gradients, outer_gradients
from attnc.codegen.verify.trial import exact, gradients
from attnc.compiler.families import BACKWARD, Softmax
from attnc.runtime.gradients import sink_gradient

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0), reason="the kernels are for sm_90"
)
FOLDER = Path(tempfile.mkdtemp(prefix="attnc-"))
CONSTANTS = ("FORM", "HEAD_WIDTH", "VALUE_WIDTH", "GROUP", "CAP", "SINK_LOGIT")
SERVED = {name: one for name, one in KERNELS.items() if one.head_width % 8 == one.value_width % 8 == 0 and fits(one)}
SERVED |= {
    "width_96": Softmax(1, head_width=96, value_width=96, group=2),
    "values_128": Softmax(1, head_width=64, value_width=128, group=2, sink_logit=True),
    "cap_128": Softmax(1, head_width=128, value_width=128, cap=True),
    "every_part": Softmax(2, 1, 1, head_width=128, value_width=128, group=4, sink_logit=True),
}
Record = Callable[..., None]


@cache
def module(skeleton: str, name: str) -> ModuleType:
    return load(emit(skeleton, SERVED[name]), FOLDER, f"{FILES[skeleton]}_{name}")


def run(skeleton: str, name: str, inputs: Inputs, outer: tuple[torch.Tensor, torch.Tensor]) -> Gradients:
    """Of q, or of k and v, with all that the kernel reads exact; memory that nobody wrote is NaN."""
    found = gradients(module(skeleton, name), skeleton, inputs, *outer, {})
    torch.cuda.synchronize()
    return found


def compare(name: str, case: Case, record: Record) -> None:
    kernel = case.kernel
    form = (kernel.nears, kernel.strides, kernel.powers, kernel.causal)
    values = (form, kernel.head_width, kernel.value_width, kernel.group, kernel.cap, kernel.sink_logit)
    about = dict(zip(CONSTANTS, values, strict=True))
    rows: dict[str, tuple[Any, ...]] = {
        skeleton: (FILES[skeleton], kernels.digest(emit(skeleton, kernel), "sm_90"), about, case.dtype) for skeleton in BACKWARD
    }
    for row in rows.values():
        record(*row)
    inputs = build(case)
    outer = outer_gradients(inputs)
    flat: Gradients = {}
    for skeleton in BACKWARD:
        flat |= run(skeleton, name, inputs, outer)
    if inputs.sink_logit is not None:  # whose gradient is no kernel's
        flat["sink_logit"] = of_sink(inputs, outer)
    errors = check_gradients(inputs, flat, *outer)
    record(*rows[BACKWARD[0]], errors["q"])
    record(*rows[BACKWARD[1]], max(errors["k"], errors["v"]))


def of_sink(inputs: Inputs, outer: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    assert inputs.sink_logit is not None
    o, lse = exact(inputs)
    delta = (o.double() * outer[0].double()).sum(-1).float() - torch.where(torch.isneginf(lse), 0.0, outer[1])
    return sink_gradient(inputs.sink_logit, lse, delta)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", SERVED)
def test_gradients(name: str, dtype: torch.dtype, record: Record) -> None:
    """Sequences of many lengths; behind a past, with keys of a cache; a long text; heads that see nothing."""
    kernel = SERVED[name]
    many = Case(kernel, (*sorts(kernel, 64), Union()), (1, 0, 63, 127, 129, 700), (0,) * 6, dtype=dtype, device="cuda")
    behind = replace(many, sizes=(300, 17, 65), pasts=(1000, 0, 3000))
    for case in (many, behind, replace(behind, cache=True)):
        compare(name, case, record)


@pytest.mark.parametrize("name", ["mixed", "full"])
def test_first_keys_of_a_long_text_are_shared_out(name: str, record: Record) -> None:
    heads = (Union(sink=70, nears=((1, 0, 127, 0),)), Union(sink=200, nears=((1, 0, 500, 0),)))
    compare(name, Case(SERVED[name], heads, (9000,), (0,), torch.bfloat16, device="cuda"), record)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_what_nobody_rounds_is_exact(dtype: torch.dtype, record: Record) -> None:
    """A key that is found has weight 1: gradients of small integers."""
    kernel, heads = SERVED["mixed"], sorts(SERVED["mixed"], 64)[:5]
    compare("mixed", Case(kernel, heads, (700,), (0,), dtype=dtype, device="cuda", found=True), record)


@pytest.mark.parametrize("name", ["full", "mixed", "far", "cap_128", "every_part"])
def test_the_same_bits_every_time(name: str) -> None:
    """Two hundred launches of random shapes: parties that meet in another order would show."""
    draw = random.Random(name)
    for number in range(50):
        heads = tuple(draw.choices(sorts(SERVED[name], 64), k=draw.randint(1, 8)))
        sizes = tuple(draw.randint(1, draw.choice((300, 3000))) for _ in range(draw.randint(1, 4)))
        inputs = build(Case(SERVED[name], heads, sizes, (0,) * len(sizes), torch.bfloat16, device="cuda", seed=number))
        o_grad, lse_grad = outer_gradients(inputs)
        o, lse = torch.randn_like(o_grad), torch.randn_like(lse_grad) + 6
        first = both(name, inputs, o, lse, o_grad, lse_grad)
        for _ in range(3):
            assert all(map(torch.equal, first, both(name, inputs, o, lse, o_grad, lse_grad))), (number, sizes, heads)


def both(
    name: str, inputs: Inputs, o: torch.Tensor, lse: torch.Tensor, o_grad: torch.Tensor, lse_grad: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """One pass behind the other."""
    queries, keys = (module(skeleton, name) for skeleton in BACKWARD)
    places = inputs.arguments[:-1]
    q_grad, delta = queries.attend_backward_queries(*places, o, lse, o_grad, lse_grad)
    return q_grad, delta, *keys.attend_backward_keys(*places, lse, delta, o_grad)


@pytest.mark.parametrize("skeleton", BACKWARD)
def test_a_captured_launch_reads_what_lies_there_then(skeleton: str) -> None:
    inputs = build(Case(SERVED["mixed"], sorts(SERVED["mixed"], 64), (130, 300), (0, 0), torch.bfloat16, device="cuda"))
    o, lse = exact(inputs)
    o_grad, lse_grad = outer_gradients(inputs)
    places = inputs.arguments[:-1]

    def launch() -> Any:
        emitted = module(skeleton, "mixed")
        if skeleton == BACKWARD[0]:
            return emitted.attend_backward_queries(*places, o, lse, o_grad, lse_grad)
        return emitted.attend_backward_keys(*places, lse, lse_grad, o_grad)

    launch()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = launch()
    o_grad.mul_(2)
    for result in results:
        result.fill_(float("nan"))
    graph.replay()
    torch.cuda.synchronize()
    assert all(map(torch.equal, results, launch()))
