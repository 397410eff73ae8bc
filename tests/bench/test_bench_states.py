"""`attnc bench` of matrix states on a CPU: what is found, what is right, and who is."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import attnc
from attnc import cli
from attnc.bench import fields, run, states_exact, timing
from attnc.bench import states as works
from attnc.bench.launches import open_folder
from attnc.bench.states_peers import StatesProvided

TEXT = """model tiny { vocab = 64, dim = 64, layers = 7, heads = 4, head_dim = 16, norm = rms(1e-6), ffn = none, rope = none }
mix gdn = linear(update = delta, decay = scalar) { qk_heads = 2, value_dim = 24, short_conv = 4, qk_norm = l2 }
mix gdn2 = linear(update = delta, decay = vector, erase = vector, write = vector)
layers {
  [0, 2]: gdn
  1     : gdn2
  3     : linear(decay = slopes)
  4     : linear(feature = elu, normalize = sum)
  5     : window(8)
  6     : linear { causal = false }
}
"""
LENGTH = 83
"""One whole chunk and a part of one."""


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    place = tmp_path_factory.mktemp("bench") / "tiny"
    attnc.build(attnc.check(TEXT), place)
    found, skipped = fields.everything(open_folder(place))
    assert skipped == []
    return {launch.layers: launch for launch in found}


def made(launch, phase, dtype=torch.float32):
    found = works.make(launch, phase, LENGTH, 2, dtype, torch.device("cpu"))
    assert not isinstance(found, str), found
    return found


def causal(known):
    return [one for one in known.values() if isinstance(one, works.StatesLaunch) and one.scan.causal]


def test_each_distinct_launch_of_states_is_found_with_its_sizes(known):
    assert list(known) == [(5,), (0, 2), (1,), (3,), (4,), (6,)]
    gdn = known[0, 2]
    assert (gdn.heads, gdn.kv_heads, gdn.key_width, gdn.value_width, gdn.numbers.q_heads) == (4, 4, 16, 24, 2)
    assert gdn.words == "linear(update = delta, decay = scalar)" or "gdn" in gdn.words
    assert (gdn.numbers.decay, gdn.numbers.erase, gdn.numbers.write) == ((), (), ())
    assert (known[1,].numbers.decay, known[1,].numbers.erase, known[1,].numbers.write) == ((16,), (16,), (16,))
    assert works.make(known[6,], "forward", 8, 1, torch.float32, torch.device("cpu")) == "a layer that looks ahead runs no scan"


@pytest.mark.parametrize("phase", works.RUNTIME)
def test_the_answer_is_that_of_the_formula_in_float64(known, phase):
    """As the folder's own reference gives it, token by token, gradients by autograd."""
    for launch in causal(known):
        work = made(launch, phase)
        right = states_exact.answer(work)
        wide = {name: x if x is None else x.double() for name, x in vars(work).items() if isinstance(x, torch.Tensor | None)}
        exact = replace(work, **{name: wide[name] for name in ("q", "k", "v", "decay", "erase", "write", "before", "total")})
        prepared = StatesProvided("reference").prepare(exact)
        got = run.outcome(exact, prepared, replace(right, o_grad=wide["o_grad"]))
        assert set(got) == set(right.exact)
        for name, error in states_exact.errors(exact, right, got).items():
            assert error <= 1e-12 * (1 + float(right.exact[name].abs().max())), (launch.words, name)
        assert all(allowed > 0 for allowed in right.allowed.values())


@pytest.mark.parametrize("phase", works.RUNTIME)
def test_who_is_right_is_timed_and_who_is_not_is_not(known, phase):
    options = run.Options((LENGTH,), (phase,), ("planned", "fla"), 2, torch.float32, torch.device("cpu"), 0.001)
    ceiling = timing.Roof(1e12, 1e11)
    for launch in causal(known):
        (row,) = run.run([launch], options, ceiling, timing.HostClock(), lambda _: None)
        ours = next(result for result in row.results if result.ours)
        assert (ours.name, ours.status) == ("torch", "timed"), row.results
        assert all(error <= ours.timed.allowed[name] for name, error in ours.timed.errors.items())
        assert {result.name for result in row.results} == {"torch", "triton", "planned", "fla"}
        assert "sdpa" not in {peer.name for peer in fields.field_of(launch).participants(launch, options.device, ("sdpa",))}
    work = made(launch, phase)
    right, prepared = states_exact.answer(work), StatesProvided("torch").prepare(work)
    found = run.outcome(work, prepared, right)
    for name, x in found.items():
        off = states_exact.errors(work, right, {name: x * 1.001})[name]
        assert off > right.allowed[name], name


def test_work_is_counted(known):
    work, launch = made(known[0, 2], "decode"), known[0, 2]
    assert work.flops == 2 * 2 * 4 * 3 * 16 * 24
    tokens = 2 * (2 * 16 + 2 * 16 + 4 * 24 + 4 * 24) + 3 * 2 * 4
    assert launch.numbers.k_heads == 2
    assert work.bytes == 4 * (tokens + 2 * 2 * 4 * 16 * 24)
    assert made(launch, "backward").flops == 2 * made(launch, "forward").flops == 2 * 2 * 2 * LENGTH * 4 * 3 * 16 * 24


def test_the_command_prints_them(tmp_path, capsys):
    path = tmp_path / "tiny.attn"
    path.write_text(TEXT)
    assert cli.invoke(["bench", str(path), "--length", "64", "--phases", "decode", "--seconds", "0.001"]) == 0
    out = capsys.readouterr().out
    assert "4 states of 16 x 24; heads of q, k and v: 2, 2, 4; batch 1" in out
    assert "4 query heads on 4 key and value heads, width 16; batch 1" in out
    assert all(len(line) <= 80 for line in out.splitlines())
