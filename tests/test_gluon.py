"""Gluon kernels without a GPU: their own text run by Python, and compiled for sm_90."""

from __future__ import annotations

import ast
import builtins
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import triton
from gluon_on_cpu import Deadlock, Overrun, module
from kernel_cases import check

from attnc.codegen.gluon.blocks import ROWS, list_row
from attnc.codegen.gluon.emit import emit
from attnc.codegen.triton.compile import load
from attnc.codegen.triton.versions import VERSION
from attnc.codegen.verify.cases import FULL, Case, Inputs, Union, build, poisoned
from attnc.codegen.verify.judge import judge
from attnc.compiler.families import Softmax

PLAIN = Softmax(1, head_width=64, value_width=64, group=2)
HEADS = (Union(nears=(FULL,)), Union(sink=70, nears=((1, 0, 127, 0),)), Union(nears=((64, 0, 64, 0),)), Union())
FAR = Softmax(1, 1, 1, head_width=64, value_width=64, sink_logit=True)
FAR_HEADS = (Union(strides=(333,)), Union(powers=(64,)), Union(sink=3, strides=(512,)), Union(strides=(300,), powers=(64,)))
BOTH = Softmax(1, causal=False, head_width=96, value_width=64, cap=True)
WIDE = Softmax(1, head_width=192, value_width=64)
WIDEST = Softmax(1, head_width=256, value_width=256, sink_logit=True)
"""Between them every hole, copies padded to the next power of two, and widths that differ."""


def attend(text: str, inputs: Inputs, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    with poisoned():
        o, lse = module(text, seed).attend(*inputs.arguments)
    return o, lse


@pytest.mark.parametrize(
    "case",
    [
        Case(PLAIN, HEADS, (1, 0, 127, 129), (0, 0, 0, 0), dtype=torch.bfloat16),
        Case(PLAIN, HEADS, (30, 17), (500, 3), dtype=torch.bfloat16, cache=True, keeps=((70, 200), None, (0, 50), None)),
        Case(FAR, FAR_HEADS, (130,), (700,), dtype=torch.float16, cache=True),
        Case(BOTH, HEADS[:3], (70, 130), (5, 0), dtype=torch.bfloat16),
        Case(WIDE, HEADS[:1], (130,), (900,), dtype=torch.float16, found=True, cache=True),
        Case(WIDEST, HEADS[:2], (200,), (0,), dtype=torch.bfloat16),
    ],
    ids=["packed", "rings", "far", "both_ways", "found", "written_directly"],
)
def test_no_schedule_deadlocks_or_reads_too_early(case: Case) -> None:
    """Sequences of no, few and many tokens, heads that see everything, little and nothing; NaN lies around all keys.
    Logits of 24,576, whose product with log2(e) is rounded, leave a found value and its log-sum-exp what they are.
    """
    inputs = build(case)
    check(inputs, *attend(emit(case.kernel), inputs, seed=0))


def test_three_parties_meet_no_deadlock_either() -> None:
    inputs = build(Case(PLAIN, HEADS[:2], (200, 150), (0, 40), dtype=torch.bfloat16))
    with poisoned():
        o, lse = module(emit(PLAIN), seed=1).attend(*inputs.arguments, blocks=(192, 128, 16, 3, 2, 8, 160, 0, 0))
    check(inputs, o, lse)


BARRIERS = re.findall(r"^ *mbarrier\.(?:wait|arrive)\(.*\n", emit(PLAIN), re.MULTILINE)


def without(text: str, line: str) -> str:
    """The text with one line undone."""
    return text.replace(line, line[: len(line) - len(line.lstrip())] + "pass\n", 1)


@pytest.mark.parametrize(
    "line",
    [
        "mbarrier.arrive(v_empty.index(slot), count=1)",
        "mbarrier.arrive(v_full.index(slot), count=1)",
        "mbarrier.wait(k_empty.index(slot), phase ^ 1)",
        "mbarrier.wait(step_empty.index(empty_slot), empty_phase ^ 1)",
        "mbarrier.wait(step_full.index(step_slot), step_phase)",
        "mbarrier.wait(q_empty.index(slot * PARTIES + party), phase ^ 1)",
        "mbarrier.wait(q_full.index(place), q_phase)",
        "mbarrier.arrive(q_empty.index(place), count=1)",
    ],
)
def test_a_barrier_that_is_missing_is_found(line: str) -> None:
    """Four steps are planned at most, so that this party, too, has to wait."""
    text = emit(PLAIN).replace("(128, 128, 12, 3, 2, 8, 208, 0, 0)", "(128, 128, 12, 3, 2, 4, 208, 0, 0)")
    assert text != emit(PLAIN)
    assert sum(line in one for one in BARRIERS) >= 1
    inputs = build(Case(PLAIN, (HEADS[0], HEADS[2]), (400,), (0,), dtype=torch.bfloat16))
    broken = without(text, next(one for one in BARRIERS if line in one))
    assert any(map(fails, [broken] * 3, [inputs] * 3, range(3)))


def fails(text: str, inputs: Inputs, seed: int) -> bool:
    """Whether the results are wrong or all parties wait."""
    try:
        o, lse = attend(text, inputs, seed)
    except (Deadlock, Overrun):
        return True
    return judge(inputs, o, lse, 1024).wrong != ""


@pytest.mark.triton
def test_it_compiles_for_sm_90() -> None:
    from attnc.codegen.triton.compile import SHARED_LIMIT, compile_ahead

    text = emit(Softmax(1, head_width=128, value_width=128, group=4)).replace("in (False, True))", "in (False,))")
    for used in compile_ahead(text, "sm_90", "bf16"):
        assert used.spills <= (0 if VERSION < (3, 8) else 16)
        assert used.shared <= SHARED_LIMIT["sm_90"]
        assert used.registers == 168


def test_more_steps_may_be_planned_than_keys_are_held() -> None:
    """A step is told again when its values are gone: were no more told than held, all parties would wait."""
    rows = [*ROWS.values(), *(list_row(*widths, unit) for widths in ROWS for unit in (64, 128))]
    assert all(ahead > slots for _, _, _, slots, _, ahead, *_ in rows)


def test_a_launch_with_descriptors_encoded_before_is_the_launch_that_triton_makes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver's own parts, but for what encodes and what launches; a descriptor is encoded once for what it says."""
    from triton.backends.nvidia import driver

    encoded, launched = [], []
    utilities = SimpleNamespace(**dict.fromkeys(("fill_tma_descriptor", "fill_tma_descriptor_tiled"), encode(encoded)))
    active = SimpleNamespace(utils=utilities, get_current_device=lambda: 0, get_current_stream=lambda _device: 5)
    monkeypatch.setattr(triton.runtime, "driver", SimpleNamespace(active=active))
    told = [{"swizzle": 3, "elem_size": 2, "elem_type": 10, "block_size": [64, 1, 64], "fp4_padded": False}]
    around = driver.wrap_handle_tensordesc(
        lambda *args: launched.append(flattened(args)), {0: "tensordesc<bf16[64,1,64]>", 1: "*i32", 2: "i32"}, told
    )
    whole = Launching(around)
    compiled = SimpleNamespace(metadata=SimpleNamespace(tensordesc_meta=told), run=whole, function=6, packed_metadata=7)
    emitted = load(emit(PLAIN), tmp_path, "launched")
    emitted.READY["key"] = compiled, emitted.bare_launcher(compiled), [8]

    x, count = torch.zeros(5, 3, 64, dtype=torch.bfloat16), torch.zeros(8, dtype=torch.int32)
    count = count[-count.data_ptr() // 4 % 4 :]
    view = emitted.packed_view(x, 64, 64)
    for _ in range(2):
        emitted.run(None, 9, [view], [count], [], "key", dict)
    assert len(encoded) == 1
    whole(9, 1, 1, 5, 6, 7, None, None, None, emitted.described(*view), count.data_ptr(), 8)
    assert launched[0] == launched[1] == launched[2]


class Launching:
    """Triton's launcher, up to what it hands over first or last."""

    def __init__(self, launch: Callable[..., None]) -> None:
        self.launch = launch

    def __call__(self, *arguments: Any) -> None:
        before, given = arguments[:9], arguments[9:]
        if VERSION < (3, 7):
            self.launch(*before[:5], False, False, None, None, *before[5:], *given)
        else:
            self.launch(*before, given)


def flattened(arguments: tuple[Any, ...]) -> list[Any]:
    """With the kernel's own arguments, which come as a list or a tuple from Triton 3.7 on, beside the others."""
    *others, last = arguments
    return [*others, *last] if isinstance(last, list | tuple) else [*others, last]


def encode(told: list[Any]) -> Callable[..., Any]:
    """Notes what a descriptor says, and returns it in its place."""

    def note(*says: Any) -> Any:
        told.append(says)
        return says

    return note


@pytest.mark.parametrize("kernel", [PLAIN, FAR, BOTH], ids=["plain", "far", "both_ways"])
def test_a_joined_text_has_every_name_that_it_uses(kernel: Softmax) -> None:
    nodes = list(ast.walk(ast.parse(emit(kernel))))
    names = [node for node in nodes if isinstance(node, ast.Name)]
    there = {node.id for node in names if isinstance(node.ctx, ast.Store)} | set(vars(builtins))
    there |= {node.arg for node in nodes if isinstance(node, ast.arg)}
    there |= {node.name for node in nodes if isinstance(node, ast.FunctionDef)}
    there |= {
        (alias.asname or alias.name) for node in nodes if isinstance(node, ast.Import | ast.ImportFrom) for alias in node.names
    }
    assert {node.id for node in names} <= there


def test_its_names_of_gluon_stand_in_one_file() -> None:
    """What moved between versions of Triton is named nowhere else."""
    folder = Path(__file__).parents[1] / "codegen" / "gluon"
    moved = re.compile(r"thread_barrier|async_copy_global_to_shared|async_copy_shared_to_global|async_load|async_store")
    assert [path.name for path in folder.rglob("*.py") if moved.search(path.read_text("utf-8"))] == ["names.py"]
