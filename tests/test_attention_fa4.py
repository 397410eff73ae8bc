"""The provider `fa4`: what it asks of flash-attn-4, with functions in its place that do what its documentation says.

q [S, N, H, D] or packed [T, H, D]; a window and causality count from the last key, which stands where the last query does.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_runtime_attention import cache_for, dense, packed, random_qkv, schedules, with_mask

from attnc.runtime.attention_fa4 import Functions, complain, fa4_attention, fa4_attention_lse
from attnc.runtime.batch import Batch
from attnc.runtime.intervals import FULL, Form, HeadGroup, Near
from attnc.runtime.keys import persistent_keys
from attnc.runtime.sizes import Share
from attnc.runtime.softmax import attend

OPTIONS = {"softmax_scale", "causal", "window_size", "learnable_sink", "softcap", "deterministic", "return_lse"}


def flash_attn_func(q, k, v, **options):
    assert set(options) == OPTIONS
    assert options["return_lse"]
    repeat = q.shape[2] // k.shape[2]
    k, v = (x.repeat_interleave(repeat, 2) for x in (k, v))
    logits = torch.einsum("bihd,bjhd->bhij", q, k) * options["softmax_scale"]
    if options["softcap"]:
        logits = options["softcap"] * torch.tanh(logits / options["softcap"])
    i = torch.arange(q.shape[1])[:, None] + k.shape[1] - q.shape[1]
    j = torch.arange(k.shape[1])
    left, right = options["window_size"]
    right = 0 if options["causal"] else right
    seen = torch.ones(q.shape[1], k.shape[1], dtype=torch.bool)
    seen = seen if left is None else seen & (j >= i - left)
    seen = seen if right is None else seen & (j <= i + right)
    logits = logits.masked_fill(~seen, float("-inf"))
    sink = options["learnable_sink"]
    if sink is not None:
        logits = torch.cat((logits, sink.view(1, -1, 1, 1).expand(*logits.shape[:3], 1)), -1)
    return torch.einsum("bhij,bjhe->bihe", logits.softmax(-1)[..., : k.shape[1]], v), logits.logsumexp(-1)


def flash_attn_varlen_func(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, **options):
    assert cu_seqlens_q.dtype == cu_seqlens_k.dtype == torch.int32
    sizes = [ends.diff().tolist() for ends in (cu_seqlens_q, cu_seqlens_k, cu_seqlens_k)]
    assert [max(sizes[0]), max(sizes[1])] == [max_seqlen_q, max_seqlen_k]
    pieces = zip(*(torch.split(x, n) for x, n in zip((q, k, v), sizes, strict=True)), strict=True)
    o, lse = zip(*(flash_attn_func(*(x[None] for x in piece), **options) for piece in pieces), strict=True)
    return torch.cat([x[0] for x in o]), torch.cat([x[0] for x in lse], dim=1)


FAKE = Functions(flash_attn_func, flash_attn_varlen_func)


def fa4(*arguments, **options):
    return fa4_attention(*arguments, **options, using=FAKE)


@st.composite
def windows(draw, causal):
    """Groups of one or two KV heads with a window each, or with all keys."""
    some = st.builds(Near, back=st.integers(0, 12), ahead=st.integers(0, 5))
    groups, first = [], 0
    for near in draw(st.lists(st.one_of(some, st.just(FULL)), min_size=1, max_size=3)):
        last = first + draw(st.integers(0, 1))
        groups.append(with_mask(HeadGroup(first, last, near=(near,)), causal))
        first = last + 1
    return tuple(groups), first


@given(st.data(), st.booleans(), st.lists(st.integers(0, 20), min_size=1, max_size=3), st.integers(1, 3), st.integers(0, 2**31))
def test_windows_equal_dense_attention(data, causal, sizes, repeat, seed):
    groups, heads = data.draw(windows(causal))
    batch, form = packed(sizes), Form.of(groups, causal)
    q, k, v = random_qkv(seed, sum(sizes), heads, repeat, 8, 16)
    cap, sink = data.draw(st.sampled_from([(None, None), (2.0, torch.randn(heads * repeat, dtype=torch.float64))]))
    found = attend(fa4, q, k, v, batch, None, groups, form, 0.5, cap, sink)
    pieces = zip(*(torch.split(x, sizes) for x in (q, k, v)), strict=True)
    wanted = torch.cat([dense(*piece, groups, causal, 0.5, cap, sink) for piece in pieces])
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


@given(st.data(), schedules(), st.integers(0, 2**31))
def test_chunks_and_decode_steps_on_a_poisoned_cache_equal_the_whole(data, schedule, seed):
    groups, heads = data.draw(windows(True))
    groups = tuple(replace(group, near=tuple(replace(n, ahead=0) if n != FULL else n for n in group.near)) for group in groups)
    groups = tuple(with_mask(group, True) for group in groups)
    totals = [sum(call[s] for call in schedule) for s in range(len(schedule[0]))]
    form = Form.of(groups, True)
    texts = [random_qkv(seed + s, total, heads, 2, 4, 6) for s, total in enumerate(totals)]
    cache = cache_for(groups, len(totals), max(totals), 4, 6)
    found, done = [[] for _ in totals], [0] * len(totals)
    with torch.no_grad():
        for call in schedule:
            batch = packed(call, cache=cache)
            q, k, v = (torch.cat([texts[s][x][done[s] : done[s] + n] for s, n in enumerate(call)]) for x in range(3))
            out = attend(fa4, q, k, v, batch, cache.layer(0), groups, form, 0.5)
            cache.advance(batch)
            for s, piece in enumerate(torch.split(out, call)):
                found[s].append(piece)
                done[s] += call[s]
    for s, text in enumerate(texts):
        torch.testing.assert_close(torch.cat(found[s]), dense(*text, groups, True, 0.5), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("sizes", [[9], [4, 5]])
def test_gradients_and_the_log_sum_exp_are_those_of_dense_attention(sizes):
    groups = (with_mask(HeadGroup(0, 0, near=(Near(back=3),)), True), with_mask(HeadGroup(1, 1, near=(FULL,)), True))
    inputs = [x.requires_grad_() for x in (*random_qkv(5, 9, 2, 2, 4, 6), torch.randn(4, dtype=torch.float64))]
    q, k, v, sink = inputs
    batch, form = packed(sizes), Form.of(groups, True)
    o, lse = fa4_attention_lse(q, (batch.keys(k, v),), groups, form, batch, 0.7, None, sink, using=FAKE)
    pieces = zip(*(torch.split(x, sizes) for x in (q, k, v)), strict=True)
    wanted = torch.cat([dense(*piece, groups, True, 0.7, None, sink) for piece in pieces])
    weight = torch.randn_like(o)
    for one, other in zip(*(torch.autograd.grad((x * weight).sum(), inputs) for x in (o, wanted)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-12)
    assert lse.shape == (9, 4)
    first = torch.logaddexp((q[0] * k[0].repeat_interleave(2, 0)).sum(-1) * 0.7, sink)
    torch.testing.assert_close(lse[0], first)


def test_heads_that_see_alike_are_one_call_and_each_window_one_more():
    calls = []

    def counted(*arguments, **options):
        calls.append(options["window_size"])
        return flash_attn_func(*arguments, **options)

    groups = (HeadGroup(0, 3, near=(FULL,)), HeadGroup(4, 5, near=(Near(back=7),)), HeadGroup(6, 7, near=(Near(back=2),)))
    q, k, v = random_qkv(0, 24, 8, 2, 4, 4)
    batch = Batch.of(torch.zeros(2, 12, dtype=torch.int64))[1]
    parts = (batch.keys(k, v),)
    fa4_attention(q, parts, groups, Form.of(groups, True), batch, 1.0, using=Functions(counted, flash_attn_varlen_func))
    assert calls == [(None, 0), (7, 0), (2, 0)]


@pytest.mark.parametrize(
    "group",
    [
        HeadGroup(0, 0, sink=2, near=(Near(back=3),)),
        HeadGroup(0, 0, near=(Near(align=4),)),
        HeadGroup(0, 0, near=(Near(back=3), Near(back=5))),
        HeadGroup(0, 0, near=(FULL,), strides=(3,)),
        HeadGroup(0, 0, powers=(2,)),
        HeadGroup(0, 0),
    ],
    ids=["sink", "blocks", "two", "strides", "powers", "nothing"],
)
def test_what_it_cannot_see_is_refused(group):
    q, k, v = random_qkv(0, 8, 1, 1, 4, 4)
    with pytest.raises(ValueError, match="one window around the query"):
        attend(fa4, q, k, v, packed([8]), None, (group,), Form.of((group,), True), 0.5)


def test_shares_of_unequal_lengths_learned_keys_and_other_machines_are_refused():
    q, k, v = random_qkv(0, 8, 1, 1, 4, 4)
    window = HeadGroup(0, 0, near=(Near(back=Share(25.0)),))
    form = Form.of((window,), True)
    with pytest.raises(ValueError, match="one window for all sequences"):
        attend(fa4, q, k, v, packed([3, 5]), None, (window,), form, 0.5)
    attend(fa4, q, k, v, packed([4, 4]), None, (window,), form, 0.5)
    with pytest.raises(ValueError, match="every query sees beside a window"):
        attend(fa4, q, k, v, packed([8]), None, (window,), form, 0.5, persistent=persistent_keys(k[:2], v[:2], 1))
    with pytest.raises(ValueError, match="compute capability"):
        complain(q, packed([8]).keys(k, v))
