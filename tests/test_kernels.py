"""Emitted kernels as text: what may be in them, that they are the same every time, and what they use when compiled ahead."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kernel_cases import KERNELS, SOFTPLUS

from attnc.codegen.triton import holes
from attnc.codegen.triton.blocks import DECODE, PREFILL, TABLES, WIDTHS, blocks
from attnc.codegen.triton.emit import SKELETONS, emit, fill, functions_of
from attnc.compiler.families import BACKWARD, FAMILIES, Softmax
from attnc.compiler.intervals import Intervals, Near

if TYPE_CHECKING:
    from attnc.codegen.triton.compile import Resources

NAMES = FAMILIES["softmax"]
TOP = Path(__file__).parents[1]


def with_exponent(kernel: Softmax) -> st.SearchStrategy[Softmax]:
    """Mostly as it is; without a sink logit also re-weighted softplus masses, and their sums."""
    if kernel.sink_logit:
        return st.just(kernel)
    powers = st.sampled_from([None, None, 1.0, 2.5, 15.0, 64.0]) | st.floats(1, 64)
    weights = powers.map(lambda exponent: replace(kernel, exponent=exponent))
    return st.tuples(weights, st.booleans()).map(lambda drawn: drawn[0].masses if drawn[0].exponent and drawn[1] else drawn[0])


softmaxes = st.builds(
    Softmax,
    nears=st.integers(0, 4),
    strides=st.integers(0, 3),
    powers=st.integers(0, 3),
    causal=st.booleans(),
    head_width=st.integers(1, 256),
    value_width=st.integers(1, 256),
    group=st.integers(1, 128),
    cap=st.booleans(),
    sink_logit=st.booleans(),
).flatmap(with_exponent)


@pytest.mark.parametrize("name", ["mixed", "sink_logit", "far", "both_ways"])
@pytest.mark.parametrize("skeleton", NAMES)
def test_emitted_text(skeleton: str, name: str, golden: Callable[[str, str], None]) -> None:
    golden(f"{skeleton}_{name}.py", emit(skeleton, KERNELS[name]))


@pytest.mark.parametrize("skeleton", NAMES)
def test_emitted_text_of_softplus_kernels(skeleton: str, golden: Callable[[str, str], None]) -> None:
    golden(f"{skeleton}_softplus.py", emit(skeleton, SOFTPLUS["grouped"]))
    golden(f"{skeleton}_softplus_masses.py", emit(skeleton, SOFTPLUS["plain"].masses))


@given(st.sampled_from(NAMES), softmaxes)
def test_an_emitted_file_stands_alone(skeleton: str, kernel: Softmax) -> None:
    """It parses, imports torch and triton alone, calls only what it defines, and is the same twice."""
    text = emit(skeleton, kernel)
    assert text == emit(skeleton, kernel)
    tree = ast.parse(text)
    imported = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    assert imported == ["torch", "triton", "triton.language"]
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    names = set(functions_of(text))
    called = {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    given = {"constants", "start", "stream"}  # what `run` is given, and has kept
    assert called <= names | given | {"float", "max", "min", "any", "all", "len", "set", "tuple", "list", "map"}
    assert max(map(len, text.splitlines())) <= 128


@given(st.sampled_from(NAMES), softmaxes)
def test_only_the_terms_of_the_form_are_there(skeleton: str, kernel: Softmax) -> None:
    text = emit(skeleton, kernel)
    assert ("stride > 0" in text or "stride_0 > 0" in text) == (kernel.strides > 0)
    assert ("power > 0" in text or "power_0 > 0" in text) == (kernel.powers > 0)
    assert ("far_part" in text) == (kernel.far > 0)
    assert ("tanh" in text) == kernel.cap
    assert ("softplus(logit" in text) == (kernel.exponent is not None and (bool(kernel.exponent) or skeleton not in BACKWARD))
    assert ("tl.load(sink_logit" in text) == (kernel.sink_logit and skeleton not in BACKWARD)
    assert ("j <= i" in text) == kernel.causal
    assert text.count("tl.load(row + ") == 4 * kernel.nears + kernel.far


def test_the_skeletons_are_kernels_and_share_their_functions() -> None:
    prefill, decode, queries, keys = (functions_of((SKELETONS / f"{name}.py").read_text("utf-8")) for name in NAMES)
    walk = {"read_row", "lower", "upper", "horizon", "keep", "visit", "block_of", "architecture", "run"}
    pairs = [
        (prefill, decode, walk | {"position", "adjust_score"}),
        (prefill, queries, walk),
        (queries, keys, {"read_row", "lower", "upper", "keep", "exponent", "product_grad", "architecture", "run", "settings"}),
    ]
    for one, other, least in pairs:
        shared = set(one) & set(other) - {"attend", "variants"}
        assert least <= shared
        assert {name for name in shared - {"settings"} if one[name] != other[name]} == set()


def test_filling_a_hole_that_is_not_there_is_our_mistake() -> None:
    with pytest.raises(AssertionError, match="other"):
        fill("def hole():\n    pass\n", {"other": "def other():\n    pass"}, {})


@pytest.mark.parametrize(
    "wrong",
    [
        {"nears": -1},
        {"head_width": 257},
        {"group": 0},
        {"nears": "1"},
        {"cap": 1},
        {"strides": 65},
        {"exponent": 15},
        {"exponent": 0.5},
        {"exponent": 64.5},
        {"exponent": 2.0, "sink_logit": True},
    ],
)
def test_a_form_holds_bounded_numbers_alone(wrong: dict[str, object]) -> None:
    with pytest.raises(AssertionError):
        Softmax(**{"nears": 1, **wrong})


def test_a_kernel_has_room_for_every_head_of_its_launch() -> None:
    unions = [
        Intervals(near=(Near(back=9),)),
        Intervals(sink=3, near=(Near(align=8), Near(back=2)), powers=(4,)),
        Intervals(strides=(3, 5)),
    ]
    assert Softmax.of(unions, 64, 32, 4, False, True) == Softmax(2, 2, 1, True, 64, 32, 4, False, True)


def test_every_row_of_the_block_tables_is_complete() -> None:
    for table in TABLES.values():
        assert tuple(table) == WIDTHS
        assert len({tuple(rows) for rows in table.values()}) == 1
    assert blocks("softmax_prefill", 65) == PREFILL[128]
    assert blocks("softmax_decode", 256) == DECODE[256]


def test_the_record_of_gpu_runs_has_its_form() -> None:
    path = TOP / "docs" / "gpu.json"
    if path.exists():
        from attnc.codegen.triton.verified import read

        rows = read(path)
        assert len({(row.device, row.skeleton, row.sha256, row.dtype) for row in rows}) == len(rows)
        assert json.loads(path.read_text("utf-8"))["schema_version"] == 1


COMPILED = [
    (skeleton, width, dtype, target)
    for skeleton in NAMES
    for width in (64, 128)
    for dtype in ("bf16", "fp32")
    for target in ("sm_80", "sm_90", "sm_100", "gfx942")
]


@pytest.mark.triton
@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100", "gfx942"])
@pytest.mark.parametrize("skeleton", NAMES)
def test_keys_wider_than_values_do_not_spill_in_16_bits(skeleton: str, target: str) -> None:
    """The widths of DeepSeek-V2's attention: 128 channels of a head's own and 64 rotated ones, values of 128."""
    from attnc.codegen.triton.compile import compile_ahead

    fits(compile_ahead(emit(skeleton, Softmax(1, head_width=192, value_width=128)), target, "bf16"), target)


def test_division_by_products_is_exact() -> None:
    """For positions up to the largest, around multiples of units of every size."""
    scope = {"tl": SimpleNamespace(int64=torch.int64, int32=torch.int32), "NOWHERE": 2**30}
    exec(holes.DIVIDING.replace("@triton.jit\n", ""), scope)
    for unit in (1, 2, 3, 7, 64, 65, 1000, 32769, 65535, 65536):
        turns = torch.cat((torch.arange(50), torch.arange(2**30 // unit - 50, 2**30 // unit + 1)))
        x = (turns[:, None] * unit + torch.arange(-1, 2)).flatten().clamp(0, 2**30 - 1).to(torch.int32)
        assert torch.equal(scope["divided"](x, *scope["divider"](torch.tensor(unit))), x // unit), unit


SOFTPLUS_COMPILED = [row for row in COMPILED if row[1] == 64 or row[2:] == ("bf16", "sm_90")]


@pytest.mark.triton
@pytest.mark.parametrize(("skeleton", "width", "dtype", "target"), COMPILED)
def test_compiled_ahead_nothing_spills(skeleton: str, width: int, dtype: str, target: str) -> None:
    from attnc.codegen.triton.compile import compile_ahead

    text = emit(skeleton, Softmax(1, head_width=width, value_width=width, group=4))
    fits(compile_ahead(text, target, dtype), target)


@pytest.mark.triton
@pytest.mark.parametrize(("skeleton", "width", "dtype", "target"), SOFTPLUS_COMPILED)
def test_softplus_kernels_compiled_ahead_do_not_spill(skeleton: str, width: int, dtype: str, target: str) -> None:
    from attnc.codegen.triton.compile import compile_ahead

    kernel = Softmax(1, head_width=width, value_width=width, group=4, exponent=15.0)
    for form in (kernel, kernel.masses) if (width, dtype) == (64, "bf16") else (kernel,):
        fits(compile_ahead(emit(skeleton, form), target, dtype), target)


LEFT_OVER = {("attend_kernel", "sm_90", "fp32"): 16, ("attend_kernel", "sm_90", "bf16"): 8}
"""Bytes of a thread: the blocks that a GPU ran (docs/gpu.json) leave two or three numbers over with triton 3.7."""


def fits(found: Iterable[Resources], target: str) -> None:
    """Nothing spills but what is left over, and there is that much shared memory."""
    from attnc.codegen.triton.compile import SHARED_LIMIT

    for used in found:
        assert used.spills <= LEFT_OVER.get((used.kernel, target, used.dtype), 0), used
        assert 0 < used.shared <= SHARED_LIMIT[target], used
        assert 8 <= used.registers <= (512 if target.startswith("gfx") else 255), used
