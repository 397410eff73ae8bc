"""Laws of the softmax providers that need no GPU: against dense attention written here, and against themselves in pieces."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from attnc.runtime.attention_reference import Reference
from attnc.runtime.attention_torch import torch_attention
from attnc.runtime.batch import Batch
from attnc.runtime.cache import Cache, Growing, LayerPlan, Ring, Slots
from attnc.runtime.intervals import FULL, Form, HeadGroup, Near, rows
from attnc.runtime.keys import persistent_keys
from attnc.runtime.rotary import Rope, rotate
from attnc.runtime.sizes import UNBOUNDED, Share
from attnc.runtime.softmax import attend, merge


def number(value, length):
    """A count of tokens or a share, resolved here on its own."""
    return max(0, max(1, int(length * value.percent / 100)) + value.plus) if isinstance(value, Share) else value


def begun_earlier(shift, align):
    """A share of a block is rounded up."""
    return math.ceil(align * shift.percent / 100) if isinstance(shift, Share) else shift


def sees(group, i, j, length, causal):
    """One query, one key, in plain Python: the docstring of intervals.py word for word."""
    if causal and j > i:
        return False
    if j < number(group.sink, length):
        return True
    for near in group.near:
        align, back, ahead = (number(x, length) for x in (near.align, near.back, near.ahead))
        shift = begun_earlier(near.shift, align)
        block = (i + shift) // align
        low = block * align - shift - back
        high = i + 1 if causal else (block + 1) * align - shift + ahead
        if low <= j < high:
            return True
    if any((i - j) % n == 0 for n in group.strides):
        return True
    return any(abs(i // n - j // n) in {0, 1, 2, 4, 8, 16, 32, 64, 128} for n in group.powers)


@lru_cache(maxsize=256)
def table(group, length, total, causal):
    """[length, length], which query sees which key."""
    return torch.tensor(
        [[sees(group, i, j, total, causal) for j in range(length)] for i in range(length)], dtype=torch.bool
    ).view(length, length)


def with_mask(group, causal):
    """The group with a `visible` for the reference provider, by the loops above."""

    def visible(i, j, length):
        size = max(int(i.max()), int(j.max())) + 1
        return table(group, size, length, causal)[i.clamp(min=0), j.clamp(min=0)] & (j >= 0)

    return replace(group, visible=visible)


def dense(q, k, v, groups, causal, scale, cap=None, sink=None, persistent=None, total=None):
    """One sequence, brute force: q [N, H, D], k [N, G, D], v [N, G, E]."""
    n, heads = q.shape[:2]
    repeat = heads // k.shape[1]
    seen = [
        table(group, n, n if total is None else total, causal)
        for group in groups
        for _ in range(group.first, group.last + 1)
        for _ in range(repeat)
    ]
    seen = torch.stack(seen)
    if persistent is not None:
        k, v = torch.cat((k, persistent[0])), torch.cat((v, persistent[1]))
        seen = torch.cat((seen, seen.new_ones(heads, n, len(persistent[0]))), dim=2)
    k, v = k.repeat_interleave(repeat, dim=1), v.repeat_interleave(repeat, dim=1)
    logits = torch.einsum("ihd,jhd->hij", q, k) * (scale if isinstance(scale, float) else scale.to(q.dtype)[:, None, None])
    logits = logits if cap is None else cap * torch.tanh(logits / cap)
    mass = torch.where(seen, logits.exp(), 0.0)
    total = mass.sum(2, keepdim=True) + (0.0 if sink is None else sink.exp()[:, None, None])
    return torch.einsum("hij,jhe->ihe", mass / torch.where(total == 0, 1.0, total), v)


tokens = st.one_of(st.integers(0, 20), st.builds(Share, st.sampled_from([7.5, 25.0, 60.0]), st.integers(-2, 1)))
positive = st.one_of(st.integers(1, 20), st.builds(Share, st.sampled_from([7.5, 25.0, 60.0])))
shifts = st.one_of(st.integers(0, 19), st.sampled_from([Share(25.0), Share(50.0), Share(99.0)]))
backs = st.one_of(st.integers(-5, -1), tokens)  # below 0 some queries see nothing
nears = st.builds(Near, positive, shifts, backs, tokens)
some_keys = st.builds(
    lambda sink, near, strides, powers: HeadGroup(0, 0, sink, tuple(near), tuple(strides), tuple(powers)),
    tokens,
    st.lists(st.one_of(nears, st.just(FULL), st.builds(Near, back=st.integers(0, 30))), max_size=3),
    st.lists(st.integers(2, 9), max_size=2),
    st.lists(st.integers(2, 9), max_size=2),
)


@st.composite
def layers(draw):
    """(groups, causal, KV heads, repeat, key width, value width)."""
    kinds = draw(st.lists(some_keys, min_size=1, max_size=3))
    groups, first = [], 0
    for kind in kinds:
        last = first + draw(st.integers(0, 1))
        groups.append(replace(kind, first=first, last=last))
        first = last + 1
    causal = draw(st.booleans())
    return tuple(with_mask(g, causal) for g in groups), causal, first, draw(st.integers(1, 3)), 4, draw(st.sampled_from([4, 6]))


def random_qkv(seed, n, heads, repeat, width, value_width):
    make = torch.Generator().manual_seed(seed)
    shapes = ((n, heads * repeat, width), (n, heads, width), (n, heads, value_width))
    return tuple(torch.randn(shape, generator=make, dtype=torch.float64) for shape in shapes)


def packed(sizes, **options):
    """A batch of packed sequences of these sizes."""
    offsets = [sum(sizes[:s]) for s in range(len(sizes) + 1)]
    return Batch.of(torch.zeros(1, sum(sizes), dtype=torch.int64), offsets=offsets, **options)[1]


@pytest.mark.parametrize("provider", [torch_attention, Reference()], ids=["torch", "reference"])
def test_a_provider_equals_dense_attention_for_any_rows(provider, monkeypatch):
    @given(layers(), st.lists(st.integers(0, 40), min_size=1, max_size=3), st.integers(0, 2**31), st.sampled_from([2, 5, 256]))
    def law(layer, sizes, seed, block):
        monkeypatch.setattr("attnc.runtime.attention_torch.BLOCK", block)
        groups, causal, heads, repeat, width, value_width = layer
        form, batch = Form.of(groups, causal), packed(sizes)
        q, k, v = random_qkv(seed, sum(sizes), heads, repeat, width, value_width)
        found = attend(provider, q, k, v, batch, None, groups, form, 0.5)
        pieces = zip(*(torch.split(x, sizes) for x in (q, k, v)), strict=True)
        wanted = torch.cat([dense(*piece, groups, causal, 0.5) for piece in pieces])
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)

    law()


@pytest.mark.parametrize("provider", [torch_attention, Reference()], ids=["torch", "reference"])
@pytest.mark.parametrize("cap", [None, 2.0])
@pytest.mark.parametrize("causal", [True, False])
def test_sink_logits_soft_caps_head_scales_and_persistent_keys_are_part_of_the_softmax(provider, cap, causal):
    groups = (
        with_mask(HeadGroup(0, 0, sink=2, near=(Near(back=3),)), causal),
        with_mask(HeadGroup(1, 1, near=(FULL,)), causal),
    )
    q, k, v = random_qkv(1, 24, 2, 2, 4, 6)
    own_k, own_v = random_qkv(2, 3, 2, 2, 4, 6)[1:]
    sink, scale = torch.randn(4, dtype=torch.float64), torch.tensor([0.5, 1.0, 2.0, 0.25])
    batch = packed([12, 12])
    form = Form.of(groups, causal)
    persistent = persistent_keys(own_k, own_v, 2)
    found = attend(provider, q, k, v, batch, None, groups, form, scale, cap, sink, persistent)
    halves = [
        dense(q[a:b], k[a:b], v[a:b], groups, causal, scale, cap=cap, sink=sink, persistent=(own_k, own_v))
        for a, b in [(0, 12), (12, 24)]
    ]
    torch.testing.assert_close(found, torch.cat(halves), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("provider", [torch_attention, Reference()], ids=["torch", "reference"])
@pytest.mark.parametrize("cap", [None, 2.0])
@pytest.mark.parametrize("with_sink", [False, True])
def test_gradients_of_a_provider_are_those_of_dense_attention(provider, cap, with_sink, monkeypatch):
    monkeypatch.setattr("attnc.runtime.attention_torch.BLOCK", 4)
    groups = (
        with_mask(HeadGroup(0, 0, 1, (Near(back=2), Near(align=4))), True),
        with_mask(HeadGroup(1, 1, strides=(3,)), True),
    )
    # two of four queries see nothing, or all: their gradient is 0, not NaN
    groups = (*groups, with_mask(HeadGroup(2, 2, near=(Near(align=4, back=-2),)), True), with_mask(HeadGroup(3, 3), True))
    inputs = [x.requires_grad_() for x in (*random_qkv(3, 11, 4, 2, 4, 6), torch.randn(8, dtype=torch.float64))]
    q, k, v, sink = (*inputs[:3], inputs[3] if with_sink else None)
    inputs = inputs if with_sink else inputs[:3]
    batch, form = packed([5, 6]), Form.of(groups, True)
    weight = torch.randn(11, 8, 6, dtype=torch.float64)
    found = torch.autograd.grad((attend(provider, q, k, v, batch, None, groups, form, 0.7, cap, sink) * weight).sum(), inputs)
    parts = [dense(q[a:b], k[a:b], v[a:b], groups, True, 0.7, cap, sink) for a, b in [(0, 5), (5, 11)]]
    wanted = torch.autograd.grad((torch.cat(parts) * weight).sum(), inputs)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-12)


def test_a_window_over_a_long_text_never_builds_a_mask_of_the_whole(monkeypatch):
    sizes = []
    original = torch.nn.functional.scaled_dot_product_attention

    def spy(q, k, v, **options):
        sizes.append(k.shape[2])
        return original(q, k, v, **options)

    monkeypatch.setattr("torch.nn.functional.scaled_dot_product_attention", spy)
    group = HeadGroup(0, 0, sink=4, near=(Near(back=99),))
    q, k, v = (x.float() for x in random_qkv(0, 4096, 1, 1, 4, 4))
    attend(torch_attention, q, k, v, packed([4096]), None, (group,), Form.of((group,), True), 0.5)
    assert max(sizes) <= 4 + 99 + 256


def reaching(group, length):
    """How many recent tokens a cache must keep for the group, or None for all."""
    if group.strides or group.powers:
        return None
    backs = [number(n.back, length) + number(n.align, length) for n in group.near]
    return None if any(back > UNBOUNDED // 2 for back in backs) else max([1, *backs])


def cache_for(groups, batch, longest, width, value_width):
    """A cache with a ring wherever the group allows one, its storage poisoned."""
    slots = []
    for group in groups:
        recent = reaching(group, longest)
        keep = Growing() if recent is None else Ring(number(group.sink, longest), recent)
        slots.append(Slots(group.first, group.last, keep))
    cache = Cache([LayerPlan(tuple(slots), width, value_width)], batch, longest, torch.float64)
    cache.layer(0).k.fill_(float("nan"))
    cache.layer(0).v.fill_(float("nan"))
    return cache


@st.composite
def schedules(draw):
    """[calls][sequences]: how many tokens each sequence gets in each call; often equal, so that the dense path is drawn too."""
    sequences = draw(st.integers(1, 3))
    size = st.one_of(st.integers(0, 3), st.integers(0, 40))
    equal = st.builds(lambda n: [n] * sequences, size)
    return draw(st.lists(st.one_of(equal, st.lists(size, min_size=sequences, max_size=sequences)), min_size=1, max_size=6))


@pytest.mark.parametrize("provider", [torch_attention, Reference()], ids=["torch", "reference"])
def test_chunks_and_decode_steps_on_a_poisoned_cache_equal_the_whole(provider):
    @given(layers(), schedules(), st.integers(0, 2**31))
    def law(layer, schedule, seed):
        groups, _, heads, repeat, width, value_width = layer
        totals = [sum(call[s] for call in schedule) for s in range(len(schedule[0]))]
        groups = tuple(with_mask(without_shares(g, max(totals)), True) for g in groups)
        form = Form.of(groups, True)
        texts = [random_qkv(seed + s, total, heads, repeat, width, value_width) for s, total in enumerate(totals)]
        cache = cache_for(groups, len(totals), max(totals), width, value_width)
        found = [[] for _ in totals]
        done = [0] * len(totals)
        with torch.no_grad():
            for call in schedule:
                batch = packed(call, cache=cache)
                q, k, v = (torch.cat([texts[s][x][done[s] : done[s] + n] for s, n in enumerate(call)]) for x in range(3))
                out = attend(provider, q, k, v, batch, cache.layer(0), groups, form, 0.5)
                cache.advance(batch)
                for s, piece in enumerate(torch.split(out, call)):
                    found[s].append(piece)
                    done[s] += call[s]
        assert cache.counts == tuple(totals)
        assert cache.lengths.tolist() == totals
        for s, text in enumerate(texts):
            wanted = dense(*text, groups, True, 0.5)
            torch.testing.assert_close(torch.cat(found[s]), wanted, rtol=1e-12, atol=1e-12)

    law()


def without_shares(group, length):
    """The group with every share resolved for one length, so that it means the same in every call."""
    near = []
    for n in group.near:
        align, back, ahead = (number(x, length) for x in (n.align, n.back, n.ahead))
        near.append(Near(align, begun_earlier(n.shift, align), back, ahead))
    return replace(group, sink=number(group.sink, length), near=tuple(near))


@given(layers(), st.lists(st.integers(0, 30), min_size=1, max_size=3), st.integers(0, 2**31), st.data())
def test_a_sequence_does_not_see_its_neighbours(layer, sizes, seed, data):
    groups, causal, heads, repeat, width, value_width = layer
    form, batch = Form.of(groups, causal), packed(sizes)
    q, k, v = random_qkv(seed, sum(sizes), heads, repeat, width, value_width)
    before = torch.split(attend(torch_attention, q, k, v, batch, None, groups, form, 0.5), sizes)
    other = data.draw(st.integers(0, len(sizes) - 1))
    start = sum(sizes[:other])
    k, v = k.clone(), v.clone()
    k[start : start + sizes[other]] = float("nan")
    v[start : start + sizes[other]] = float("nan")
    after = torch.split(attend(torch_attention, q, k, v, batch, None, groups, form, 0.5), sizes)
    for s in range(len(sizes)):
        if s != other:
            torch.testing.assert_close(after[s], before[s], rtol=0, atol=0)


@given(st.integers(0, 12), st.integers(0, 12), st.integers(0, 2**31), st.sampled_from([1.0, 300.0]))
def test_merging_two_key_sets_equals_one_softmax_over_both(first, second, seed, size):
    make = torch.Generator().manual_seed(seed)
    logits = torch.randn(5, 2, first + second, generator=make, dtype=torch.float64) * size
    values = torch.randn(first + second, 3, generator=make, dtype=torch.float64)

    def one(part):
        x, v = logits[..., part], values[part]
        if x.shape[-1] == 0:
            return torch.zeros(5, 2, 3, dtype=torch.float64), torch.full((5, 2), float("-inf"), dtype=torch.float64)
        return torch.softmax(x, -1) @ v, torch.logsumexp(x, -1)

    o, lse = merge(*one(slice(0, first)), *one(slice(first, None)))
    wanted_o, wanted_lse = one(slice(None))
    torch.testing.assert_close(o, wanted_o, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(lse, wanted_lse, rtol=1e-12, atol=1e-12)


@given(layers(), st.lists(st.integers(0, 50), min_size=1, max_size=3))
def test_rows_say_what_each_sequence_and_head_sees(layer, sizes):
    groups, causal, heads, *_ = layer
    form, batch = Form.of(groups, causal), packed(sizes)
    table = rows(groups, form, batch)
    assert table.shape == (len(sizes), heads, form.width)
    assert table.dtype == torch.int32
    for s, length in enumerate(sizes):
        for group in groups:
            for g in range(group.first, group.last + 1):
                read = table[s, g].tolist()
                near = [read[1 + 4 * p : 5 + 4 * p] for p in range(form.nears)]
                assert read[0] == number(group.sink, length)
                for p, (align, shift, back, ahead) in enumerate(near):
                    if p < len(group.near):
                        own = group.near[p]
                        assert (align, back, ahead) == tuple(number(x, length) for x in (own.align, own.back, own.ahead))
                        assert shift == begun_earlier(own.shift, align)
                    else:
                        assert (align, shift, back, ahead) == (1, 0, -1, -1)
                tail = read[1 + 4 * form.nears :]
                assert [n for n in tail if n] == [*group.strides, *group.powers]


def test_shares_follow_each_sequence_and_the_total_that_a_chunk_is_told():
    group = HeadGroup(0, 0, near=(Near(back=Share(25, -1)),))
    form = Form.of((group,), True)
    assert rows((group,), form, packed([8, 40]))[:, 0, 3].tolist() == [1, 9]
    assert rows((group,), form, packed([8, 40], total_lengths=[80, 40]))[:, 0, 3].tolist() == [19, 9]


@pytest.mark.parametrize("provider", [torch_attention, Reference()], ids=["torch", "reference"])
def test_equal_chunks_of_texts_of_different_lengths_have_shares_of_their_own(provider):
    groups = (with_mask(HeadGroup(0, 0, near=(Near(back=Share(25, -1)),)), True),)
    q, k, v = random_qkv(4, 24, 1, 1, 4, 4)
    batch = packed([12, 12], total_lengths=[80, 12])
    found = attend(provider, q, k, v, batch, None, groups, Form.of(groups, True), 0.5)
    pieces = [dense(q[a : a + 12], k[a : a + 12], v[a : a + 12], groups, True, 0.5, total=n) for a, n in [(0, 80), (12, 12)]]
    torch.testing.assert_close(found, torch.cat(pieces), rtol=1e-12, atol=1e-12)


def test_consecutive_positions_number_the_keys_that_each_query_sees():
    rope = Rope(4, 100.0)
    group = with_mask(HeadGroup(0, 0, sink=2, near=(Near(back=4),)), True)
    form = Form.of((group,), True)
    q, k, v = random_qkv(5, 30, 1, 1, 6, 4)
    found = attend(Reference(rope=rope), q, k, v, packed([30]), None, (group,), form, 0.5)
    for i in range(30):
        seen = [j for j in range(30) if sees(group, i, j, 30, True)]
        turned = rotate(k[seen], torch.arange(len(seen)), rope)[:, 0]
        query = rotate(q[i : i + 1], torch.tensor([len(seen) - 1]), rope)[0, 0]
        wanted = torch.softmax(turned @ query * 0.5, 0) @ v[seen, 0]
        torch.testing.assert_close(found[i, 0], wanted, rtol=1e-6, atol=1e-7)


def test_consecutive_positions_equal_absolute_ones_while_everything_is_seen():
    rope = Rope(6, 10000.0)
    group = with_mask(HeadGroup(0, 0, near=(FULL,)), True)
    form = Form.of((group,), True)
    q, k, v = random_qkv(6, 20, 1, 1, 6, 4)
    batch = packed([12, 8])
    found = attend(Reference(rope=rope), q, k, v, batch, None, (group,), form, 0.5)
    turned = (rotate(x, batch.positions, rope) for x in (q, k))
    wanted = attend(Reference(), *turned, v, batch, None, (group,), form, 0.5)
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("provider", [torch_attention, Reference()], ids=["torch", "reference"])
def test_large_logits_stay_finite_in_half_precision(provider, dtype):
    group = with_mask(HeadGroup(0, 0, near=(Near(back=5),)), True)
    q, k, v = (x.to(dtype) for x in random_qkv(7, 20, 1, 2, 4, 4))
    out = attend(provider, q * 60, k * 60, v, packed([20]), None, (group,), Form.of((group,), True), 1.0)
    assert out.isfinite().all()
    assert out.abs().max() <= v.abs().max() * 1.01
