"""Softplus launches in Triton's interpreter against the formula on whole rows, forwards and backwards.

test_kernels_interpreter.py runs this file.
"""

from __future__ import annotations

import functools
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from softplus_cases import check_softplus, launch

from attnc.codegen.build import Options
from attnc.codegen.build import build as build_folder
from attnc.codegen.triton.versions import INTERPRETS
from attnc.codegen.tune import softmax_bench
from attnc.codegen.tune.messages import TuneJob
from attnc.codegen.tune.table import Try
from attnc.codegen.verify import trial
from attnc.codegen.verify.cases import FULL, Case, Union, build
from attnc.codegen.verify.dense import counts
from attnc.codegen.verify.gradients import rms
from attnc.codegen.verify.softplus import attend, both, dense, leaves_of, outer
from attnc.compiler import check_text
from attnc.compiler.families import Softmax
from attnc.runtime.keys import persistent_keys
from attnc.runtime.softplus import SoftplusKernels, count_near

if not INTERPRETS:
    pytest.fail("TRITON_INTERPRET=1 is not set", pytrace=False)

FOLDER = Path(tempfile.mkdtemp(prefix="attnc-"))
WINDOW = Union(nears=((1, 0, 6, 0),))
SINK_WINDOW = Union(sink=3, nears=((1, 0, 6, 0),))
ALL = Union(nears=(FULL,))
BLOCKS = {
    "softmax_prefill": (16, 16, 4, 1),
    "softmax_decode": (16, 4, 4, 1),
    "softmax_backward_queries": (16, 16, 4, 1),
    "softmax_backward_keys": (16, 16, 4, 1),
}


@functools.cache
def kernels(form: Softmax) -> SoftplusKernels:
    return launch(form, FOLDER, BLOCKS)


def right(case: Case, gradients: bool = True) -> None:
    check_softplus(kernels(case.kernel), case, gradients)


def test_gradients_of_a_power_of_fifteen() -> None:
    """Heads of two widths on shared keys, short rows from which nothing is subtracted, and a sequence without tokens."""
    form = Softmax(1, head_width=16, value_width=24, group=2, exponent=15.0)
    right(Case(form, (SINK_WINDOW, ALL), (26, 0, 5), (0, 0, 0)))


def test_gradients_under_a_cap_to_a_power_that_is_not_whole() -> None:
    right(Case(Softmax(1, head_width=24, value_width=16, cap=True, exponent=2.5), (WINDOW, ALL), (26, 3), (0, 0)))


def test_gradients_to_the_first_power_both_ways() -> None:
    heads = (Union(nears=((4, 0, 5, 3),)), ALL)
    right(Case(Softmax(1, causal=False, head_width=16, value_width=16, exponent=1.0), heads, (21, 4), (0, 0)))


def test_gradients_of_strides_and_powers_whose_keys_are_counted_by_a_launch() -> None:
    form = Softmax(1, 1, 1, head_width=16, value_width=16, exponent=3.0)
    right(Case(form, (Union(strides=(5,)), Union(sink=2, powers=(3,))), (40,), (0,)))


def test_a_few_queries_on_a_cache() -> None:
    """Rings and growing slots in one launch, a few new tokens a sequence, large and small pasts."""
    form = Softmax(1, head_width=16, value_width=16, group=3, exponent=15.0)
    keeps = ((0, 6 + 16), (3, 6 + 16), None)
    right(Case(form, (WINDOW, SINK_WINDOW, ALL), (5, 1), (70, 2), cache=True, keeps=keeps), gradients=False)
    right(Case(replace(form, cap=True), (SINK_WINDOW, ALL), (2, 1, 1), (33, 0, 1), cache=True), gradients=False)


def test_strides_on_a_cache() -> None:
    form = Softmax(1, 1, head_width=16, value_width=16, exponent=4.0)
    right(Case(form, (Union(strides=(4,)), WINDOW), (3, 1), (50, 9), cache=True), gradients=False)


def test_large_logits() -> None:
    right(Case(Softmax(1, head_width=16, value_width=16, exponent=3.0), (WINDOW, ALL), (30,), (0,), magnitude=30.0))


def test_a_cache_and_new_keys_are_one_row() -> None:
    """A chunk that reads a ring and itself: neither part alone knows N or the sum of masses."""
    form = Softmax(1, head_width=16, value_width=16, exponent=15.0)
    heads, keeps = (SINK_WINDOW, ALL), ((3, 7 + 15), None)
    whole = build(Case(form, heads, (25,), (38,), cache=True))
    k, v = whole.keys[0], whole.values[0]
    old = build(Case(form, heads, (25,), (38,), cache=True, written=False, keeps=keeps), given=([k[:38]], [v[:38]]))
    new = build(Case(form, heads, (25,), (38,)), given=([k[38:]], [v[38:]]))
    o = attend(kernels(form), whole, whole.q, (old.part, new.part))
    want, own = (both(whole, dtype, None)["o"] for dtype in (torch.float64, torch.float32))
    assert rms(o, want) <= 1.5 * rms(own, want)
    alone = attend(kernels(form), whole, whole.q, (new.part,))
    assert rms(alone, want) > 100 * rms(own, want), "the cache counts"


def test_learned_keys_and_the_texts_are_one_row() -> None:
    """Gradients pass the merge, the sum of masses over both parts, and the sum over the sequences that share learned keys."""
    form = Softmax(1, head_width=16, value_width=16, exponent=3.0)
    inputs = build(Case(form, (WINDOW, ALL), (17, 6), (0, 0)))
    generator = torch.Generator().manual_seed(5)
    learned = [torch.randn(3, 2, 16, generator=generator) for _ in range(2)]
    o_grad = outer(inputs)
    found = []
    for dtype in (torch.float64, torch.float32, None):
        q, pk, pv = (x.detach().to(dtype or torch.float32, copy=True).requires_grad_() for x in (inputs.q, *learned))
        if dtype is None:
            o = attend(kernels(form), inputs, q, (inputs.part, persistent_keys(pk, pv, 2)))
        else:
            _, keys, values = leaves_of(inputs, dtype)
            o = dense(inputs, q, keys, values, dtype, before=(pk, pv))
        found.append((o.detach(), *torch.autograd.grad(o, (q, pk, pv), o_grad.to(o.dtype))))
    for name, exact, own, got in zip(("o", "q", "k", "v"), *found, strict=True):
        assert rms(got, exact) <= 1.5 * rms(own, exact), (name, rms(got, exact), rms(own, exact))


def test_counting_is_what_masks_show() -> None:
    """Of parts that begin late, turn, or have been read already."""
    form = Softmax(2, head_width=16, value_width=16)
    heads = (
        WINDOW,
        SINK_WINDOW,
        ALL,
        Union(sink=9),
        Union(sink=4, nears=((8, 3, 0, 0), (1, 0, 2, 0))),
        Union(sink=30, nears=((1, 0, 9, 0),)),
    )
    for causal in (True, False):
        for past, cache, keeps in ((0, False, None), (7, False, None), (40, True, None), (40, True, ((2, 30),) * len(heads))):
            case = Case(replace(form, causal=causal), heads, (20, 3), (past, 3), cache=cache, keeps=keeps)
            inputs = build(case)
            got = count_near(inputs.part, inputs.rows, inputs.form, inputs.batch)
            assert torch.equal(got, counts(inputs)), (causal, past, cache, keeps)


SPEC = """model small { vocab = 16, dim = 16, layers = 1, ffn = swiglu(16), norm = rms(1e-6), heads = 1, head_dim = 16 }
layers { all: window(7) { score = softplus(exponent = 2) } }
"""


def test_each_half_is_tuned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Candidates are tried within their launch; by themselves, as they are timed, they run and leave no NaN."""
    build_folder(check_text(SPEC, "small.attn"), tmp_path / "small", Options())
    monkeypatch.setattr(softmax_bench, "TOKENS", dict.fromkeys(softmax_bench.TOKENS, 5))
    for number, skeleton in enumerate(("softmax_decode", "softmax_backward_keys")):
        decodes = skeleton == "softmax_decode"
        well, odd = ((16, 4, 4, 1), (24, 4, 4, 1)) if decodes else ((16, 16, 4, 1), (24, 16, 4, 1))
        job = TuneJob(
            folder=str(tmp_path / "small"), file=f"{skeleton}_{number}", device="cpu", dtype="float32",
            verified_in=("float32",), rounds=0, tries=(Try(blocks=well),),
        )  # fmt: skip
        bench = softmax_bench.SoftmaxBench(job)
        sizes, pasts = ((1,), (5,)) if decodes else ((17,), (0,))
        case = Case(bench.subject.kernel, bench.subject.heads[0], sizes, pasts, cache=decodes)
        bench.trials = [trial.prepare(skeleton, case)]
        assert bench.wrong(well) == "", skeleton
        assert "power of 2" in bench.wrong(odd), skeleton
        found = bench.launch()(well)
        assert not any(torch.isnan(one).any() for one in found), skeleton
        assert (bench.module.EXPONENT, bench.module.__name__.endswith(job.file)) == (2.0 * number, True)
