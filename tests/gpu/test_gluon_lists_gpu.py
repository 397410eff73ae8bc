"""The kernel over lists in Gluon on a GPU of sm_90: right, the same bits every time, captured."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest
import torch
from kernel_cases import check

from attnc.codegen import kernels
from attnc.codegen.gluon.lists import PREFILL, emit
from attnc.codegen.triton.compile import load
from attnc.codegen.verify.cases import Case, Union, build, poisoned
from attnc.codegen.verify.lists import Listed, lists_of
from attnc.compiler import families
from attnc.compiler.families import Softmax

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0), reason="the kernels are for sm_90"
)
FOLDER = Path(tempfile.mkdtemp(prefix="attnc-"))
UNBOUNDED = 2**30
NEAR = Union(sink=5, nears=((1, 0, 90, 0),))
WIDE = Softmax(1, head_width=128, value_width=128, group=4)
CASES = {  # kernel, what intervals show, keys of a unit, queries of a row, new tokens, past
    "blocks": (WIDE, NEAR, 128, 128, (700, 0, 300), (130, 3, 0)),
    "halves": (replace(WIDE, group=16), NEAR, 64, 256, (1000, 1), (70, 900)),
    "narrow": (replace(WIDE, head_width=64, value_width=64, sink_logit=True), NEAR, 192, 128, (500, 260), (0, 64)),
    "one row": (replace(WIDE, cap=True), NEAR, 128, UNBOUNDED, (600,), (50,)),
    "nothing but lists": (replace(WIDE, nears=0), Union(), 128, 128, (1300,), (0,)),
    "a stride beside": (replace(WIDE, strides=1), Union(0, ((1, 0, 20, 0),), (333,)), 128, 128, (700, 40), (0, 500)),
}
Record = Callable[..., None]


@cache
def module(name: str) -> ModuleType:
    kernel, _, unit, *_ = CASES[name]
    return load(emit(families.Listed(kernel, unit, False)), FOLDER, f"{PREFILL}_{name.replace(' ', '_')}")


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_attention_over_lists(name: str, dtype: torch.dtype, record: Record) -> None:
    """With keys of a cache and with the call's own, which begin within a unit."""
    kernel, rest, unit, many, sizes, pasts = CASES[name]
    text = emit(families.Listed(kernel, unit, False))
    row = (PREFILL, kernels.digest(text, "sm_90"), {"UNIT": unit, "WIDTH": kernel.head_width, "GROUP": kernel.group}, dtype)
    record(*row)
    unions = tuple(Listed(rest, unit, many, salt) for salt in range(2))
    case = Case(kernel, unions, sizes, pasts, dtype, cache=True, device="cuda")
    for one in (case, replace(case, cache=False), replace(case, integers=True, magnitude=0.0)):
        inputs, lists = build(one), lists_of(one, unions)
        with poisoned():
            o, lse = module(name).attend(*inputs.arguments, lists)
        record(*row, check(inputs, o, lse))
        for _ in range(20):
            assert all(map(torch.equal, (o, lse), module(name).attend(*inputs.arguments, lists)))


def test_a_captured_launch_reads_the_lists_that_lie_there_then() -> None:
    kernel, rest, unit, many, sizes, pasts = CASES["blocks"]
    unions = tuple(Listed(rest, unit, many, salt) for salt in range(2))
    case = Case(kernel, unions, sizes, pasts, torch.bfloat16, cache=True, device="cuda")
    inputs, lists = build(case), lists_of(case, unions)
    module("blocks").attend(*inputs.arguments, lists)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = module("blocks").attend(*inputs.arguments, lists)
    lists.count.clamp_(max=1)
    for result in results:
        result.fill_(float("nan"))
    graph.replay()
    torch.cuda.synchronize()
    assert all(map(torch.equal, results, module("blocks").attend(*inputs.arguments, lists)))
