"""Who is right is timed, and nobody else."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from benched import CAPPED, LENGTH, QUICK, Odd, made, rows

import attnc
from attnc.bench import exact, libraries, run
from attnc.bench import work as works
from attnc.bench.launches import launches, open_folder


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
