"""Gluon kernels of the backward pass without a GPU: their own text run by Python, and compiled for sm_90."""

from __future__ import annotations

import re

import pytest
import torch
from gluon_on_cpu import module
from kernel_cases import check_gradients

from attnc.codegen.gluon.backward import emit
from attnc.codegen.gluon.files import names, text
from attnc.codegen.verify.cases import FULL, Case, Inputs, Union, build
from attnc.codegen.verify.gradients import Gradients, outer_gradients
from attnc.codegen.verify.judge import judge_gradients
from attnc.codegen.verify.trial import gradients
from attnc.compiler.families import BACKWARD, FAMILIES, Softmax

PLAIN = Softmax(1, head_width=64, value_width=64, group=2)
HEADS = (Union(nears=(FULL,)), Union(sink=70, nears=((1, 0, 127, 0),)), Union(nears=((64, 0, 64, 0),)), Union())
FAR = Softmax(1, 1, 1, head_width=64, value_width=64)
FAR_HEADS = (Union(strides=(66,)), Union(powers=(64,)), Union(sink=3, strides=(70,), powers=(64,)))
BOTH = Softmax(1, causal=False, head_width=96, value_width=64, cap=True)


def found(inputs: Inputs, skeleton: str, text: str, seed: int = 0) -> Gradients:
    """The gradients that a kernel's text finds, with the others exact; memory that nobody wrote is NaN."""
    return gradients(module(text, seed), skeleton, inputs, *outer_gradients(inputs), {})


def wrong(inputs: Inputs, flat: Gradients) -> bool:
    return any(verdict.wrong for verdict in judge_gradients(inputs, flat, *outer_gradients(inputs)).values())


@pytest.mark.parametrize(
    "case",
    [
        Case(PLAIN, HEADS, (1, 0, 129), (0, 0, 0), dtype=torch.bfloat16),
        Case(PLAIN, HEADS, (30, 17), (110, 3), dtype=torch.bfloat16, cache=True),
        Case(FAR, FAR_HEADS, (230,), (0,), dtype=torch.float16),
        Case(BOTH, HEADS[:3], (70, 130), (5, 0), dtype=torch.bfloat16),
    ],
    ids=["packed", "cache", "far", "both_ways"],
)
def test_gradients_are_right_in_any_order_of_the_parties(case: Case) -> None:
    """Sequences of no, few and many tokens, heads that see everything, little and nothing; NaN lies around all keys."""
    inputs = build(case)
    flat: Gradients = {}
    for skeleton in BACKWARD:
        flat |= found(inputs, skeleton, emit(skeleton, case.kernel))
    check_gradients(inputs, flat, *outer_gradients(inputs))


def test_the_first_keys_are_shared_out_and_joined() -> None:
    inputs = build(Case(PLAIN, HEADS[1:2], (200,), (0,), dtype=torch.bfloat16))
    text = emit(BACKWARD[1], PLAIN).replace("PIECE = 16384", "PIECE = 100")
    assert not wrong(inputs, found(inputs, BACKWARD[1], text))
    assert wrong(inputs, found(inputs, BACKWARD[1], text.replace("if pieces > 1:", "if False:")))


@pytest.mark.parametrize(
    ("skeleton", "line"),
    [
        (BACKWARD[0], "mbarrier.arrive(k_empty.index(k_slot), count=1)"),
        (BACKWARD[0], "mbarrier.wait(q_full.index(place), q_phase)"),
        (BACKWARD[1], "mbarrier.wait(empty.index(slot), phase)"),
        (BACKWARD[1], "mbarrier.wait(grad_full.index(slot), phase)"),
    ],
)
def test_a_barrier_that_is_missing_is_found(skeleton: str, line: str) -> None:
    whole = emit(skeleton, PLAIN)
    assert whole.count(line) == 1
    inputs = build(Case(PLAIN, HEADS[:1], (400,), (0,), dtype=torch.bfloat16))

    def fails(seed: int) -> bool:
        try:
            return wrong(inputs, found(inputs, skeleton, whole.replace(line, "pass"), seed))
        except AssertionError:  # a deadlock, an arrival too many, a copy that nobody waited for
            return True

    assert any(map(fails, range(3)))


@pytest.mark.triton
@pytest.mark.parametrize("skeleton", BACKWARD)
def test_it_compiles_for_sm_90(skeleton: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Products that are started together run together: the assembler says where it puts them one behind the other."""
    from attnc.codegen.triton import compile as ahead
    from attnc.codegen.triton.compile import SHARED_LIMIT, compile_ahead
    from attnc.codegen.triton.versions import VERSION

    said: list[str] = []
    read = ahead._nvidia
    monkeypatch.setattr(ahead, "_nvidia", lambda log: said.append(log) or read(log))
    for used in compile_ahead(emit(skeleton, Softmax(1, head_width=128, value_width=128, group=4)), "sm_90", "bf16"):
        assert used.shared <= SHARED_LIMIT["sm_90"]
        assert used.spills <= (128 if VERSION < (3, 8) else 384)
    assert said
    assert not any("serialized" in log for log in said)


def test_a_launch_takes_what_there_is_in_gluon() -> None:
    narrow = Softmax(1, head_width=128, value_width=96)
    wide = Softmax(1, head_width=192, value_width=128)
    assert names(narrow) == ("gluon_prefill", "softmax_decode", "gluon_backward_queries", "gluon_backward_keys")
    assert names(wide) == ("gluon_prefill", "softmax_decode", *BACKWARD)
    for name, skeleton in zip(names(narrow), FAMILIES["softmax"], strict=True):
        started = re.search(r"^def (attend(?:_backward\w+)?)\(", text(name, narrow), re.MULTILINE)
        assert started is not None
        assert started[1] == (skeleton.replace("softmax", "attend") if skeleton in BACKWARD else "attend")
