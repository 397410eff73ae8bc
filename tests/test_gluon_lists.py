"""The kernel over lists in Gluon without a GPU: its own text run by Python, and compiled for sm_90."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from gluon_on_cpu import Deadlock, module
from kernel_cases import check

from attnc.codegen.gluon.lists import PREFILL, emit, fits
from attnc.codegen.kernels import list_texts
from attnc.codegen.verify.cases import Case, Inputs, Union, build, poisoned
from attnc.codegen.verify.judge import judge
from attnc.codegen.verify.lists import Listed, lists_of
from attnc.compiler import check_text, families, passes
from attnc.compiler.families import Softmax
from attnc.compiler.graph import Mix
from attnc.compiler.graph import build as build_graph
from attnc.runtime.list_kernels import serves

UNBOUNDED = 2**30
NEAR = Union(sink=5, nears=((1, 0, 90, 0),))
FAR = Union(0, ((1, 0, 20, 0),), (70,))
PLAIN = Softmax(1, head_width=64, value_width=64, group=2)
ALONE = replace(PLAIN, group=1, sink_logit=True)


def run(kernel: families.Listed, case: Case, seed: int = 0, text: str = "") -> tuple[Inputs, Any]:
    """Memory that nobody wrote is NaN."""
    inputs = build(case)
    lists = lists_of(case, case.unions)
    with poisoned():
        return inputs, module(text or emit(kernel), seed).attend(*inputs.arguments, lists)


def listed(
    kernel: Softmax, rest: Union, unit: int, many: int, sizes: tuple[int, ...], pasts: tuple[int, ...], cache: bool
) -> Case:
    unions = tuple(Listed(rest, unit, many, salt) for salt in range(2))
    return Case(kernel, unions, sizes, pasts, torch.bfloat16, cache=cache)


@pytest.mark.parametrize(
    ("case", "each_head"),
    [
        (listed(PLAIN, NEAR, 64, 128, (130, 1, 0, 70), (70, 200, 3, 0), True), False),
        (listed(ALONE, NEAR, 128, 256, (200,), (130,), False), True),
        (listed(replace(PLAIN, strides=1, powers=1, value_width=128), FAR, 128, UNBOUNDED, (130, 1), (40, 70), False), False),
    ],
    ids=["rows_of_a_tile", "units_before_slot_0", "one_row"],
)
def test_each_listed_and_shown_key_is_read_once(case: Case, each_head: bool) -> None:
    """Rows that begin within a sequence, that list nothing; units of another part; NaN lies around all keys."""
    inputs, found = run(families.Listed(case.kernel, case.unions[0].unit, each_head), case)
    check(inputs, *found)


def test_where_nothing_could_be_chosen_the_result_is_not_a_number() -> None:
    case = listed(PLAIN, NEAR, 64, 128, (200,), (0,), False)
    inputs, lists = build(case), lists_of(case, case.unions)
    lists.count[0, 1] = -1
    o, lse = module(emit(families.Listed(PLAIN, 64, False))).attend(*inputs.arguments, lists)
    unknown = torch.zeros(200, 4, dtype=torch.bool)
    unknown[128:, :2] = True
    assert torch.equal(o.isnan().all(-1), unknown)
    assert torch.equal(o.isnan().any(-1), unknown)
    assert torch.equal(lse.isnan(), unknown)


def test_keys_that_are_shown_and_listed_twice_are_found() -> None:
    case, kernel = listed(PLAIN, NEAR, 64, 128, (150,), (70,), True), families.Listed(PLAIN, 64, False)
    text = emit(kernel)
    assert text.count("near != (step < many)") == 1
    inputs, (o, lse) = run(kernel, case, text=text.replace("near != (step < many)", "near | (step < many)"))
    assert judge(inputs, o, lse, 1024).wrong


def test_a_list_walked_otherwise_by_who_copies_is_found() -> None:
    """One step less for the party that copies than was planned: all wait."""
    case, kernel = listed(PLAIN, NEAR, 64, 128, (150,), (70,), True), families.Listed(PLAIN, 64, False)
    line = "for _ in range(steps):"
    text = emit(kernel)
    assert text.count(line) == 1
    with pytest.raises(Deadlock):
        run(kernel, case, text=text.replace(line, "for _ in range(steps - 1):"))


def test_units_that_are_no_whole_blocks_are_left_to_triton() -> None:
    assert fits(families.Listed(PLAIN, 64, False))
    assert fits(families.Listed(PLAIN, 192, False))
    assert not fits(families.Listed(PLAIN, 96, False))
    assert not fits(families.Listed(replace(PLAIN, head_width=68), 64, False))


def test_a_folder_has_it_where_many_queries_share_a_list_and_launches_ask_it_first() -> None:
    rule = "block_local(64) | routed(blocks(64), top_k = 8, queries = block({}))"
    head = "vocab = 64, dim = 64, layers = 1, heads = 4, kv_heads = 2, head_dim = 64, ffn = none, norm = rms(1e-6)"
    for many, there in ((128, True), (64, False)):
        spec = check_text(f"model m {{ {head} }} layers {{ all: {rule.format(many)} }}")
        graph = passes.run(build_graph(spec))
        (mix,) = (one["node"] for _, one in graph.network.nodes(data=True) if isinstance(one["node"], Mix))
        assert (PREFILL in list_texts(mix, spec.model).values()) == there

    files = [SimpleNamespace(BESIDE=0), SimpleNamespace(BESIDE=0, serves=lambda _q, lists: lists.many >= 128)]
    for many, expected in ((128, [True, True]), (64, [True, False])):
        assert [serves(one, None, SimpleNamespace(many=many, taken=None)) for one in files] == expected  # type: ignore[arg-type]


@pytest.mark.triton
def test_it_compiles_for_sm_90() -> None:
    from attnc.codegen.triton.compile import SHARED_LIMIT, compile_ahead

    for used in compile_ahead(emit(families.Listed(PLAIN, 64, False)), "sm_90", "bf16"):
        assert used.shared <= SHARED_LIMIT["sm_90"]
        assert used.registers == 168
        assert used.spills == 0
