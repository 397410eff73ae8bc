"""The backward kernels in Triton's interpreter against float64 autograd of dense attention.

test_kernels_interpreter.py runs this file.
"""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from kernel_cases import check_gradients

from attnc.codegen.triton.compile import load
from attnc.codegen.triton.emit import emit
from attnc.codegen.triton.versions import INTERPRETS
from attnc.codegen.verify.cases import FULL, Case, Union, build
from attnc.codegen.verify.gradients import gradients, outer_gradients, rms
from attnc.compiler.families import FAMILIES, Softmax
from attnc.runtime.intervals import Form
from attnc.runtime.keys import persistent_keys
from attnc.runtime.launch import Kernels
from attnc.runtime.operators import Functions, name_of
from attnc.runtime.softmax import merge

if not INTERPRETS:
    pytest.fail("TRITON_INTERPRET=1 is not set", pytrace=False)

FOLDER = Path(tempfile.mkdtemp(prefix="attnc-"))
WINDOW = Union(nears=((1, 0, 6, 0),))
ALL = Union(nears=(FULL,))
Tensors = list[torch.Tensor]


@functools.cache
def kernels(form: Softmax, blocks: tuple[int, int] = (16, 16), share: int = 0) -> Kernels:
    """The launch's kernels; blocks of queries and keys as given, and from how many queries on first keys are shared out."""
    prefill, decode, queries, keys = (
        load(emit(name, form), FOLDER, f"emitted_{name}_{abs(hash(form))}") for name in FAMILIES["softmax"]
    )
    small = {"blocks": (*blocks, 4, 1)}
    keys.SHARE = share or keys.SHARE
    functions = Functions(
        functools.partial(prefill.attend, **small),
        decode.attend,
        functools.partial(queries.attend_backward_queries, **small),
        functools.partial(keys.attend_backward_keys, **small),
    )
    name = "blocks_{}_{}_{}_".format(*blocks, share) + name_of([str(prefill.__file__), str(queries.__file__)])
    return Kernels(name, functions, Form(*prefill.FORM), form.head_width, form.value_width, form.group)


def right(case: Case, **options: object) -> None:
    inputs = build(case)
    outer = outer_gradients(inputs)
    check_gradients(inputs, gradients(kernels(case.kernel, **options), inputs, *outer), *outer)


@st.composite
def trainings(draw: st.DrawFn) -> Case:
    """Sequences whose keys are their own, as in training, and heads of several sorts in one launch."""
    form = Softmax(
        nears=draw(st.integers(0, 2)),
        strides=draw(st.integers(0, 2)),
        powers=draw(st.integers(0, 1)),
        causal=draw(st.integers(0, 2)) > 0,
        head_width=draw(st.sampled_from([16, 24])),
        value_width=draw(st.sampled_from([16, 24])),
        group=draw(st.sampled_from([1, 1, 2])),
        cap=draw(st.integers(0, 3)) == 0,
        sink_logit=draw(st.integers(0, 3)) == 0,
    )
    heads = [
        Union(
            draw(st.sampled_from([0, 0, 1, 4, 19])),
            tuple(
                (align, draw(st.integers(0, align - 1)), draw(st.sampled_from([0, 1, 5, 17, 2**30])), draw(st.integers(0, 9)))
                for align in draw(st.lists(st.sampled_from([1, 1, 4, 7, 32]), max_size=form.nears))
            ),
            tuple(draw(st.lists(st.sampled_from([2, 5, 16, 20, 33]), max_size=form.strides))),
            tuple(draw(st.lists(st.sampled_from([2, 3, 8, 20]), max_size=form.powers))),
        )
        for _ in range(draw(st.integers(0, 2)))
    ]
    heads.append(ALL if form.nears else Union(sink=19))  # errors are compared over many numbers, of which some are not 0
    sizes = [draw(st.integers(30, 64)), *draw(st.lists(st.integers(0, 20), max_size=2))]
    pasts = [draw(st.sampled_from([0, 0, 3])) for _ in sizes]
    return Case(form, tuple(heads), tuple(draw(st.permutations(sizes))), tuple(pasts), seed=draw(st.integers(0, 2**20)))


@settings(max_examples=6)
@given(trainings(), st.sampled_from([(16, 16), (32, 16), (16, 32)]))
def test_any_gradient_is_that_of_dense_attention(case: Case, blocks: tuple[int, int]) -> None:
    right(case, blocks=blocks)


def test_sinks_strides_and_powers_far_away() -> None:
    """Lengths at which patterns are walked sparsely, forwards and backwards."""
    form = Softmax(1, 1, 1, head_width=16, value_width=16)
    heads = (Union(strides=(40,)), Union(powers=(8,)), Union(sink=2, nears=((1, 0, 9, 0),)), Union(strides=(40,), powers=(64,)))
    right(Case(form, heads, (150, 7), (0, 0)))


def test_first_keys_that_all_queries_see_are_shared_out_among_programs() -> None:
    form = Softmax(1, head_width=16, value_width=24, group=2)
    heads = (Union(sink=3, nears=((1, 0, 6, 0),)), WINDOW, Union(sink=19, nears=(FULL,)), Union(sink=40))
    inputs = build(Case(form, heads, (61, 0, 20, 1), (0, 0, 3, 0)))
    outer = outer_gradients(inputs)
    whole, parts = (gradients(kernels(form, share=share), inputs, *outer) for share in (0, 32))
    check_gradients(inputs, parts, *outer)  # 4 programs of 2 turns each
    assert torch.equal(whole["q"], parts["q"])
    assert not torch.equal(whole["k"], parts["k"]), "the sums have another order"


def test_one_token_empty_sequences_and_rows_that_see_nothing() -> None:
    form = Softmax(1, head_width=24, value_width=16, sink_logit=True)
    right(Case(form, (WINDOW, ALL), (1, 0, 37, 0), (0, 0, 0, 0)))
    nothing = Case(Softmax(0, head_width=16, value_width=16), (Union(sink=0), Union(sink=5)), (3, 20), (0, 0))
    inputs = build(nothing)
    found = gradients(kernels(nothing.kernel), inputs, *outer_gradients(inputs))
    assert all(torch.isfinite(found["q"]).flatten())
    right(nothing)


def test_large_logits() -> None:
    right(Case(Softmax(1, head_width=16, value_width=16, group=2), (WINDOW, ALL), (40, 3), (0, 0), magnitude=60.0))


def test_the_same_bits_every_time() -> None:
    inputs = build(Case(Softmax(1, head_width=16, value_width=16, group=3), (WINDOW, ALL), (50, 21), (0, 0)))
    outer = outer_gradients(inputs)
    once, twice = (gradients(kernels(inputs.case.kernel), inputs, *outer) for _ in range(2))
    assert all(torch.equal(once[name], twice[name]) for name in once)


def test_keys_shared_by_all_sequences_and_merged_branches() -> None:
    """Learned keys beside the text's: gradients pass the merge by log-sum-exp, and sum over the sequences."""
    form = Softmax(1, head_width=16, value_width=16)
    inputs = build(Case(form, (WINDOW, ALL), (21, 9), (0, 0)))
    generator = torch.Generator().manual_seed(5)
    learned = [torch.randn(3, 2, 16, generator=generator) for _ in range(2)]
    o_grad, _ = outer_gradients(inputs)

    def dense(q: torch.Tensor, k: Tensors, v: Tensors, seen: Tensors) -> tuple[torch.Tensor, torch.Tensor]:
        """o and log-sum-exp of one sequence; seen[head] [queries, keys]."""
        scores = [(q[:, g] @ k[g].T * 0.25).masked_fill(~seen[g], float("-inf")) for g in range(2)]
        outputs = [score.softmax(1) @ v[g] for g, score in enumerate(scores)]
        return torch.stack(outputs, 1), torch.stack([score.logsumexp(1) for score in scores], 1)

    def in_torch(q: torch.Tensor, pk: torch.Tensor, pv: torch.Tensor) -> torch.Tensor:
        """What the kernels compute, in PyTorch's operations: two softmaxes, merged; in float64 the one that this must equal."""
        outputs = []
        for s, place in enumerate((slice(0, 21), slice(21, 30))):
            i = torch.arange(place.stop - place.start)
            keys, values = ([x[s][:, g].to(q.dtype) for g in range(2)] for x in (inputs.keys, inputs.values))
            seen = [union.sees(i, i, causal=True) for union in (WINDOW, ALL)]
            every = [torch.ones(len(i), 3, dtype=torch.bool)] * 2
            if q.dtype == torch.float64:  # one softmax over all
                keys, values, seen = (
                    [torch.cat(pair, dim) for pair in zip(one, other, strict=True)]
                    for one, other, dim in ((pk.unbind(1), keys, 0), (pv.unbind(1), values, 0), (every, seen, 1))
                )
                outputs.append(dense(q[place], keys, values, seen)[0])
            else:
                learnt = dense(q[place], [*pk.unbind(1)], [*pv.unbind(1)], every)
                outputs.append(merge(*dense(q[place], keys, values, seen), *learnt)[0])
        return torch.cat(outputs)

    def in_kernels(q: torch.Tensor, pk: torch.Tensor, pv: torch.Tensor) -> torch.Tensor:
        launch, rest = kernels(form), (inputs.rows, inputs.form, inputs.batch, inputs.scale)
        return merge(*launch(q, inputs.part, *rest), *launch(q, persistent_keys(pk, pv, 2), *rest))[0]

    found = []
    for forward, dtype in ((in_torch, torch.float64), (in_torch, torch.float32), (in_kernels, torch.float32)):
        leaves = [x.detach().to(dtype, copy=True).requires_grad_() for x in (inputs.q, *learned)]
        found.append(torch.autograd.grad(forward(*leaves), leaves, o_grad.to(dtype)))
    for exact, own, got in zip(*found, strict=True):
        assert rms(got, exact) <= 1.5 * rms(own, exact), (rms(got, exact), rms(own, exact))
