"""Participants that are not attnc: what they refuse, and how they are called."""

from __future__ import annotations

import sys
import types
import warnings
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from benched import LENGTH, TEXT, made, rows

import attnc
from attnc.bench import exact, flex, libraries, run, sdpa, seeing
from attnc.bench import work as works
from attnc.bench.launches import launches, open_folder
from attnc.bench.peers import PACKED, inputs


def test_each_says_why_it_cannot(known, capped):
    def why(name, launch, phase="forward", **rest):
        return libraries.PEERS[name].refuse(made(launch, phase, **rest))

    window, full = known["window(20)"], known["full"]
    assert why("sdpa", full) is None
    assert why("sdpa", known["window(12)"]) == "has no logit without a value"
    assert why("sdpa", capped) == "has no soft cap"
    assert why("cudnn", full) == "runs on GPUs"
    assert why("flex", window) == "is compiled for GPUs"
    assert "not installed" in why("fa4", window)


def test_a_mask_that_takes_too_much_is_refused_and_not_made(known, monkeypatch):
    monkeypatch.setattr(sdpa, "MASK_BYTES", LENGTH * LENGTH)
    assert libraries.PEERS["sdpa"].refuse(made(known["window(20)"], "forward")) is None
    refused = libraries.PEERS["sdpa"].refuse(made(known["full, window(8)"], "forward"))
    assert refused.startswith("its dense mask would take ")
    assert libraries.PEERS["sdpa"].refuse(made(known["full, window(8)"], "decode")) is None


def test_windows_are_told_from_other_key_sets(known):
    found = {words: seeing.window(made(launch, "forward")) for words, launch in known.items()}
    assert found == {
        "full": (None, None),
        "sink(4) | window(16)": None,
        "full, window(8)": None,
        "window(16) | power_of_two(8)": None,
        "window(12)": (11, 0),
        "full both ways": (None, None),
        "window(20)": (19, 0),
    }


def test_flex_masks_and_dense_masks_are_those_of_the_reference(known):
    for launch in known.values():
        work = made(launch, "forward")
        mask, dense_ = seeing.mask_of(work), seeing.dense_mask(work)
        i = torch.arange(LENGTH)
        for head in range(launch.heads):
            group = next(one for one in work.groups if one.first <= head // launch.repeat <= one.last)
            want = work.visible(group, i, i)
            got = mask(torch.tensor(0), torch.tensor(head), i[:, None], i[None, :])
            assert torch.equal(got, want)
            assert torch.equal(dense_ if dense_.dim() == 2 else dense_[head], want)


@pytest.mark.parametrize("phase", ["forward", "decode"])  # torch has no backward pass of it on a CPU
def test_flex_is_right_where_it_is_not_compiled(known, capped, phase):
    peer = flex.Flex(compiled=False)
    for launch in (*known.values(), capped):
        if phase == "decode" and not launch.mix.form.causal:
            continue
        work = made(launch, phase)
        assert peer.refuse(work) is None
        right = exact.answer(work)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it says that it is slow when it is not compiled
            prepared = peer.prepare(work)
            errors = exact.errors(work, right, run.outcome(work, prepared, right))
        assert all(errors[part] <= right.allowed[part] for part in errors), (launch.words, errors)
        assert (prepared.setup is None) == (phase == "decode" or not work.form.causal)


def test_heads_that_see_different_keys_may_be_split_between_libraries(known):
    peer = flex.Split(compiled=False)
    assert peer.refuse(made(known["window(20)"], "forward")) == "is for layers whose heads see different keys"
    assert peer.refuse(made(known["full, window(8)"], "decode")) == "is what all others do while decoding"
    work = made(known["full, window(8)"], "forward")
    assert flex.Split().refuse(work) == "is compiled for GPUs"
    right = exact.answer(work)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        errors = exact.errors(work, right, run.outcome(work, peer.prepare(work), right))
    assert errors["o"] <= right.allowed["o"]


def flash_attn_func(q, k, v, softmax_scale, causal=False, window_size=(None, None)):
    """flash_attn.cute's signature; q [B, N, H, D]."""
    i, j = torch.arange(q.shape[1])[:, None] + k.shape[1] - q.shape[1], torch.arange(k.shape[1])[None]
    back, ahead = window_size
    seen = (j <= i) | torch.tensor(not causal)
    seen = seen if back is None else seen & (i - j <= back)
    seen = seen if ahead is None else seen & (j - i <= ahead)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    o = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=softmax_scale, enable_gqa=True)
    return o.transpose(1, 2), None


@pytest.mark.parametrize("phase", works.PHASES)
def test_flash_attention_4_is_called_as_it_wants(known, monkeypatch, phase):
    monkeypatch.setitem(sys.modules, "flash_attn.cute", types.SimpleNamespace(flash_attn_func=flash_attn_func))
    for words in ("full", "window(20)", *(["full both ways"] if phase != "decode" else [])):
        work = made(known[words], phase)
        right = exact.answer(work)
        prepared = libraries.FlashAttention4().prepare(work)
        errors = exact.errors(work, right, run.outcome(work, prepared, right))
        assert all(errors[part] <= right.allowed[part] for part in errors), (words, errors)


def test_what_is_given_in_another_layout_is_the_same_numbers(known):
    work = made(known["window(20)"], "forward")
    from attnc.bench.peers import HEADS_FIRST, TOKENS_FIRST

    for layout in (PACKED, HEADS_FIRST, TOKENS_FIRST):
        assert torch.equal(layout.pack(inputs(work, layout)["k"]), work.k)
    assert inputs(work, HEADS_FIRST)["q"].shape == (2, 4, LENGTH, 16)
    assert inputs(work, TOKENS_FIRST)["q"].shape == (2, LENGTH, 4, 16)


def test_what_is_planned_takes_part_where_it_is_another(known):
    launch = known["window(20)"]
    other = replace(launch, planned={"cpu": {"prefill": "reference", "train": "torch", "decode": "torch"}, "cuda": {}})
    peers = [libraries.PEERS["torch"], libraries.PEERS["planned"]]
    found = rows({"other": other}, peers=peers, launch="other")
    assert found.planned == "reference"
    assert [result.status for result in found.results] == ["timed", "timed"]


def test_a_launch_whose_heads_are_planned_apart_runs_so(known):
    apart = (("torch", 0, 0), ("reference", 1, 1))
    launch = replace(
        known["full, window(8)"], planned={"cpu": {"prefill": apart, "train": "torch", "decode": apart}, "cuda": {}}
    )
    for phase in ("forward", "decode"):
        found = rows({"apart": launch}, peers=[libraries.PEERS["planned"]], launch="apart", phase=phase)
        assert found.planned == "torch on kv heads 0..0 and reference on 1..1"
        assert [result.status for result in found.results] == ["timed"]


def test_heads_whose_keys_are_kept_apart_are_compared_and_decoded_apart(tmp_path):
    """What decoding keeps is the most that any phase or length sees, so heads that see alike may be kept apart."""
    text = TEXT.split("layers {", maxsplit=1)[0].replace("layers = 8", "layers = 1")
    text += "layers { all: when { length < 4096: window(8), else: heads { 0: full, else: window(8) } } }\n"
    attnc.build(attnc.check(text), tmp_path / "built")
    (launch,), _ = launches(open_folder(tmp_path / "built"))
    work = made(launch, "decode")
    assert [(first, last) for first, last, _ in work.spans] == [(0, 0), (1, 1)]
    for name in ("torch", "sdpa"):
        right = exact.answer(work)
        errors = exact.errors(work, right, run.outcome(work, libraries.PEERS[name].prepare(work), right))
        assert errors["o"] <= right.allowed["o"]
