"""What caches keep, forget and cost."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from attnc.runtime.attention_torch import torch_attention
from attnc.runtime.batch import Batch
from attnc.runtime.cache import Cache, CacheError, Growing, LayerPlan, Ring, Slots, State
from attnc.runtime.intervals import FULL, Form, HeadGroup, Near
from attnc.runtime.sizes import Share
from attnc.runtime.softmax import attend

GROUPS = (HeadGroup(0, 1, near=(FULL,)), HeadGroup(2, 2, sink=2, near=(Near(back=4),)))
MIXED = (Slots(0, 1, Growing()), Slots(2, 2, Ring(2, 5)))
RING = (Slots(0, 2, Ring(2, 5)),)
WINDOW = (replace(GROUPS[1], first=0),)
FORM = Form.of(GROUPS, causal=True)


def packed(sizes, cache=None):
    offsets = [sum(sizes[:s]) for s in range(len(sizes) + 1)]
    return Batch.of(torch.zeros(1, sum(sizes), dtype=torch.int64), cache, offsets=offsets)[1]


def poisoned(plans, batch, longest=200):
    """A cache whose empty storage is NaN, as torch.empty may be."""
    cache = Cache(plans, batch, longest, torch.float64)
    for layer in cache.layers:
        layer.k.fill_(float("nan"))
        layer.v.fill_(float("nan"))
    return cache


class Text:
    """Endless random q, k, v of some sequences, fed into a cache's layer 0."""

    def __init__(self, sequences, groups=GROUPS, seed=0):
        make = torch.Generator().manual_seed(seed)
        self.groups, self.form = groups, Form.of(groups, causal=True)
        self.q, self.k, self.v = (torch.randn(sequences, 200, n, 4, generator=make, dtype=torch.float64) for n in (6, 3, 3))

    @torch.no_grad()
    def feed(self, cache, sizes):
        """The outputs of the next tokens of each sequence."""
        batch = packed(sizes, cache)
        spans = [(s, slice(past, past + n)) for s, (past, n) in enumerate(zip(batch.pasts, sizes, strict=True))]
        q, k, v = (torch.cat([x[s, span] for s, span in spans]) for x in (self.q, self.k, self.v))
        out = attend(torch_attention, q, k, v, batch, cache.layer(0), self.groups, self.form, 0.5)
        cache.advance(batch)
        return out


@given(st.integers(0, 3), st.integers(1, 30), st.integers(0, 4), st.integers(1, 9))
def test_bytes_are_those_of_the_slots_that_the_kinds_promise(batch, longest, pinned, recent):
    plans = [
        LayerPlan((Slots(0, 1, Growing()), Slots(2, 4, Ring(pinned, recent))), 4, 6),
        LayerPlan((Slots(0, 1, Growing()), Slots(2, 4, Ring(pinned, recent))), value_width=8, keys_from=0),
        LayerPlan(states=(State("conv", (3, 7)), State("memory", (5,), torch.float32))),
    ]
    cache = Cache(plans, batch, longest, torch.float16)
    slots = 2 * longest + 3 * (pinned + recent + 15)
    assert cache.bytes() == batch * (slots * (4 + 6) * 2 + slots * 8 * 2 + 3 * 7 * 2 + 5 * 4)


def test_shares_of_a_ring_are_of_the_longest_text():
    cache = Cache([LayerPlan((Slots(0, 0, Ring(0, Share(25))),), 1, 1)], 1, 400, torch.float32)
    assert cache.bytes() == (100 + 15) * 2 * 4
    assert cache.limited


@given(st.lists(st.lists(st.integers(0, 40), min_size=2, max_size=2), max_size=4), st.data())
def test_a_key_part_reads_exactly_the_keys_that_its_numbers_promise(calls, data):
    cache, text = poisoned([LayerPlan(MIXED, 4, 4)], 2), Text(2)
    for call in calls:
        text.feed(cache, call)
    sizes = data.draw(st.lists(st.integers(0, 1), min_size=2, max_size=2))
    part = cache.layer(0).part(packed(sizes, cache), written=False)
    assert part.stored.tolist() == list(part.counts) == list(cache.counts)
    assert part.max_stored == max(cache.counts)
    for s in range(2):
        for g in range(3):
            pinned, ring, last = int(part.pinned[g]), int(part.ring[g]), int(part.stored[s]) - 1
            named = {}
            for slot in range(200 if ring > 200 else pinned + ring):
                place = last - (last - slot) % ring
                position = slot if slot < pinned else place
                if (slot < pinned and slot <= last) or (slot >= pinned and place >= pinned):
                    begin = int(part.k_begin[s, g]) + slot * part.k_stride
                    named[position] = part.k[begin : begin + 4]
            assert part.even == (len(set(cache.counts)) == 1)
            read = {run.start + i: run.k[0, 0, i] for run in part.read(g, g, s) for i in range(run.k.shape[2])}
            assert sorted(named) == sorted(read)
            kept = range(last + 1) if ring > 200 else [p for p in range(last + 1) if p < 2 or p > last - 20]
            assert sorted(read) == list(kept)
            for position, key in read.items():
                assert torch.equal(key, text.k[s, position, g])
                assert torch.equal(key, named[position])


@pytest.mark.parametrize("n", [1, 15, 16, 17, 18, 40])
def test_a_full_ring_serves_a_call_of_any_size(n):
    """Up to 16 tokens are written before they are read, and must not push out what the first of them sees."""
    cache, whole = poisoned([LayerPlan(MIXED, 4, 4)], 1), poisoned([LayerPlan(MIXED, 4, 4)], 1)
    Text(1).feed(cache, [60])
    found, wanted = Text(1).feed(cache, [n]), Text(1).feed(whole, [60 + n])[60:]
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


def test_sequences_that_grow_to_one_length_from_different_ones_are_kept_apart():
    cache, wholes = poisoned([LayerPlan(MIXED, 4, 4)], 2), poisoned([LayerPlan(MIXED, 4, 4)], 2)
    text = Text(2)
    text.feed(cache, [30, 32])
    found, wanted = text.feed(cache, [5, 3]), text.feed(wholes, [35, 35])
    torch.testing.assert_close(found, torch.cat((wanted[30:35], wanted[67:])), rtol=1e-12, atol=1e-12)


@given(st.lists(st.integers(0, 60), min_size=2, max_size=2), st.data())
def test_crop_is_exact_or_refused_with_its_code(counts, data):
    plans = data.draw(st.sampled_from([MIXED, RING]))
    groups = GROUPS if plans is MIXED else WINDOW
    cache, text = poisoned([LayerPlan(plans, 4, 4)], 2), Text(2, groups)
    text.feed(cache, counts)
    n = data.draw(st.integers(0, 60))
    after = [min(count, n) for count in counts]
    exact = all(old <= 2 + 20 or old - new <= 16 or new == 0 for old, new in zip(counts, after, strict=True))
    if not exact:
        with pytest.raises(CacheError, match="cannot go back") as caught:
            cache.crop(n)
        assert caught.value.code == "A507"
        assert cache.counts == tuple(counts)
        return
    cache.crop(n)
    assert cache.lengths.tolist() == list(cache.counts) == after
    # another text follows from there: what was cropped must not be seen
    text.q[:, n:], text.k[:, n:], text.v[:, n:] = (x[:, n:].flip(1) for x in (text.q, text.k, text.v))
    fresh = poisoned([LayerPlan(plans, 4, 4)], 2)
    text.feed(fresh, after)
    for sizes in data.draw(st.lists(st.lists(st.integers(0, 20), min_size=2, max_size=2), min_size=1, max_size=3)):
        torch.testing.assert_close(text.feed(cache, sizes), text.feed(fresh, sizes), rtol=1e-12, atol=1e-12)


def test_a_full_ring_goes_back_by_16_tokens_and_no_more():
    cache, fresh, text = poisoned([LayerPlan(RING, 4, 4)], 1), poisoned([LayerPlan(RING, 4, 4)], 1), Text(1, WINDOW)
    text.feed(cache, [60])
    with pytest.raises(CacheError, match="from 60 to 43"):
        cache.crop(43)
    cache.crop(44)
    text.feed(fresh, [44])
    torch.testing.assert_close(text.feed(cache, [1]), text.feed(fresh, [1]), rtol=1e-12, atol=1e-12)


def test_a_state_cannot_go_back_except_to_the_start():
    cache = Cache([LayerPlan(states=(State("conv", (2,)),))], 2, 10)
    batch = packed([3, 4], cache)
    cache.layer(0).set_state("conv", torch.ones(2, 2), batch)
    cache.advance(batch)
    cache.crop(9)
    with pytest.raises(CacheError, match=r"layer 0 .* from 4 to 3 tokens of sequence 1"):
        cache.crop(3)
    cache.crop([0, 4])
    assert cache.counts == (0, 4)
    assert cache.layer(0).state("conv", batch).tolist() == [[0, 0], [1, 1]]


@given(st.lists(st.integers(0, 60), min_size=2, max_size=2), st.lists(st.integers(0, 70), min_size=2, max_size=2))
def test_a_call_writes_each_slot_at_most_once(before, sizes):
    """Where two tokens of a call fall on one slot, a GPU may keep either."""
    cache = Cache([LayerPlan(RING, 4, 4)], 2, 10, torch.float64)
    cache.advance(packed(before, cache))
    batch = packed(sizes, cache)
    written = []

    class Spy(torch.Tensor):
        def __setitem__(self, key, value):
            written.append(list(zip(key[1].tolist(), key[2].tolist(), strict=True)))

    layer = cache.layer(0)
    layer._view = lambda flat, band, steps: torch.empty(0).as_subclass(Spy)
    layer.write(torch.zeros(sum(sizes), 3, 4), torch.zeros(sum(sizes), 3, 4), batch)
    assert len(written) == 2
    for places in written:
        assert len(places) == len(set(places))


@pytest.mark.parametrize("n", [-1, [1], [1, 2, 3], [1, -2]])
def test_crop_refuses_numbers_that_do_not_fit(n):
    with pytest.raises(ValueError, match="crop takes one number"):
        Cache([], 2, 10).crop(n)


@given(st.lists(st.integers(0, 50), min_size=2, max_size=2), st.lists(st.integers(0, 40), min_size=2, max_size=2))
def test_a_restored_cache_continues_as_it_would_have(before, wrong):
    plan = LayerPlan(MIXED, 4, 4, states=(State("conv", (3,)),))
    cache, text = poisoned([plan], 2), Text(2)
    text.feed(cache, before)
    cache.layer(0).set_state("conv", torch.ones(2, 3), packed([1, 1]))
    cache.layer(0).settle(keep=True)
    state = cache.snapshot()
    wanted = text.feed(cache, [9, 20])
    cache.restore(state)
    other = Text(2, seed=1)
    other.feed(cache, wrong)
    cache.layer(0).set_state("conv", torch.zeros(2, 3), packed([1, 1]))
    cache.layer(0).settle(keep=True)
    cache.restore(state)
    assert cache.counts == tuple(before)
    assert torch.equal(cache.layer(0).state("conv", packed([1, 1])), torch.ones(2, 3, dtype=torch.float64))
    assert torch.equal(text.feed(cache, [9, 20]), wanted)


def test_a_snapshot_of_another_shape_is_refused():
    state = Cache([LayerPlan(MIXED, 4, 4)], 2, 100).snapshot()
    with pytest.raises(ValueError, match="another shape"):
        Cache([LayerPlan(MIXED, 4, 5)], 2, 100).restore(state)


@torch.no_grad()
def test_a_layer_may_read_keys_that_an_earlier_one_keeps():
    cache = poisoned([LayerPlan(MIXED, 4, 4), LayerPlan(MIXED, value_width=6, keys_from=0)], 1)
    text = Text(1)
    values = torch.randn(1, 200, 3, 6, dtype=torch.float64)
    whole = Cache([LayerPlan(MIXED, 4, 6)], 1, 200, torch.float64)
    for n in (5, 30, 1, 1, 16):
        batch, again = packed([n], cache), packed([n], whole)
        span = slice(batch.pasts[0], batch.pasts[0] + n)
        q, k, v, w = (x[0, span] for x in (text.q, text.k, text.v, values))
        attend(torch_attention, q, k, v, batch, cache.layer(0), GROUPS, FORM, 0.5)
        found = attend(torch_attention, q, k, w, batch, cache.layer(1), GROUPS, FORM, 0.5)
        wanted = attend(torch_attention, q, k, w, again, whole.layer(0), GROUPS, FORM, 0.5)
        cache.advance(batch)
        whole.advance(again)
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_selected_sequences_read_and_write_their_own_rows():
    cache, text = poisoned([LayerPlan((*MIXED[:1], MIXED[1]), 4, 4, states=(State("conv", (1,)),))], 3), Text(3)
    whole = poisoned([LayerPlan(MIXED, 4, 4)], 3)
    for sizes in ([7, 0, 30], [1, 2, 3], [20, 5, 0], [1, 1, 1]):
        wanted = text.feed(whole, sizes)
        batch = packed(sizes, cache)
        spans = [(s, slice(past, past + n)) for s, (past, n) in enumerate(zip(batch.pasts, sizes, strict=True))]
        q, k, v = (torch.cat([x[s, span] for s, span in spans]) for x in (text.q, text.k, text.v))
        for keep in ([True, False, True], [False, True, False]):
            sub, index = batch.select(keep)
            out = attend(torch_attention, q[index], k[index], v[index], sub, cache.layer(0), GROUPS, FORM, 0.5)
            torch.testing.assert_close(out, wanted[index], rtol=1e-12, atol=1e-12)
            cache.layer(0).set_state("conv", sub.past.unsqueeze(1) + 1.0, sub)
        cache.advance(batch)
    assert cache.layer(0).state("conv", batch).flatten().tolist() == [29.0, 8.0, 34.0]


def test_a_write_with_gradients_is_our_own_mistake():
    cache = Cache([LayerPlan(RING, 4, 4)], 1, 10)
    k = torch.ones(2, 3, 4, requires_grad=True)
    with pytest.raises(AssertionError, match="without gradients"):
        cache.layer(0).write(k, k, packed([2], cache))
