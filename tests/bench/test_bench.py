"""`attnc bench` on a CPU: what is timed, and how times are taken."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from benched import LENGTH, QUICK, TEXT, made, rows

import attnc
from attnc.bench import timing
from attnc.bench import work as works
from attnc.bench.launches import launches, open_folder


def test_each_distinct_launch_is_found_once_with_its_layers_and_sizes(known):
    assert list(known) == [
        "full",
        "sink(4) | window(16)",
        "full, window(8)",
        "window(16) | power_of_two(8)",
        "window(12)",
        "full both ways",
        "window(20)",
    ]
    assert known["full"].layers == (0, 3)
    mixed = known["full, window(8)"]
    assert (mixed.layers, mixed.heads, mixed.kv_heads, mixed.key_width, mixed.value_width) == ((2,), 4, 2, 16, 16)
    assert [launch.sink_logit for launch in known.values()] == [False, False, False, False, True, False, False]


def test_a_launch_that_no_kernel_says_is_named_with_the_reason(tmp_path):
    text = TEXT.replace("7: window(20)", "7: window(20) { positions = consecutive }")
    attnc.build(attnc.check(text), tmp_path / "built")
    found, skipped = launches(open_folder(tmp_path / "built"))
    assert [one.words for one in skipped] == ["window(20)"]
    assert "consecutive" in skipped[0].reason or skipped[0].reason.startswith("its weights are no softmax")
    assert "window(20)" not in [one.words for one in found]


def test_mixers_that_are_no_launches_are_named_once(tmp_path):
    text = TEXT.split("layers {", maxsplit=1)[0].replace("layers = 8", "layers = 3")
    attnc.build(attnc.check(text + "layers { all: conv(3) + window(9) }\n"), tmp_path / "built")
    found, skipped = launches(open_folder(tmp_path / "built"))
    assert [launch.words for launch in found] == ["window(9)"]
    assert [(one.name, one.reason) for one in skipped] == [("conv", "there are no generated kernels of `conv`")]


@pytest.mark.parametrize("phase", works.PHASES)
def test_work_is_counted_as_the_masks_show_it(known, phase):
    for launch in known.values():
        if phase == "decode" and not launch.mix.form.causal:
            continue
        work = made(launch, phase)
        j = torch.arange(LENGTH)
        i = j[-1:] if phase == "decode" else j
        shown = sum(
            int(work.visible(group, i, j).sum()) * (group.last - group.first + 1) * launch.repeat for group in work.groups
        )
        assert work.pairs == 2 * shown
        assert work.flops == 2 * work.pairs * 32 * (2.5 if phase == "backward" else 1)
        assert work.bytes == (2 * shown / launch.repeat + 2 * launch.heads) * 32 * 4


def test_a_layer_that_looks_ahead_does_not_decode(known):
    launch = next(one for one in known.values() if not one.mix.form.causal)
    assert works.make(launch, "decode", LENGTH, 1, torch.float32, torch.device("cpu")) == (
        "a layer that looks ahead does not decode"
    )


def test_layers_of_two_rules_that_do_the_same_are_one_launch(tmp_path):
    text = TEXT.replace("layers = 8", "layers = 3").split("layers {")[0]
    attnc.build(attnc.check(text + "layers { 0: full, 1: full { rope = 500000 }, 2: window(9) }\n"), tmp_path / "built")
    assert [launch.layers for launch in launches(open_folder(tmp_path / "built"))[0]] == [(0, 1), (2,)]


class Counting:
    """A clock whose calls take the seconds that they return."""

    def __init__(self):
        self.order = []

    def prepare(self, call):
        return call()

    def start(self, call):
        seconds = call()
        self.order.append(seconds)
        return lambda: (seconds, seconds / 2)


def test_times_are_taken_in_turns_for_as_long_as_was_asked():
    watch = Counting()
    found = timing.interleaved({"a": lambda: 1.0, "b": lambda: 2.0, "c": lambda: 3.0}, watch, 60.0)
    assert watch.order == [1.0, 2.0, 3.0] * 10
    assert found["b"] == timing.Times(2.0, 2.0, 2.0, 1.0, 10)
    few = timing.interleaved({"a": lambda: 100.0}, Counting(), 1.0)
    many = timing.interleaved({"a": lambda: 1e-9}, Counting(), 1.0)
    assert (few["a"].rounds, many["a"].rounds) == timing.ROUNDS


def test_a_time_is_the_median_of_its_rounds_with_the_least_and_the_most():
    numbers = iter([9.0, 5.0, 1.0, 7.0, 3.0, 2.0])
    found = timing.interleaved({"a": lambda: next(numbers)}, Counting(), 1.0)
    assert found["a"] == timing.Times(3.0, 1.0, 7.0, 1.5, 5)


def test_a_row_says_rate_share_and_ratio(known):
    options = replace(QUICK, against=("planned", "sdpa", "torch"))
    for phase in works.PHASES:
        found = rows(known, options, phase=phase)
        names = [(result.name, result.ours) for result in found.results]
        assert names == [("torch", True), ("triton", False), ("planned", False), ("sdpa", False)]
        ours, kernels, planned, library = found.results
        assert (planned.status, planned.reason) == ("refused", "is torch")
        assert (kernels.status, kernels.reason) == ("refused", "generated kernels need a GPU")
        for result in (ours, library):
            timed = result.timed
            assert timed.least <= timed.median <= timed.most
            amount = found.bytes if phase == "decode" else found.flops
            assert timed.rate == pytest.approx(amount / timed.median)
            assert timed.share == pytest.approx(timed.rate / 1e9)
            assert timed.ratio == pytest.approx(timed.median / ours.timed.median)
            assert all(timed.errors[name] <= timed.allowed[name] for name in timed.errors)
        assert (library.setup is not None) == (phase != "decode")
