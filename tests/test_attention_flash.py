"""What the provider `torch` asks of PyTorch's flash kernel, which has no CPU form, with a function in its place."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_attention_fa4 import flash_attn_varlen_func, windows
from test_runtime_attention import cache_for, dense, packed, random_qkv

from attnc.runtime import attention_torch
from attnc.runtime.attention_flash import flash_attention, sees
from attnc.runtime.attention_torch import torch_attention
from attnc.runtime.intervals import FULL, Form, HeadGroup, Near
from attnc.runtime.keys import persistent_keys
from attnc.runtime.sizes import Share
from attnc.runtime.softmax import attend, begin


def forward(q, k, v, q_ends, k_ends, max_q, max_k, dropout, is_causal, debug, *, scale, window_size_left, window_size_right):
    """torch.ops.aten._flash_attention_forward: -1 for no end, a window is no causal launch, five results."""
    assert (dropout, debug) == (0.0, False)
    assert not is_causal or window_size_left == -1
    window = tuple(None if end == -1 else end for end in (window_size_left, window_size_right))
    o, lse = flash_attn_varlen_func(
        q, k, v, q_ends, k_ends, max_q, max_k, softmax_scale=scale, causal=is_causal, window_size=window,
        learnable_sink=None, softcap=0.0, deterministic=False, return_lse=True,
    )  # fmt: skip
    return o, lse, None, None, None


@given(st.data(), st.booleans(), st.lists(st.integers(0, 20), min_size=1, max_size=3), st.integers(1, 3), st.integers(0, 2**31))
def test_windows_over_a_calls_own_keys_equal_dense_attention(data, causal, sizes, repeat, seed):
    groups, heads = data.draw(windows(causal))
    batch, form = packed(sizes), Form.of(groups, causal)
    q, k, v = (x.requires_grad_() for x in random_qkv(seed, sum(sizes), heads, repeat, 8, 8))
    part = batch.keys(k, v)
    assert sees((part,), groups, form, batch)
    if not sum(sizes):
        return
    found = flash_attention(q, part, groups, form, batch, 0.5, using=forward)
    pieces = zip(*(torch.split(x, sizes) for x in (q, k, v)), strict=True)
    wanted = torch.cat([dense(*piece, groups, causal, 0.5) for piece in pieces])
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    weight = torch.randn_like(wanted)
    gradients = [torch.autograd.grad((o * weight).sum(), (q, k, v)) for o in (found, wanted)]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-12)


def test_what_the_kernel_cannot_say_is_not_for_it():
    _, k, v = random_qkv(0, 12, 1, 1, 8, 8)
    window = HeadGroup(0, 0, near=(Near(back=3),))
    for sizes, group, value, fits in (
        ([12], window, v, True),
        ([5, 7], window, v, True),
        ([5, 7], HeadGroup(0, 0, near=(FULL,)), v, True),
        ([12], HeadGroup(0, 0, 2, (Near(back=3),)), v, False),
        ([12], HeadGroup(0, 0, near=(Near(back=3), Near(align=4))), v, False),
        ([5, 7], HeadGroup(0, 0, near=(Near(back=Share(25.0)),)), v, False),
        ([6, 6], HeadGroup(0, 0, near=(Near(back=Share(25.0)),)), v, True),
        ([12], window, v[..., :4].contiguous(), False),
    ):
        batch = packed(sizes)
        assert sees((batch.keys(k, value),), (group,), Form.of((group,), True), batch) == fits, (sizes, group)
    batch, form = packed([12]), Form.of((window,), True)
    assert not sees((batch.keys(k, v), persistent_keys(k[:2], v[:2], 1)), (window,), form, batch)
    cache = cache_for((window,), 1, 30, 8, 8)
    with torch.no_grad():
        for size in (12, 20):
            batch = packed([size], cache=cache)
            new = random_qkv(1, size, 1, 1, 8, 8)
            parts = begin(new[1], new[2], batch, cache.layer(0))
            assert sees(parts, (window,), form, batch) == (size == 12), "a cache has slots of its own"
            cache.layer(0).write(new[1], new[2], batch)
            cache.advance(batch)


@pytest.mark.parametrize("sizes", [[12, 12], [5, 19]])
@pytest.mark.parametrize("plain", [True, False])
def test_it_runs_where_one_call_of_scaled_dot_product_attention_does_not_do(sizes, plain, monkeypatch):
    """A plain causal launch of equal sequences is left to PyTorch's choice of kernels."""
    calls = []

    def spy(*arguments):
        calls.append(arguments)
        return flash_attention(*arguments, using=forward)

    monkeypatch.setattr(attention_torch, "suits", lambda q, *rest: sees(*rest))
    monkeypatch.setattr(attention_torch, "flash_attention", spy)
    groups = (HeadGroup(0, 1, near=(FULL if plain else Near(back=3),)),)
    q, k, v = random_qkv(0, 24, 2, 2, 8, 8)
    batch, form = packed(sizes), Form.of(groups, True)
    o = attend(torch_attention, q, k, v, batch, None, groups, form, 0.5)
    assert len(calls) == (0 if plain and len(set(sizes)) == 1 else 1)
    for cap, sink in ((2.0, None), (None, torch.zeros(4, dtype=torch.float64))):
        calls.clear()
        attend(torch_attention, q, k, v, batch, None, groups, form, 0.5, cap, sink)
        assert not calls
    monkeypatch.undo()
    torch.testing.assert_close(o, attend(torch_attention, q, k, v, batch, None, groups, form, 0.5), rtol=1e-12, atol=1e-12)
