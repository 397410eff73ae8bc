"""Solvers against all that could be answered."""

from __future__ import annotations

import itertools
import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attnc.tune.knapsack import exact, hull, hull_of_worst, sums, within
from attnc.tune.reuse import reuse

NUMBERS = st.integers(-8, 40).map(lambda number: number / 4)
OPTION = st.tuples(NUMBERS, st.integers(0, 30).map(float), st.integers(0, 30).map(float))
SITES = st.lists(st.lists(OPTION, min_size=1, max_size=4), min_size=1, max_size=5)


def brute(sites, column, limits):
    """The least sum of a column over all combinations that keep the limits."""
    every = (sums(sites, picks) for picks in itertools.product(*(range(len(site)) for site in sites)))
    return min((totals[column] for totals in every if within(totals, limits)), default=None)


@settings(max_examples=30, deadline=None)
@given(SITES, st.integers(0, 90), st.integers(0, 90))
def test_the_exact_solver_finds_the_least_sum_of_all_combinations(sites, first, second):
    limits = {1: float(first), 2: float(second)}
    best, found = brute(sites, 0, limits), exact(sites, 0, limits)
    assert (found is None) == (best is None)
    if found is not None:
        assert within(found.sums, limits)
        assert found.sums == sums(sites, found.picks)
        assert found.sums[0] == pytest.approx(best, abs=1e-6)


@settings(max_examples=30, deadline=None)
@given(SITES, st.integers(0, 90), st.integers(0, 90))
def test_the_hull_keeps_limits_and_its_bound_is_below_the_best(sites, first, second):
    limits = {1: float(first), 2: float(second)}
    best, found = brute(sites, 0, limits), hull(sites, 0, limits)
    if found is not None:
        assert within(found.sums, limits)
        assert found.bound - 1e-6 <= best <= found.sums[0] + 1e-9
    if best is None:
        assert found is None


@settings(max_examples=25, deadline=None)
@given(SITES, st.integers(0, 90))
def test_the_worst_of_two_sums_is_made_least(sites, limit):
    every = (sums(sites, picks) for picks in itertools.product(*(range(len(site)) for site in sites)))
    best = min((max(one[:2]) for one in every if within(one, {2: limit})), default=None)
    found, near = exact(sites, (0, 1), {2: float(limit)}), hull_of_worst(sites, (0, 1), {2: float(limit)})
    assert (found is None) == (best is None)
    if found is not None:
        assert max(found.sums[:2]) == pytest.approx(best, abs=1e-6)
        assert within(found.sums, {2: limit})
    if near is not None:
        assert near.bound - 1e-6 <= best <= max(near.sums[:2]) + 1e-9


def test_eighty_layers_of_eight_groups_and_twelve_candidates_take_less_than_two_seconds():
    draw = random.Random(0)
    kept = [64, 128, 256, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192]
    sites = [[(draw.random() * 50 / keys**0.7, keys, keys**0.9 + draw.random()) for keys in kept] for _ in range(640)]
    limits = {1: 0.25 * 640 * 8192, 2: 0.3 * 640 * 8192**0.9}
    began = time.process_time()
    found = exact(sites, 0, limits, gap=1e-4)
    assert time.process_time() - began < 2
    check = hull(sites, 0, limits)
    assert check.sums[0] >= found.sums[0] * (1 - 1e-4)
    assert check.gap(0) < 0.02


def ways(layers):
    """Every assignment of sources: a layer chooses, or takes the choice of the nearest that does."""
    for chosen in itertools.product([True, False], repeat=layers - 1):
        path, source = [0], 0
        for layer, chooses in enumerate(chosen, 1):
            source = layer if chooses else source
            path.append(source)
        yield tuple(path)


def worth(path, similarity, threshold, dense):
    """(layers that choose, minus the similarity of the others), or None if some may not reuse."""
    taken = [(source, layer) for layer, source in enumerate(path) if source != layer]
    if any(layer in dense or similarity[source][layer] < threshold for source, layer in taken):
        return None
    return len(path) - len(taken), -sum(similarity[source][layer] for source, layer in taken)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 7), st.sampled_from([0.2, 0.5, 0.85]))
def test_reuse_finds_the_best_of_all_assignments(seed, layers, threshold):
    draw = random.Random(seed)
    similarity = [[draw.randint(0, 20) / 20 for _ in range(layers)] for _ in range(layers)]
    dense = {layer for layer in range(layers) if draw.random() < 0.2}
    best = min(value for path in ways(layers) if (value := worth(path, similarity, threshold, dense)) is not None)
    assert worth(reuse(similarity, threshold, dense), similarity, threshold, dense) == pytest.approx(best)
