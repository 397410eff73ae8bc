"""States of single channels: the formula and plain torch equal the sums written out, in outputs, states and gradients."""

from __future__ import annotations

import re

import pytest
import torch
from channel_cases import MEMBERS, ask, given, leaves, narrowed, packed, with_gradients, written_out

from attnc.compiler import families
from attnc.compiler.channel_providers import ChannelLaunch, Task, candidates
from attnc.compiler.cost import Workload
from attnc.compiler.device import shipped
from attnc.compiler.mixers.channels import channel_states
from attnc.runtime import channels, channels_torch
from attnc.runtime.channels import ChannelStates, reference_channels, zero_order_hold
from attnc.runtime.channels_torch import torch_channels
from attnc.runtime.weights import started

SIZES = (9, 0, 1, 6)
"""New tokens of packed sequences; one has none."""


formula = reference_channels(channel_states)


@pytest.mark.parametrize("member", MEMBERS)
@pytest.mark.parametrize(("scan", "turn"), [(formula, True), (torch_channels, True), (torch_channels, False)])
def test_outputs_states_and_gradients_equal_the_sums_written_out(scan, turn, member, monkeypatch):
    monkeypatch.setattr(channels_torch, "LONGEST", 4)  # several chunks, and passes within them
    monkeypatch.setattr(channels_torch, "steps_in_turn", lambda _h: turn)
    one, batch = given(member, sum(SIZES), 3, 2), packed(SIZES)
    for before in (None, ask(torch.randn(len(SIZES), 3, 2, dtype=one.rates.dtype), torch.float64)):
        expected = with_gradients(written_out, one, before, batch)
        found = with_gradients(scan, one, before, batch)
        for ours, theirs in zip([*found[0], *found[1]], [*expected[0], *expected[1]], strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("turn", [True, False])
@pytest.mark.parametrize("member", ["steps and maps of the token", "fixed and complex"])
def test_float32_rounds_no_more_than_the_formula(member, turn, monkeypatch):
    monkeypatch.setattr(channels_torch, "steps_in_turn", lambda _h: turn)
    one, batch = given(member, 200, 8, 4), packed((130, 70))
    exact = with_gradients(written_out, one, None, batch)
    narrow = narrowed(one, torch.float32)
    ours, theirs = (with_gradients(scan, narrow, None, batch) for scan in (torch_channels, formula))
    for mine, their, true in zip(*((*x[0], *x[1]) for x in (ours, theirs, exact)), strict=True):
        assert (mine - true).abs().square().mean() <= 1.5**2 * (their - true).abs().square().mean()


def test_strong_steps_forget_all_and_no_step_keeps_all():
    one, batch = given("steps and maps of the token", 8, 2, 3, torch.float32), packed((8,))
    numbers = [x.detach() for x in leaves(one)]
    u, rates, step, write, read = numbers
    before = torch.ones(1, 2, 3)
    y, state = torch_channels(channels.Channels(u, rates, torch.full_like(step, 1e30), write, read), before, batch)
    assert torch.equal(state[0], u[-1].unsqueeze(1) * write[-1])
    torch.testing.assert_close(y, u * (write * read).sum(1, keepdim=True))
    whole = torch.ones_like(u)
    _, state = torch_channels(channels.Channels(whole, rates, torch.zeros_like(step), None, read), before, batch)
    assert torch.equal(state, torch.full((1, 2, 3), 9.0))
    empty = packed((0, 0))
    y, state = torch_channels(channels.Channels(u[:0], rates, step[:0], write[:0], read[:0]), torch.ones(2, 2, 3), empty)
    assert y.shape == (0, 2)
    assert torch.equal(state, torch.ones(2, 2, 3))


def test_a_sequence_keeps_its_nan_to_itself():
    one = given("steps and maps of the token", 6, 2, 3, torch.float32)
    u = one.u.detach().clone()
    u[0] = float("nan")
    y, state = torch_channels(channels.Channels(u, one.rates, one.step, one.write, one.read), None, packed((2, 4)))
    assert y[:2].isnan().all()
    assert y[2:].isfinite().all()
    assert state[1].isfinite().all()


WRONG = {
    "rates [C, M], got": {"rates": torch.zeros(3, 2)},
    "step is [5, 2], got [4, 2]": {"step": torch.zeros(4, 2)},
    "read is [5, 3], got [5, 2]": {"read": torch.zeros(5, 2)},
    "weights is [2, 3], got [3, 2]": {"weights": torch.zeros(3, 2)},
    "rates are in float32 at least, got bfloat16": {"rates": -torch.ones(2, 3, dtype=torch.bfloat16)},
    "rates -1..-1 times step -2..1": {"step": torch.tensor([[1.0, -2.0]]).expand(5, 2)},
    "rates nan..nan": {"rates": torch.full((2, 3), float("nan"))},
}


@pytest.mark.parametrize("said", WRONG)
def test_what_does_not_fit_is_named(said):
    states = ChannelStates("one", formula=channel_states)
    states.providers["train"] = torch_channels
    given = {"u": torch.ones(5, 2), "rates": -torch.ones(2, 3), "step": torch.ones(5, 2)} | WRONG[said]
    with pytest.raises(ValueError, match=re.escape(said)):
        states(channels.Channels(**given), packed((5,)), None)


def test_providers_ask_for_more_the_longer_a_text_is_and_kernels_refuse_what_they_cannot():
    gpu, cpu = shipped("h100"), shipped("cpu")
    launch = ChannelLaunch(families.Channels(state=16), 8192)

    def asked(launch, device, phase="prefill", length=4096):
        return candidates(Task(launch, phase, device, Workload(length=length)), ())

    (best, *_), _ = asked(launch, gpu)
    assert best.provider == "triton"
    assert asked(launch, gpu, length=8192)[0][0].seconds > 1.5 * best.seconds
    assert asked(launch, gpu, "decode")[0][0].seconds < best.seconds < asked(launch, gpu, "train")[0][0].seconds
    assert [price.provider for price in asked(launch, cpu)[0]] == ["torch", "reference"]
    for family in (families.Channels(state=257), families.Channels(complex_states=True)):
        priced, (refused,) = asked(ChannelLaunch(family, 64), gpu)
        assert (priced[0].provider, refused.provider) == ("torch", "triton")
        assert refused.reason


def test_zero_order_hold_is_the_exact_solution_for_a_constant_input():
    """x' = a x + u with u = 1 has x(t) = (exp(a t) - 1) / a from x(0) = 0; outputs are 2 Re(c x)."""
    draw = torch.Generator().manual_seed(0)
    dt_log, decay_log, frequency, reading = (
        torch.randn(*s, generator=draw, dtype=torch.float64) for s in ((3,), (3, 2), (3, 2), (3, 2, 2))
    )
    rates, weights = zero_order_hold(dt_log, decay_log, frequency, reading)
    y, _ = torch_channels(channels.Channels(torch.ones(5, 3, dtype=torch.float64), rates, weights=weights), None, packed((5,)))
    a = torch.complex(-decay_log.exp(), frequency)
    times = dt_log.exp() * torch.arange(1, 6, dtype=torch.float64).unsqueeze(1)  # [5, 3]
    solution = (torch.exp(times.unsqueeze(-1) * a) - 1) / a
    expected = 2 * (solution * torch.complex(reading[..., 0], reading[..., 1])).sum(-1).real
    torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-12)


def test_weights_start_where_their_papers_start_them():
    counted = started("A_log", (2, 4), ("count", 1.0, 1.0, "log"), 0)
    torch.testing.assert_close(counted.exp(), torch.tensor([[1.0, 2.0, 3.0, 4.0]] * 2))
    steps = torch.nn.functional.softplus(started("dt_bias", (4000,), ("log_even", 1e-3, 1e-1, "inverse_softplus"), 0))
    assert 1e-3 * (1 - 1e-5) <= steps.min() < 1.02e-3
    assert 0.098 < steps.max() <= 1e-1 * (1 + 1e-5)
    assert abs((steps < 1e-2).float().mean() - 0.5) < 0.03, "logarithms are spread evenly"
    rates = started("A_log", (4000,), ("even", 1.0, 16.0, "log"), 0).exp()
    assert abs(rates.mean() - 8.5) < 0.3
    assert torch.equal(rates, started("A_log", (4000,), ("even", 1.0, 16.0, "log"), 0).exp())
