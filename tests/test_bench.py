"""`attnc bench` on a CPU: who takes part, what is compared, how times are taken, and what is printed."""

from __future__ import annotations

import json
import sys
import types
import warnings
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import attnc
from attnc import cli
from attnc.bench import exact, fields, flex, libraries, plot, report, run, sdpa, seeing, table, timing
from attnc.bench import work as works
from attnc.bench.launches import launches, open_folder
from attnc.bench.peers import PACKED, Provided, inputs
from attnc.cli import bench as command
from attnc.cli.schema import SCHEMAS, schema_of
from attnc.compiler.data import from_json

TEXT = """model tiny {
  vocab = 64, dim = 64, layers = 8, heads = 4, kv_heads = 2, norm = rms(1e-6), ffn = swiglu(64), rope = 10000
}
layers {
  [0, 3]: full
  1: sink(4) | window(16)
  2: heads { 0: full, else: window(8) }
  4: window(16) | power_of_two(8)
  5: window(12) { sink_logit = learned }
  6: full { causal = false }
  7: window(20)
}
"""
CAPPED = "model capped { vocab = 64, dim = 32, layers = 1, heads = 2, norm = rms(1e-6), ffn = swiglu(32), score_cap = 5 }\n"
CAPPED += "layers { all: window(9) }\n"
LENGTH = 48
QUICK = run.Options((LENGTH,), works.PHASES, ("sdpa",), 2, torch.float32, torch.device("cpu"), 0.001)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("bench") / "tiny"
    attnc.build(attnc.check(TEXT), place)
    return place


@pytest.fixture(scope="module")
def known(folder):
    found, skipped = launches(open_folder(folder))
    assert skipped == []
    return {launch.words + " both ways" * (not launch.mix.form.causal): launch for launch in found}


@pytest.fixture(scope="module")
def capped(tmp_path_factory):
    place = tmp_path_factory.mktemp("bench") / "capped"
    attnc.build(attnc.check(CAPPED), place)
    return launches(open_folder(place))[0][0]


@pytest.fixture
def attnc_run(capsys):
    def invoke(*arguments):
        code = cli.invoke([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return invoke


def made(launch, phase, *, length=LENGTH, batch=2, dtype=torch.float32):
    found = works.make(launch, phase, length, batch, dtype, torch.device("cpu"))
    assert not isinstance(found, str), found
    return found


def rows(known, options=QUICK, peers=None, launch="sink(4) | window(16)", phase="forward"):
    peers = fields.SOFTMAX.participants(known[launch], options.device, options.against) if peers is None else peers
    ceiling = timing.Roof(1e9, 1e9)
    return run.row(known[launch], phase, LENGTH, peers, options, ceiling, timing.HostClock(), lambda line: None)


# --- what there is to time


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
    assert [(one.name, one.reason) for one in skipped] == [
        ("conv", "no kernel family says this yet; its reference is plain PyTorch")
    ]


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


# --- what is right


def dense(work, group, head, sequence):
    """q, k, v and the mask of one KV head of a sequence, from the formulas of reference.py."""
    if work.phase == "decode":
        run_ = work.part.read(group.first, group.last, sequence)
        j = torch.cat([torch.arange(one.start, one.start + one.k.shape[2]) for one in run_])
        k, v = (torch.cat(x, 2)[0, head - group.first] for x in ([one.k for one in run_], [one.v for one in run_]))
        return work.q[sequence], k, v, work.visible(group, torch.tensor([LENGTH - 1]), j)
    place = slice(sequence * LENGTH, (sequence + 1) * LENGTH)
    i = torch.arange(LENGTH)
    return work.q[place], work.k[place, head], work.v[place, head], work.visible(group, i, i)


@pytest.mark.parametrize("phase", works.PHASES)
def test_the_answer_is_autograd_of_dense_attention_in_float64(known, phase):
    for launch in known.values():
        if phase == "decode" and not launch.mix.form.causal:
            continue
        work = made(launch, phase)
        right = exact.answer(work)
        rows_ = len(right.sample.positions)
        for at, sequence in enumerate(right.sample.sequences):
            for group in work.groups:
                for head in range(group.first, group.last + 1):
                    q, k, v, seen = dense(work, group, head, sequence)
                    for member in range(launch.repeat):
                        mine = head * launch.repeat + member
                        own = slice(at * rows_, (at + 1) * rows_)
                        places = [0] if phase == "decode" else list(right.sample.positions)
                        q_, k_, v_ = (x.double().requires_grad_() for x in (q[..., mine, :], k, v))
                        q_ = q_.view(-1, q_.shape[-1])
                        logits = (q_ @ k_.T * launch.mix.scale).masked_fill(~seen, -torch.inf)
                        if work.sink_logit is not None:
                            sink = work.sink_logit[mine].double().expand(len(logits), 1)
                            logits = torch.cat((logits, sink), 1)
                        o = logits.softmax(1)[:, : len(k)] @ v_
                        torch.testing.assert_close(right.exact["o"][own, mine], o[places], rtol=1e-12, atol=1e-12)
                        if phase == "backward":
                            grad = torch.zeros_like(o)
                            grad[places] = work.o_grad[sequence * LENGTH :][places, mine].double()
                            (q_grad,) = torch.autograd.grad(o, q_, grad)
                            torch.testing.assert_close(right.exact["q"][own, mine], q_grad[places], rtol=1e-10, atol=1e-12)


def test_gradients_of_keys_values_and_sinks_are_those_of_autograd():
    torch.manual_seed(0)
    q, k, v = (torch.randn(n, 8, dtype=torch.float64, requires_grad=True) for n in (10, 30, 30))
    sink = torch.randn(10, 1, dtype=torch.float64, requires_grad=True)
    seen, grad = torch.rand(10, 30) < 0.5, torch.randn(10, 8, dtype=torch.float64)
    for cap in (None, 2.0):
        for with_sink in (False, True):
            logits = q @ k.T * 0.3
            logits = logits if cap is None else cap * torch.tanh(logits / cap)
            logits = logits.masked_fill(~seen, -torch.inf)
            weight = (torch.cat((logits, sink), 1) if with_sink else logits).softmax(1)[:, :30]
            leaves = {"q": q, "k": k, "v": v} | ({"sink_logit": sink} if with_sink else {})
            want = dict(zip(leaves, torch.autograd.grad(weight @ v, list(leaves.values()), grad), strict=True))
            plain = [x.detach() for x in (q, k, v)]
            got = exact.attention(*plain, seen, 0.3, cap, sink.detach() if with_sink else None, grad, None)
            torch.testing.assert_close(got["o"], (weight @ v).detach())
            for name, value in want.items():
                torch.testing.assert_close(got[name].view_as(value), value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["torch", "reference", "sdpa"])
def test_who_is_right_is_found_right_in_every_phase(known, capped, name, dtype):
    peer = libraries.PEERS[name]
    for launch in (*known.values(), capped):
        for phase in works.PHASES:
            if (phase == "decode" and not launch.mix.form.causal) or (phase == "backward" and name == "reference"):
                continue
            work = made(launch, phase, dtype=dtype)
            if peer.refuse(work) is not None:
                assert name == "sdpa"
                continue
            right = exact.answer(work)
            errors = exact.errors(work, right, run.outcome(work, peer.prepare(work), right))
            assert set(errors) == set(right.allowed)
            assert all(errors[part] <= right.allowed[part] for part in errors), (launch.words, phase, errors, right.allowed)


@pytest.fixture(scope="module")
def reweighed(tmp_path_factory):
    place = tmp_path_factory.mktemp("bench") / "reweighed"
    attnc.build(
        attnc.check(CAPPED.replace("{ all: window(9) }", "{ all: window(9) { score = softplus(exponent = 3) } }")), place
    )
    return launches(open_folder(place))[0][0]


@pytest.mark.parametrize("phase", works.PHASES)
def test_softplus_scores_are_timed_beside_who_has_them(reweighed, phase):
    assert (reweighed.plain, reweighed.exponent) == (False, 3.0)
    found = rows({"it": reweighed}, replace(QUICK, against=("planned", "sdpa", "flex", "torch")), launch="it", phase=phase)
    said = {result.name: (result.status, result.reason) for result in found.results}
    assert said == {
        "reference": ("timed", None),
        "triton": ("refused", "generated kernels need a GPU"),
        "planned": ("refused", "is reference"),
        "sdpa": ("refused", "has no such score"),
        "flex": ("refused", said["flex"][1]),
        "torch": ("refused", "has no such score"),
    }
    work = made(reweighed, phase)
    right = exact.answer(work)
    theirs = run.outcome(work, libraries.PEERS["reference"].prepare(work), right)
    errors = exact.errors(work, right, theirs | {"o": theirs["o"] * 1.001})
    assert errors["o"] > right.allowed["o"]


@dataclass(frozen=True)
class Odd:
    """A participant that is right but for what `change` does to its result."""

    change: object
    name: str = "odd"

    def refuse(self, work):
        return None

    def prepare(self, work):
        prepared = Provided("torch").prepare(work)
        return replace(prepared, run=lambda **given: self.change(prepared.run(**given)))


class Silent(torch.autograd.Function):
    """The identity with a gradient that is off by a thousandth."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad * 1.001


@pytest.mark.parametrize("phase", works.PHASES)
def test_a_wrong_participant_is_not_timed(known, phase):
    found = rows(known, peers=[Odd(lambda o: o * 1.001)], phase=phase)
    (result,) = found.results
    assert (result.status, result.timed) == ("wrong", None)
    assert result.reason.startswith("wrong: the result is off by ")


def test_a_wrong_gradient_is_not_timed(known):
    (result,) = rows(known, peers=[Odd(Silent.apply)], phase="backward").results
    assert result.status == "wrong"
    assert result.reason.startswith("wrong: the gradient of ")


def test_numbers_that_are_none_are_wrong(known):
    (result,) = rows(known, peers=[Odd(lambda o: o * torch.nan)]).results
    assert result.status == "wrong"


def test_one_that_fails_or_runs_out_of_memory_has_a_row_and_the_others_go_on(known):
    def full(o):
        raise torch.OutOfMemoryError("tried to allocate 3 GiB\nand so on")

    def later(o, calls=[]):  # noqa: B006
        calls.append(1)
        if len(calls) > 3:
            raise RuntimeError("no kernel image\nmore")
        return o

    peers = [libraries.PEERS["torch"], Odd(full, "full"), Odd(later, "later"), libraries.PEERS["sdpa"]]
    found = {result.name: result for result in rows(known, peers=peers).results}
    assert [found[name].status for name in ("torch", "full", "later", "sdpa")] == ["timed", "out of memory", "failed", "timed"]
    assert found["full"].reason == "out of memory"
    assert found["later"].reason == "fails: no kernel image"
    assert found["torch"].timed.ratio == 1


def test_our_own_mistakes_are_not_taken_for_a_participants(known):
    def mistaken(o):
        raise AssertionError

    with pytest.raises(AssertionError):
        rows(known, peers=[Odd(mistaken)])


# --- times


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


# --- other libraries


def test_each_says_why_it_cannot(known, capped):
    def why(name, launch, phase="forward", **rest):
        return libraries.PEERS[name].refuse(made(launch, phase, **rest))

    window, full = known["window(20)"], known["full"]
    assert why("sdpa", full) is None
    assert why("sdpa", known["window(12)"]) == "has no logit without a value"
    assert why("sdpa", capped) == "has no soft cap"
    assert why("cudnn", full) == "runs on GPUs"
    assert why("flex", window) == "is compiled for GPUs"
    assert "not installed" in why("fa4", window)


def test_a_mask_that_takes_too_much_is_refused_and_not_made(known, monkeypatch):
    monkeypatch.setattr(sdpa, "MASK_BYTES", LENGTH * LENGTH)
    assert libraries.PEERS["sdpa"].refuse(made(known["window(20)"], "forward")) is None
    refused = libraries.PEERS["sdpa"].refuse(made(known["full, window(8)"], "forward"))
    assert refused.startswith("its dense mask would take ")
    assert libraries.PEERS["sdpa"].refuse(made(known["full, window(8)"], "decode")) is None


def test_windows_are_told_from_other_key_sets(known):
    found = {words: seeing.window(made(launch, "forward")) for words, launch in known.items()}
    assert found == {
        "full": (None, None),
        "sink(4) | window(16)": None,
        "full, window(8)": None,
        "window(16) | power_of_two(8)": None,
        "window(12)": (11, 0),
        "full both ways": (None, None),
        "window(20)": (19, 0),
    }


def test_flex_masks_and_dense_masks_are_those_of_the_reference(known):
    for launch in known.values():
        work = made(launch, "forward")
        mask, dense_ = seeing.mask_of(work), seeing.dense_mask(work)
        i = torch.arange(LENGTH)
        for head in range(launch.heads):
            group = next(one for one in work.groups if one.first <= head // launch.repeat <= one.last)
            want = work.visible(group, i, i)
            got = mask(torch.tensor(0), torch.tensor(head), i[:, None], i[None, :])
            assert torch.equal(got, want)
            assert torch.equal(dense_ if dense_.dim() == 2 else dense_[head], want)


@pytest.mark.parametrize("phase", ["forward", "decode"])  # torch has no backward pass of it on a CPU
def test_flex_is_right_where_it_is_not_compiled(known, capped, phase):
    peer = flex.Flex(compiled=False)
    for launch in (*known.values(), capped):
        if phase == "decode" and not launch.mix.form.causal:
            continue
        work = made(launch, phase)
        assert peer.refuse(work) is None
        right = exact.answer(work)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it says that it is slow when it is not compiled
            prepared = peer.prepare(work)
            errors = exact.errors(work, right, run.outcome(work, prepared, right))
        assert all(errors[part] <= right.allowed[part] for part in errors), (launch.words, errors)
        assert (prepared.setup is None) == (phase == "decode" or not work.form.causal)


def test_heads_that_see_different_keys_may_be_split_between_libraries(known):
    peer = flex.Split(compiled=False)
    assert peer.refuse(made(known["window(20)"], "forward")) == "is for layers whose heads see different keys"
    assert peer.refuse(made(known["full, window(8)"], "decode")) == "is what all others do while decoding"
    work = made(known["full, window(8)"], "forward")
    assert flex.Split().refuse(work) == "is compiled for GPUs"
    right = exact.answer(work)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        errors = exact.errors(work, right, run.outcome(work, peer.prepare(work), right))
    assert errors["o"] <= right.allowed["o"]


def flash_attn_func(q, k, v, softmax_scale, causal=False, window_size=(None, None)):
    """flash_attn.cute's signature; q [B, N, H, D]."""
    i, j = torch.arange(q.shape[1])[:, None] + k.shape[1] - q.shape[1], torch.arange(k.shape[1])[None]
    back, ahead = window_size
    seen = (j <= i) | torch.tensor(not causal)
    seen = seen if back is None else seen & (i - j <= back)
    seen = seen if ahead is None else seen & (j - i <= ahead)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    o = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=softmax_scale, enable_gqa=True)
    return o.transpose(1, 2), None


@pytest.mark.parametrize("phase", works.PHASES)
def test_flash_attention_4_is_called_as_it_wants(known, monkeypatch, phase):
    monkeypatch.setitem(sys.modules, "flash_attn.cute", types.SimpleNamespace(flash_attn_func=flash_attn_func))
    for words in ("full", "window(20)", *(["full both ways"] if phase != "decode" else [])):
        work = made(known[words], phase)
        right = exact.answer(work)
        prepared = libraries.FlashAttention4().prepare(work)
        errors = exact.errors(work, right, run.outcome(work, prepared, right))
        assert all(errors[part] <= right.allowed[part] for part in errors), (words, errors)


def test_what_is_given_in_another_layout_is_the_same_numbers(known):
    work = made(known["window(20)"], "forward")
    from attnc.bench.peers import HEADS_FIRST, TOKENS_FIRST

    for layout in (PACKED, HEADS_FIRST, TOKENS_FIRST):
        assert torch.equal(layout.pack(inputs(work, layout)["k"]), work.k)
    assert inputs(work, HEADS_FIRST)["q"].shape == (2, 4, LENGTH, 16)
    assert inputs(work, TOKENS_FIRST)["q"].shape == (2, LENGTH, 4, 16)


def test_what_is_planned_takes_part_where_it_is_another(known):
    launch = known["window(20)"]
    other = replace(launch, planned={"cpu": {"prefill": "reference", "train": "torch", "decode": "torch"}, "cuda": {}})
    peers = [libraries.PEERS["torch"], libraries.PEERS["planned"]]
    found = rows({"other": other}, peers=peers, launch="other")
    assert found.planned == "reference"
    assert [result.status for result in found.results] == ["timed", "timed"]


def test_a_launch_whose_heads_are_planned_apart_runs_so(known):
    apart = (("torch", 0, 0), ("reference", 1, 1))
    launch = replace(
        known["full, window(8)"], planned={"cpu": {"prefill": apart, "train": "torch", "decode": apart}, "cuda": {}}
    )
    for phase in ("forward", "decode"):
        found = rows({"apart": launch}, peers=[libraries.PEERS["planned"]], launch="apart", phase=phase)
        assert found.planned == "torch on kv heads 0..0 and reference on 1..1"
        assert [result.status for result in found.results] == ["timed"]


def test_heads_whose_keys_are_kept_apart_are_compared_and_decoded_apart(tmp_path):
    """What decoding keeps is the most that any phase or length sees, so heads that see alike may be kept apart."""
    text = TEXT.split("layers {", maxsplit=1)[0].replace("layers = 8", "layers = 1")
    text += "layers { all: when { length < 4096: window(8), else: heads { 0: full, else: window(8) } } }\n"
    attnc.build(attnc.check(text), tmp_path / "built")
    (launch,), _ = launches(open_folder(tmp_path / "built"))
    work = made(launch, "decode")
    assert [(first, last) for first, last, _ in work.spans] == [(0, 0), (1, 1)]
    for name in ("torch", "sdpa"):
        right = exact.answer(work)
        errors = exact.errors(work, right, run.outcome(work, libraries.PEERS[name].prepare(work), right))
        assert errors["o"] <= right.allowed["o"]


# --- the command


ARGUMENTS = ("--length", "32,64", "--seconds", "0.001", "--against", "sdpa,flex,fla,fa4", "--phases", "forward,decode")


def test_a_report_is_of_the_shape_of_its_schema_and_says_all_that_was_asked(folder, attnc_run):
    code, out, err = attnc_run("bench", folder, *ARGUMENTS, "--json")
    assert code == 0
    found = from_json(report.BenchReport, out)
    assert set(json.loads(out)) == set(schema_of("bench")["properties"])
    assert SCHEMAS["bench"][1] == "BenchReport"
    assert found.machine.torch == torch.__version__
    assert (found.dtype, found.machine.capability) == ("float32", None)
    assert [(row.phase, row.length) for row in found.rows[:4]] == [
        ("forward", 32),
        ("forward", 64),
        ("decode", 32),
        ("decode", 64),
    ]
    names = {tuple(result.name for result in row.results) for row in found.rows if row.reason is None}
    assert names == {("torch", "triton", "sdpa", "flex", "fa4")}
    assert [row.reason for row in found.rows if not row.results] == ["a layer that looks ahead does not decode"] * 2
    assert "no GPU here; 32, 64 tokens in float32 on the CPU" in err
    assert "timed in turns" in err


def test_the_table_fits_a_terminal(known):
    facts = report.Machine(device="A GPU", capability="sm_90", driver=None, torch="2.11.0+cu130", triton="3.6.0", python="3.12",
                           attnc="0.1.0", commit="0123456789abcdef")  # fmt: skip
    found = [rows(known, launch=words, phase=phase) for words in known for phase in works.PHASES]
    found[1] = replace(found[1], words="window(4096) | " * 12 + "full", length=1048576)
    whole = report.BenchReport(
        command=("attnc", "bench"), file="x", machine=facts, dtype="bfloat16",
        ceiling=report.Ceiling(flops=7.1e14, bandwidth=4e12), rows=tuple(found),
        skipped=(report.Skip(launch="Conv", words="conv(3)", reason="no kernel " * 12),),
    )  # fmt: skip
    text = table.header_text(whole) + table.skipped_text(whole)
    text += "".join(map(table.row_text, found, (None, *found)))
    assert max(map(len, text.splitlines())) <= 80
    assert "products 710 TFLOP/s, copies 4 TB/s" in text
    assert "triton    generated kernels need a GPU" in text


def stopped(row):
    yield row
    raise KeyboardInterrupt


def test_a_spec_is_built_on_the_way_and_ours_being_wrong_ends_with_1(tmp_path, attnc_run, monkeypatch):
    path = tmp_path / "one.attn"
    path.write_text(TEXT.replace("layers = 8", "layers = 1").split("layers {")[0] + "layers { all: window(9) }\n")
    words = ("bench", path, "--length", "24", "--seconds", "0.001", "--phases", "forward", "--against", "")
    code, out, _ = attnc_run(*words)
    assert code == 0
    assert "* torch" in out
    with monkeypatch.context() as patched:  # a run that is stopped keeps the rows that it has
        several = run.run
        patched.setattr(run, "run", lambda *given: stopped(next(several(*given))))
        code, out, _ = attnc_run(*words)
    assert code == 130
    assert "* torch" in out
    monkeypatch.setitem(libraries.PEERS, "torch", Odd(lambda o: o * 1.001, "torch"))
    code, out, _ = attnc_run(*words)
    assert code == 1
    assert "wrong: the result is off by" in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--against", "sdpa,fa3"], "--against does not know fa3"),
        (["--phases", "sideways"], "--phases does not know sideways"),
        (["--phases", ","], "--phases names none"),
        (["--length", "4k"], "--length 4k is no number of tokens"),
        (["--length", "0"], "--length 0 is no number of tokens"),
        (["--dtype", "fp4"], "there is no number type fp4"),
    ],
)
def test_a_slip_is_said_before_anything_runs(folder, attnc_run, words, said):
    code, out, err = attnc_run("bench", folder, *words)
    assert (code, out) == (2, "")
    assert said in err


def test_a_picture_without_matplotlib_says_how_to_get_it(folder, attnc_run, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    code, out, err = attnc_run("bench", folder, "--plot", "out.png")
    assert (code, out) == (4, "")
    assert "pip install 'attnc[plot]'" in err


def test_the_command_knows_the_same_words_as_the_bench():
    assert set(fields.AGAINST) == set(command.AGAINST)
    assert command.PHASES == works.PHASES
    assert set(command.USUAL.split(",")) <= set(command.AGAINST)
    assert set(plot.ORDER) == {"triton", *fields.AGAINST}


def test_a_picture_has_a_panel_for_each_launch_and_phase(known):
    found = [rows(known, phase=phase) for phase in ("forward", "decode")]
    found.append(replace(found[0], length=2 * LENGTH))
    panels = plot.panels(reversed(found))
    name = known["sink(4) | window(16)"].name
    assert list(panels) == [(name, "forward"), (name, "decode")]
    points = panels[name, "forward"]
    assert set(points) == {"torch", "sdpa"}
    assert [point[0] for point in points["sdpa"]] == [LENGTH, 2 * LENGTH]
    _, median, least, most = points["sdpa"][0]
    assert least <= median <= most
    assert median == 1e3 * next(result.timed.median for result in found[0].results if result.name == "sdpa")


def test_a_picture_is_drawn(folder, attnc_run, tmp_path):
    path = tmp_path / "out.png"
    code, _, err = attnc_run("bench", folder, *ARGUMENTS, "--plot", path)
    assert code == 0
    assert f"drawn in {path}" in err
    assert path.read_bytes().startswith(b"\x89PNG")
    assert Path(path).stat().st_size > 10_000


def test_layers_of_two_rules_that_do_the_same_are_one_launch(tmp_path):
    text = TEXT.replace("layers = 8", "layers = 3").split("layers {")[0]
    attnc.build(attnc.check(text + "layers { 0: full, 1: full { rope = 500000 }, 2: window(9) }\n"), tmp_path / "built")
    assert [launch.layers for launch in launches(open_folder(tmp_path / "built"))[0]] == [(0, 1), (2,)]
