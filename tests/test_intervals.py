"""Intervals say exactly what the reference masks say."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import key_sets

from attnc.compiler.intervals import Intervals, pairs, resolve, union, visible
from attnc.compiler.mixer import Kind
from attnc.compiler.mixers import MIXERS

UNIONS = st.lists(key_sets(), min_size=1, max_size=4)


def reference(kinds: list[Kind], causal: bool, length: int) -> torch.Tensor:
    """The union of the kinds' own masks, [length, length]."""
    i, j = torch.arange(length)[:, None], torch.arange(length)[None]
    mask = torch.zeros(length, length, dtype=torch.bool)
    for kind in kinds:
        mixer = MIXERS[kind.kind]
        assert mixer.mask is not None
        mask |= mixer.mask(i, j, causal=causal, **mixer.sizes(kind, length))
    return mask


def joined(kinds: list[Kind], causal: bool) -> Intervals:
    parts = [MIXERS[kind.kind].intervals(kind, causal) for kind in kinds]
    return union([part for part in parts if part is not None])


def seen(intervals: Intervals, length: int) -> torch.Tensor:
    return visible(torch.arange(length)[:, None], torch.arange(length)[None], resolve(intervals, length))


@given(UNIONS, st.booleans(), st.integers(1, 150))
def test_a_union_of_key_sets_shows_what_their_masks_show(kinds: list[Kind], causal: bool, length: int) -> None:
    assert torch.equal(seen(joined(kinds, causal), length), reference(kinds, causal, length))


@given(UNIONS, st.booleans(), st.integers(1, 100), st.data())
def test_pairs_counts_the_masks_ones(kinds: list[Kind], causal: bool, length: int, data: st.DataObject) -> None:
    queries = data.draw(st.integers(1, length))
    assert pairs(joined(kinds, causal), queries, length) == int(reference(kinds, causal, length)[-queries:].sum())


@given(UNIONS, st.booleans())
def test_the_normal_form_is_a_fixed_point_and_forgets_the_order(kinds: list[Kind], causal: bool) -> None:
    once = joined(kinds, causal)
    assert union([once]) == once
    assert joined(kinds[::-1], causal) == once
    assert joined(kinds + kinds, causal) == once


@given(UNIONS, st.booleans())
def test_the_predicate_on_numbers_is_the_predicate_on_tensors(kinds: list[Kind], causal: bool) -> None:
    numbers = resolve(joined(kinds, causal), 40)
    whole = seen(numbers, 40)
    assert all(bool(visible(i, j, numbers)) == bool(whole[i, j]) for i in (0, 7, 39) for j in range(40))


def test_a_part_that_another_contains_is_dropped() -> None:
    def parts(*kinds: Kind) -> Intervals:
        return joined(list(kinds), causal=True)

    window, sink, block = MIXERS["window"].parameters, MIXERS["sink"].parameters, MIXERS["block_local"].parameters
    stride, power, full = MIXERS["stride"].parameters, MIXERS["power_of_two"].parameters, MIXERS["full"].parameters
    assert parts(full(), window(n=9), sink(n=4), stride(n=3)) == parts(full())
    assert parts(window(n=9), window(n=4)) == parts(window(n=9))
    assert parts(window(n=8, aligned=4), block(n=4)) == parts(window(n=8, aligned=4))
    assert parts(window(n=8, aligned=4), window(n=5)) == parts(window(n=8, aligned=4))
    assert parts(window(n=8, aligned=4), window(n=6)) != parts(window(n=8, aligned=4))
    assert parts(window(n=11), window(n=8, aligned=4)) == parts(window(n=11), window(n=8, aligned=4), block(n=8))
    assert parts(window(n=11), window(n=8, aligned=4)).near == parts(window(n=11)).near
    assert parts(sink(n=2), sink(n=7)).sink == 7
    assert parts(stride(n=4), stride(n=12), stride(n=6)).strides == (4, 6)
    assert parts(power(n=4), window(n=9)) == parts(power(n=4))
    assert parts(power(n=4), window(n=10)) != parts(power(n=4))


def test_sampled_far_rows_stay_close_to_the_count_of_every_row() -> None:
    intervals = Intervals(sink=5, powers=(16,), strides=(7,))
    rows = 2 * 2048 + 17
    exact = sum(pairs(intervals, 1, row + 1) for row in range(rows))
    assert abs(pairs(intervals, rows, rows) / exact - 1) < 1 / 2048
