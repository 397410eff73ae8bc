"""The emitted softmax kernels in Triton's interpreter against dense attention in float64.

test_kernels_interpreter.py runs this file.
"""

from __future__ import annotations

import functools
import math
import tempfile
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from kernel_cases import check

from attnc.codegen.triton.compile import load
from attnc.codegen.triton.emit import emit
from attnc.codegen.triton.versions import INTERPRETS
from attnc.codegen.verify.cases import FULL, Case, Inputs, Union, build, poisoned
from attnc.codegen.verify.dense import reference
from attnc.codegen.verify.judge import error
from attnc.compiler.families import Softmax
from attnc.runtime.keys import persistent_keys
from attnc.runtime.softmax import merge

if not INTERPRETS:
    pytest.fail("TRITON_INTERPRET=1 is not set", pytrace=False)

FOLDER = Path(tempfile.mkdtemp(prefix="attnc-"))
WINDOW = Union(nears=((1, 0, 6, 0),))
SINK_WINDOW = Union(sink=3, nears=((1, 0, 6, 0),))
ALL = Union(nears=(FULL,))


@functools.cache
def kernel(skeleton: str, form: Softmax) -> ModuleType:
    return load(emit(skeleton, form), FOLDER, f"emitted_{skeleton}_{abs(hash(form))}")


def run(case: Case, **options: object) -> tuple[Inputs, torch.Tensor, torch.Tensor]:
    """A few new tokens on a cache that holds them: decode; otherwise prefill. Memory that nobody wrote is NaN."""
    decodes = case.cache and case.written and max(case.sizes) <= 16
    module = kernel("softmax_decode" if decodes else "softmax_prefill", case.kernel)
    options = {"blocks": (16, 4, 4, 1) if decodes else (16, 16, 4, 1)} | options
    inputs = build(case)
    with poisoned():
        o, lse = module.attend(*inputs.arguments, **options)
    return inputs, o, lse


def right(case: Case, **options: object) -> tuple[float, float]:
    return check(*run(case, **options))


@st.composite
def unions(draw: st.DrawFn, form: Softmax) -> Union:
    """A key set that fits into the form: some of its parts, so that neutral ones occur."""
    nears = tuple(
        (align, draw(st.integers(0, align - 1)), draw(st.sampled_from([0, 1, 5, 17, 2**30])), draw(st.integers(0, 9)))
        for align in draw(st.lists(st.sampled_from([1, 1, 4, 7, 32]), max_size=form.nears))
    )
    strides = draw(st.lists(st.sampled_from([2, 5, 16, 33, 40]), max_size=form.strides))
    powers = draw(st.lists(st.sampled_from([2, 3, 8, 20]), max_size=form.powers))
    return Union(draw(st.sampled_from([0, 0, 1, 4, 19])), nears, tuple(strides), tuple(powers))


@st.composite
def forms(draw: st.DrawFn, group: int) -> Softmax:
    return Softmax(
        nears=draw(st.integers(0, 2)),
        strides=draw(st.integers(0, 2)),
        powers=draw(st.integers(0, 1)),
        causal=draw(st.booleans()) or draw(st.booleans()),
        head_width=draw(st.sampled_from([16, 24, 64])),
        value_width=draw(st.sampled_from([16, 24])),
        group=group,
        cap=draw(st.booleans()) and draw(st.booleans()),
        sink_logit=draw(st.booleans()) and draw(st.booleans()),
    )


@st.composite
def prefills(draw: st.DrawFn) -> Case:
    form = draw(forms(group=draw(st.sampled_from([1, 1, 3]))))
    heads = draw(st.lists(unions(form), min_size=1, max_size=3 - form.group // 2))
    sizes = [draw(st.integers(20, 50)), *draw(st.lists(st.integers(0, 20), max_size=2))]
    pasts = [draw(st.sampled_from([0, 0, 3, 40])) for _ in sizes]
    cache = draw(st.booleans())
    keeps = tuple(draw(st.one_of(st.none(), st.tuples(st.integers(0, 4), st.integers(5, 30)))) for _ in heads)
    return Case(
        kernel=form,
        unions=tuple(heads),
        sizes=tuple(draw(st.permutations(sizes))),
        pasts=tuple(pasts),
        dtype=draw(st.sampled_from([torch.float32, torch.float32, torch.float16])),
        cache=cache,
        written=not cache or draw(st.booleans()),
        keeps=keeps if cache else None,
        seed=draw(st.integers(0, 2**20)),
    )


@st.composite
def decodes(draw: st.DrawFn) -> Case:
    form = draw(forms(group=draw(st.sampled_from([1, 3, 4, 8]))))
    heads = draw(st.lists(unions(form), min_size=1, max_size=2))
    sizes = [draw(st.integers(1, 16)), *draw(st.lists(st.integers(0, 16), max_size=1))]
    keeps = tuple(draw(st.one_of(st.none(), st.tuples(st.integers(0, 4), st.integers(16, 40)))) for _ in heads)
    return Case(
        kernel=form,
        unions=tuple(heads),
        sizes=tuple(sizes),
        pasts=tuple(draw(st.sampled_from([0, 1, 15, 60, 100])) for _ in sizes),
        dtype=draw(st.sampled_from([torch.float32, torch.float32, torch.float16])),
        cache=True,
        keeps=keeps,
        seed=draw(st.integers(0, 2**20)),
    )


@settings(max_examples=14)
@given(prefills(), st.sampled_from([(16, 16), (32, 16), (16, 32)]))
def test_any_prefill_is_dense_attention(case: Case, blocks: tuple[int, int]) -> None:
    right(case, blocks=(*blocks, 4, 1))


@settings(max_examples=14)
@given(decodes(), st.integers(0, 4))
def test_any_decode_is_dense_attention(case: Case, splits: int) -> None:
    right(case, splits=splits)


def test_a_list_gives_each_tile_programs_by_its_share_of_the_work() -> None:
    """One long sequence among short ones and empty ones, a ring and a head without keys beside growing slots."""
    form = Softmax(1, head_width=16, value_width=16, group=3)
    keeps = ((0, 6 + 16), None, None)
    case = Case(form, (WINDOW, ALL, Union()), (1, 0, 7, 1), (900, 3, 60, 0), cache=True, keeps=keeps)
    right(case, splits=0)
    module = kernel("softmax_decode", form)
    _, part, rows, _, batch, *_ = build(case).arguments
    tiles, programs, wanted = 2, 40, 24  # 16 queries and heads of a tile, 32 keys of a block
    units = 4 * 3 * tiles
    work = torch.full((programs, 3), -7, dtype=torch.int32)
    settings = module.list_settings(16, 32, units)
    module.list_kernel[(-(-programs // settings["PLACES"]),)](
        work, rows, batch.offsets, batch.past, part.stored, part.base, part.pinned, part.ring, 3, tiles, units, wanted,
        programs, rows.stride(0), **settings,
    )  # fmt: skip
    shares = {0: 1, 2: 15, 4: 1, 12: 1, 13: 1, 14: 2, 15: 2, 16: 1, 17: 1, 18: 1, 20: 1, 22: 1}  # of 44 blocks, 29 in one tile
    served = [[unit, split, count] for unit, count in shares.items() for split in range(count)]
    assert work[: len(served)].tolist() == served
    assert (work[len(served) :, 0] == -1).all()


def test_one_token_and_an_empty_sequence() -> None:
    right(Case(Softmax(1, head_width=24, value_width=16), (SINK_WINDOW, ALL), (1, 0, 37, 0), (0, 0, 0, 0)))
    right(Case(Softmax(1, head_width=24, value_width=16), (SINK_WINDOW, ALL), (1, 0, 1), (0, 9, 33), cache=True))


def test_wide_and_odd_heads() -> None:
    right(Case(Softmax(1, head_width=129, value_width=129, group=7), (WINDOW,), (19,), (0,)))
    right(Case(Softmax(1, head_width=129, value_width=65, group=7), (WINDOW,), (5,), (40,), cache=True))


def test_large_logits() -> None:
    form = Softmax(1, head_width=64, value_width=64)
    right(Case(form, (ALL, WINDOW), (45,), (0,), magnitude=40.0), blocks=(32, 32, 4, 1))
    right(Case(form, (ALL, WINDOW), (12,), (70,), cache=True, magnitude=40.0), blocks=(32, 4, 4, 1))
    assert build(Case(form, (ALL,), (45,), (0,), magnitude=40.0)).q.abs().max() > 100


def test_rows_without_keys() -> None:
    """The cache's part of a chunked prefill: queries far behind a window see nothing of it; some heads see nothing at all."""
    heads = (WINDOW, Union(), Union(sink=2))
    for past in (30, 0):
        case = Case(Softmax(1, head_width=16, value_width=16), heads, (40,), (past,), cache=True, written=False)
        inputs, o, lse = run(case)
        check(inputs, o, lse)
        assert torch.isneginf(lse[20:, 0]).all()
        assert torch.isneginf(lse[:, 1]).all()
    right(replace(case, sizes=(3,), pasts=(20,), written=True))


def test_integers_are_exact() -> None:
    """Uniform weights over a power of two of keys and integer values: nothing is rounded."""
    form = Softmax(1, head_width=16, value_width=16)
    case = Case(form, (Union(nears=((8, 0, 0, 0),)),), (40,), (0,), integers=True, dtype=torch.float16, magnitude=0.0)
    inputs, o, lse = run(case)
    want, _ = reference(inputs)
    assert torch.equal(o[7::8].double(), (want[7::8] * 8).round() / 8)
    assert lse[7::8].unique().numel() == 1


@pytest.mark.filterwarnings("ignore:All-NaN slice encountered:RuntimeWarning")
def test_not_a_number_is_no_empty_row_and_stays_in_its_sequence() -> None:
    for decodes in (False, True):
        form = Softmax(1, head_width=16, value_width=16)
        case = Case(form, (WINDOW, ALL), (6, 5) if decodes else (20, 18), (40, 3) if decodes else (0, 0), cache=decodes)
        module = kernel("softmax_decode" if decodes else "softmax_prefill", form)
        inputs = build(case)
        want = module.attend(*inputs.arguments)
        q = inputs.q.clone()
        q[2, 1, 5] = math.nan
        o, lse = module.attend(*replace(inputs, q=q).arguments)
        assert torch.isnan(o[2, 1]).all()
        assert torch.isnan(lse[2, 1])
        others = torch.ones(lse.shape, dtype=torch.bool)
        others[2, 1] = False
        assert torch.equal(o[others], want[0][others])
        keys = [key.clone() for key in inputs.keys]
        keys[0][-1, 0, 3] = math.nan
        o, lse = module.attend(*build(case, given=(keys, inputs.values)).arguments)
        last = case.sizes[0] - 1
        assert torch.isnan(o[last, 0]).all()
        assert torch.isnan(lse[last, 0])
        assert torch.equal(o[case.sizes[0] :], want[0][case.sizes[0] :])
        assert torch.equal(o[:, 1], want[0][:, 1])


def test_a_cache_and_new_keys_join_by_their_sums() -> None:
    form = Softmax(1, 1, head_width=16, value_width=16, sink_logit=True)
    heads = (SINK_WINDOW, Union(nears=((1, 0, 2, 0),), strides=(16,)))
    keeps = ((3, 7 + 15), None)
    whole = Case(form, heads, (45,), (38,), cache=True)
    inputs = build(whole)
    old = Case(form, heads, (45,), (38,), cache=True, written=False, keeps=keeps)
    new = Case(form, heads, (45,), (38,))
    k, v = inputs.keys[0], inputs.values[0]
    module = kernel("softmax_prefill", form)
    bare = kernel("softmax_prefill", replace(form, sink_logit=False))
    cached, fresh = build_from(old, inputs.q, k[:38], v[:38]), build_from(new, inputs.q, k[38:], v[38:])
    first = module.attend(*cached.arguments, blocks=(16, 16, 4, 1))
    second = bare.attend(*fresh.arguments[:-1], None, blocks=(16, 16, 4, 1))
    check(inputs, *merge(*first, *second))


def build_from(case: Case, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Inputs:
    """The case with these numbers instead of drawn ones."""
    inputs = build(case, given=([k], [v]))
    return replace(inputs, q=q)


def test_keys_without_a_position_are_seen_by_all() -> None:
    form = Softmax(1, 1, head_width=16, value_width=16)
    heads = (WINDOW, Union(strides=(16,)))
    inputs = build(Case(form, heads, (20, 3), (0, 50)))
    generator = torch.Generator().manual_seed(0)
    draws = [[torch.randn(5, 2, 16, generator=generator) for _ in "kv"] for _ in range(8)]
    arguments = list(inputs.arguments)
    arguments[1] = persistent_keys(*draws[0], 2)
    o, _ = kernel("softmax_prefill", form).attend(*arguments, blocks=(16, 16, 4, 1))
    own, want = ([dense(inputs.q, *draw, dtype) for draw in draws] for dtype in (torch.float32, torch.float64))
    assert error(o, want[0]) <= 1.5 * max(error(*pair) for pair in zip(own, want, strict=True))


def dense(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Torch's attention without a mask, tokens first."""
    heads_first = (x.transpose(0, 1).to(dtype) for x in (q, k, v))
    return torch.nn.functional.scaled_dot_product_attention(*heads_first).transpose(0, 1)


def test_no_block_is_walked_twice_and_few_in_vain() -> None:
    """The steps of a program are distinct key blocks; all that hold a seen key are among them, and not many more."""
    form = Softmax(1, 1, 1, head_width=16, value_width=16)
    probe = load(emit("softmax_prefill", form) + PROBE, FOLDER, "probe").probe
    heads = {
        "full": (ALL, 0),
        "sink and window": (Union(sink=20, nears=((1, 0, 30, 0),)), 2),
        "stride": (Union(nears=((1, 0, 5, 0),), strides=(160,)), 4),
        "dense stride": (Union(strides=(24,)), 2),
        "powers": (Union(sink=5, powers=(8,)), 12),
        "large powers": (Union(powers=(200,)), 8),
        "two patterns": (Union(strides=(300,), powers=(64,)), 64),
    }
    for name, (union, spare) in heads.items():
        row = torch.tensor(union.row(form), dtype=torch.int32)
        for first, last, base, slots in ((1000, 1015, 0, 1016), (1000, 1015, 0, 700), (40, 55, 0, 56), (900, 900, 300, 601)):
            out = torch.full((80,), -1, dtype=torch.int32)
            probe[(1,)](row, out, first, last, base, slots, BLOCK_K=16)
            steps = int(out[0])
            walked = [block for block in out[1 : 1 + steps].tolist() if block < -(-slots // 16)]
            i, j = torch.arange(first, last + 1), base + torch.arange(slots)
            needed = set((union.sees(i, j, True).any(0).nonzero()[:, 0] // 16).tolist())
            assert len(walked) == len(set(walked)), f"{name}: a block twice in {walked}"
            assert needed <= set(walked), f"{name}: {sorted(needed - set(walked))} not walked"
            assert steps <= len(needed) + spare, f"{name}: {steps} steps for {len(needed)} blocks"


PROBE = """

@triton.jit
def probe(row, out, first, last, base, slots, BLOCK_K: tl.constexpr):
    visits = visit(read_row(row), first, last, base, slots, False, BLOCK_K)
    tl.store(out, visits[-1])
    for step in tl.range(0, visits[-1]):
        tl.store(out + 1 + step, block_of(visits, step, base, slots, BLOCK_K))
"""
