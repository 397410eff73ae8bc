"""Packing and unpacking of every layout that a caller may give, and the phase of a call."""

from __future__ import annotations

from itertools import accumulate

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from attnc.runtime.batch import Batch
from attnc.runtime.cache import Cache, CacheError, Growing, LayerPlan, Ring, Slots
from attnc.runtime.layers import ShortConv, depthwise

sizes_of_rows = st.lists(st.integers(0, 9), min_size=0, max_size=4)


def tokens(*shape):
    return torch.zeros(*shape, dtype=torch.int64)


def growing(batch, longest=1000):
    return Cache([LayerPlan((Slots(0, 0, Growing()),), 2, 2)], batch, longest)


def stored(cache, counts):
    """The cache as if it held that many tokens of each sequence."""
    cache.advance(Batch.of(tokens(1, sum(counts)), offsets=[sum(counts[:s]) for s in range(len(counts) + 1)])[1])
    return cache


@given(sizes_of_rows, st.integers(0, 3), st.booleans())
def test_left_padded_rows_pack_to_their_real_tokens_and_unpack_to_zeros_at_padding(sizes, spare, embedded):
    width = max(sizes, default=0) + spare
    x = torch.randn(len(sizes), width, 3) if embedded else torch.randint(1, 99, (len(sizes), width))
    packed, batch = Batch.of(x, lengths=sizes)
    wanted = [x[row, width - size :] for row, size in enumerate(sizes)]
    assert torch.equal(packed, torch.cat(wanted) if wanted else x.reshape(0, *x.shape[2:]))
    assert batch.positions.tolist() == [i for size in sizes for i in range(size)]
    assert batch.sequence.tolist() == [s for s, size in enumerate(sizes) for _ in range(size)]
    back = batch.unpack(packed)
    assert back.shape == x.shape
    for row, size in enumerate(sizes):
        assert torch.equal(back[row, width - size :], x[row, width - size :])
        assert not back[row, : width - size].any()
    some = torch.randint(0, max(1, len(sizes) * width), (5 if back.numel() else 0,))
    assert torch.equal(batch.at(packed, some), back.flatten(0, 1)[some])


@given(sizes_of_rows, st.data())
def test_every_layout_of_the_same_sequences_gives_the_same_batch(sizes, data):
    pasts = data.draw(st.lists(st.integers(0, 9), min_size=len(sizes), max_size=len(sizes)))
    padded = Batch.of(tokens(len(sizes), max(sizes, default=0)), stored(growing(len(sizes)), pasts), lengths=sizes)[1]
    offsets = torch.tensor([0, *torch.tensor(sizes, dtype=torch.int64).cumsum(0).tolist()])
    packed = Batch.of(tokens(1, sum(sizes)), stored(growing(len(sizes)), pasts), offsets=offsets)[1]
    for name in ("offsets", "past", "total", "positions", "sequence"):
        one, other = getattr(padded, name), getattr(packed, name)
        assert one.dtype == other.dtype == torch.int64
        assert one.tolist() == other.tolist(), name
    assert padded.total.tolist() == [p + n for p, n in zip(pasts, sizes, strict=True)] == list(padded.totals)
    assert padded.offsets.tolist() == offsets.tolist()
    assert padded.positions.tolist() == [p + i for p, n in zip(pasts, sizes, strict=True) for i in range(n)]
    assert (padded.max_new, padded.max_past) == (max(sizes, default=0), max(pasts, default=0))
    assert packed.unpack(torch.ones(sum(sizes), 2)).shape == (1, sum(sizes), 2)


@given(sizes_of_rows, st.data())
def test_a_selected_batch_is_the_batch_of_those_sequences(sizes, data):
    keep = data.draw(st.lists(st.booleans(), min_size=len(sizes), max_size=len(sizes)))
    batch = Batch.of(
        tokens(1, sum(sizes)), stored(growing(len(sizes)), sizes), offsets=[sum(sizes[:s]) for s in range(len(sizes) + 1)]
    )[1]
    sub, index = batch.select(keep)
    assert index.tolist() == [t for t, s in enumerate(batch.sequence.tolist()) if keep[s]]
    assert sub.positions.tolist() == batch.positions[index].tolist()
    assert sub.rows == tuple(s for s, kept in enumerate(keep) if kept)
    assert sub.past.tolist() == [sizes[s] for s in sub.rows]
    assert sub.phase == batch.phase
    again, inner = sub.select([True] + [False] * (sub.sequences - 1)) if sub.sequences else (sub, index)
    assert again.rows == sub.rows[:1]
    assert sub.positions[inner].tolist() == again.positions.tolist()


def test_the_phase_follows_cache_gradients_and_the_number_of_new_tokens():
    def phase(n, past=None, **options):
        cache = None if past is None else stored(growing(2), past)
        return Batch.of(tokens(2, n), cache, **options)[1].phase

    assert phase(5) == "train"
    with torch.no_grad():
        assert phase(5) == "prefill"
    assert phase(1, [0, 0]) == "prefill"
    assert phase(16, [3, 3]) == "decode"
    assert phase(16, [0, 3]) == "decode"
    assert phase(17, [3, 3]) == "prefill"
    assert phase(0, [3, 3]) == "decode"
    assert phase(1, [3, 3], total_lengths=4) == "prefill"
    assert phase(1, [4, 4], total_lengths=4) == "decode"
    assert phase(1, [4, 3], total_lengths=[4, 9]) == "prefill"
    assert phase(5, phase="decode") == "decode"


def test_the_total_is_what_a_chunk_is_told_or_what_there_is():
    assert Batch.of(tokens(2, 3), total_lengths=[9, 2])[1].totals == (9, 3)
    assert Batch.of(tokens(2, 3), total_lengths=torch.tensor([9, 2]))[1].total.tolist() == [9, 3]
    assert Batch.of(tokens(2, 3), stored(growing(2), [4, 5]))[1].total.tolist() == [7, 8]


@pytest.mark.parametrize(
    ("inputs", "options", "complaint"),
    [
        (tokens(3), {}, r"shape \[3\]"),
        (torch.zeros(2, 3), {}, "integers, got torch.float32"),
        (torch.zeros(2, 3, dtype=torch.bool), {}, "integers, got torch.bool"),
        (tokens(2, 3, 4), {}, "floating-point"),
        (tokens(2, 3), {"lengths": [1]}, "1 numbers where 2"),
        (tokens(2, 3), {"lengths": [1, 4]}, "exceed the 3 places"),
        (tokens(2, 3), {"lengths": [1, -1]}, "negative"),
        (tokens(2, 3), {"lengths": torch.tensor([1.0, 2.0])}, "integers, got torch.float32"),
        (tokens(2, 3), {"lengths": [3, 3], "offsets": [0, 6]}, "not both"),
        (tokens(2, 3), {"offsets": [0, 6]}, "one row"),
        (tokens(1, 6), {"offsets": [0, 4, 3, 6]}, "rise from 0"),
        (tokens(1, 6), {"offsets": [1, 6]}, "rise from 0"),
        (tokens(1, 6), {"offsets": [0, 5]}, "rise from 0"),
        (tokens(1, 6), {"offsets": []}, "rise from 0"),
        (tokens(2, 3), {"phase": "training"}, "train, prefill, decode"),
        (tokens(2, 3), {"total_lengths": [1, 2, 3]}, "3 numbers where 2"),
        (tokens(2, 3), {"cache": growing(3)}, "holds 3 sequences, the call has 2"),
    ],
)
def test_inputs_that_do_not_fit_are_refused_with_what_is_wrong(inputs, options, complaint):
    with pytest.raises(ValueError, match=complaint):
        Batch.of(inputs, **options)


def test_a_full_cache_is_refused_before_anything_is_computed():
    cache = stored(growing(2, 10), [8, 3])
    Batch.of(tokens(2, 2), cache)
    with pytest.raises(CacheError, match=r"11 tokens .* max_length 10") as caught:
        Batch.of(tokens(2, 3), cache)
    assert caught.value.code == "A508"
    endless = Cache([LayerPlan((Slots(0, 0, Ring(2, 4)),), 2, 2)], 1, 10)
    Batch.of(tokens(1, 1000), endless)


@given(
    st.integers(1, 3), st.integers(2, 8), st.lists(st.integers(0, 12), min_size=1, max_size=4), st.integers(0, 2**31), st.data()
)
def test_a_short_convolution_in_pieces_equals_a_plain_one_over_each_sequence(sequences, n, calls, seed, data):
    torch.manual_seed(seed)
    schedule = [data.draw(st.lists(st.integers(0, size), min_size=sequences, max_size=sequences)) for size in calls]
    totals = [sum(call[s] for call in schedule) for s in range(sequences)]
    weight = torch.randn(3, n, dtype=torch.float64)
    texts = [torch.randn(total, 3, dtype=torch.float64) for total in totals]
    state, done, found = None, [0] * sequences, [[] for _ in totals]
    for call in schedule:
        batch = Batch.of(tokens(1, sum(call)), offsets=[sum(call[:s]) for s in range(sequences + 1)])[1]
        x = torch.cat([text[at : at + size] for text, at, size in zip(texts, done, call, strict=True)])
        y, state = depthwise(x, weight, batch, state)
        assert state.shape == (sequences, n - 1, 3)
        for s, piece in enumerate(torch.split(y, call)):
            found[s].append(piece)
            done[s] += call[s]
    for text, pieces in zip(texts, found, strict=True):
        padded = torch.nn.functional.pad(text.T, (n - 1, 0)).unsqueeze(0)
        wanted = torch.nn.functional.conv1d(padded, weight.unsqueeze(1), groups=3)[0].T if len(text) else text
        torch.testing.assert_close(torch.cat(pieces), wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("sizes", [(40, 40), (2, 2, 2), (3, 6)])
def test_a_short_convolution_of_equal_texts_has_the_bits_of_shifted_ones_and_keeps_what_is_asked_for(sizes):
    torch.manual_seed(0)
    batch = Batch.of(tokens(1, sum(sizes)), offsets=[0, *accumulate(sizes)])[1]
    given = [torch.randn(*shape, requires_grad=True) for shape in ((sum(sizes), 3), (3, 4))]
    zeros = torch.zeros(len(sizes), 3, 3)
    (plain, kept), (taps, none) = depthwise(*given, batch, zeros), depthwise(*given, batch, keep=False)
    assert none is None
    assert kept.shape == zeros.shape
    assert torch.equal(taps, plain)
    by = torch.randn_like(taps)
    for ours, theirs in zip(*(torch.autograd.grad(y, given, by) for y in (taps, plain)), strict=True):
        assert torch.equal(ours, theirs)


def test_a_short_convolution_never_reads_another_sequence_or_its_unused_state():
    layer = ShortConv(2, 4).double()
    torch.nn.init.normal_(layer.weight)
    x = torch.randn(9, 2, dtype=torch.float64)
    batch = Batch.of(tokens(1, 9), offsets=[0, 4, 9])[1]
    before, _ = layer(x, batch)
    poisoned = x.clone()
    poisoned[:4] = float("nan")
    after, state = layer(poisoned, batch)
    assert torch.equal(after[4:], before[4:])
    assert state[1].isfinite().all()
