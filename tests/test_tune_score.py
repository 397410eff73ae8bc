"""Measuring, solving, refining and proving a tiny model; journals that are killed."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from filelock import FileLock
from torch.nn import functional as F

import attnc
from attnc.cli import invoke
from attnc.compiler.cache_spec import cache_bytes
from attnc.compiler.policies import read_policy
from attnc.compiler.policies import rows as setting_rows
from attnc.compiler.policy import Machine, Policy, policy_text
from attnc.compiler.tuning import TrainedGate
from attnc.compiler.units import FULL, Units
from attnc.dsl import SpecError
from attnc.tune import gate, refine, watch
from attnc.tune import prove as proving
from attnc.tune.around import Around
from attnc.tune.jobs import Work
from attnc.tune.journal import Journal, Row
from attnc.tune.models import Models
from attnc.tune.probes import Probe, read
from attnc.tune.refine import Refiner
from attnc.tune.runs import Run
from attnc.tune.samples import Source
from attnc.tune.score import Scorer
from attnc.tune.solve import Wanted, figures, frontier, solve
from attnc.tune.solve import policy as made_policy
from attnc.tune.table import Table

MODEL = "model m { vocab = 64, dim = 16, layers = 2, ffn = none, norm = rms(1e-5), heads = 4, kv_heads = 2, head_dim = 8 }\n"
SPEC = MODEL + "layers { all: choose(per = head) { all: full, near: sink(1) | window(budget(2..8, default = 4, per = head)) } }"
LENGTH = "24"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A spec, a folder with weights, and a run that has measured everything."""
    path = tmp_path_factory.mktemp("tune")
    (path / "m.attn").write_text(SPEC)
    attnc.build(attnc.check(path / "m.attn"), path / "built", init=0)
    assert invoke(scoring(path, "run")) == 0
    return path


def scoring(path, run, *more):
    given = ["--weights", str(path / "built"), "--length", LENGTH, "--samples", "2", "--points", "2", "--device", "cpu"]
    return ["tune", "score", str(path / "m.attn"), "-o", str(path / run), *given, "--probe", "mass,output,hidden", *more]


def test_a_loss_is_what_the_whole_model_loses_with_one_group_changed(place, tmp_path):
    run = Run.open(place / "run")
    scorer = Scorer(run, place / "built", "cpu", Machine(device="cpu"), tmp_path, False, lambda _: None)
    unit, job = run.all[1], scorer.work.jobs[0]
    sample, candidate = scorer.sample(job), run.all[1].candidates[2]
    models = scorer.models
    with torch.no_grad():
        full = models.full()
        one = models.of({run.all[0].place: [FULL] * 2, unit.place: [FULL, candidate]})
        tokens, asked = torch.tensor([sample.tokens]), list(sample.asked)
        words, other = (F.log_softmax(model(tokens).logits[0, asked], -1) for model in (full, one))
        kl = float(F.kl_div(other, words, log_target=True, reduction="batchmean"))
        targets = torch.tensor(sample.targets)
        nll = float(F.nll_loss(other, targets) - F.nll_loss(words, targets))
    values = run.journal.rows()[Work.loss_row("passkey", 24, 0, unit, candidate.name, 1, 1).key].values
    assert values["kl"] == pytest.approx(kl, abs=1e-6)
    assert values["nll"] == pytest.approx(nll, abs=1e-5)
    assert values["kl"] > 0
    assert 0 < values["mass"] < 1
    same = run.journal.rows()[Work.loss_row("passkey", 24, 0, unit, "all", 1, 1).key].values
    assert set(same.values()) == {0.0}


def test_layers_below_a_change_are_not_run_again_and_its_groups_are_one_pass(place, tmp_path):
    run = Run.open(place / "run")
    scorer = Scorer(run, place / "built", "cpu", Machine(device="cpu"), tmp_path, False, lambda _: None)
    called, added = [], []
    for index, layer in enumerate(scorer.full.model.layers):
        layer.register_forward_pre_hook(lambda _module, inputs, index=index: called.append((index, len(inputs[0]))))
    scorer.add = lambda *rows: added.extend(rows)
    scorer.do(scorer.work.jobs[0], set())
    assert called[:2] == [(0, 24), (1, 24)]
    assert called[2:] == [(0, 48), (1, 48), (1, 48)] * 3, "three candidates that are not full attention, two groups, 24 tokens"
    assert {row.key for row in added} == scorer.work.jobs[0].keys
    known = run.journal.rows()
    for row in added:
        assert row.values == pytest.approx(known[row.key].values, abs=1e-6)


def test_recovered_mass_is_that_of_the_maps(place, tmp_path):
    units = Units(attnc.check(SPEC), 2)
    every = units.all()
    models = Models(units, every, place / "built", tmp_path, "cpu", "float32", "cpu")
    sample = Source(place / "built", 64, None, 0).samples("passkey", 24, 1)[0]
    with torch.no_grad():
        probe = Probe.of(models.full(), every, sample, masses=True)
        number = next(at for at, one in enumerate(every[0].candidates) if one.name.endswith("window.n=8"))
        seen = read(models.uniform(number), every, sample, probe.seen, masses=True)
        layer = probe.model.model.layers[0].self_attn
        x = probe.seen.inputs[0]
        from attnc.tune.probes import new_call

        call, _ = new_call(probe.model, sample)
        turn = call.angles(layer.rope)
        runtime = sys.modules[f"{type(probe.model).__module__.rpartition('.')[0]}.runtime.rotary"]
        q, k = (runtime.rotate_by(p(x).unflatten(-1, (-1, 8)), *turn) for p in (layer.q_proj, layer.k_proj))
        logits = torch.einsum("ihd,jhd->hij", q, k.repeat_interleave(2, 1)) / 8**0.5
        i, j = torch.arange(24)[:, None], torch.arange(24)[None]
        weights = logits.masked_fill(j > i, float("-inf")).softmax(-1)
        lost = 1 - (weights * ((j < 1) | (i - j < 8))).sum(-1)[2:4].mean()
        copied = watch.retrieval(probe.model, every, sample)[every[0].place]
        table, gone = watch.similarity(probe.model, every, sample, {unit.place: 5 for unit in every})
    assert probe.mass(every[0], 1, 1, seen) == pytest.approx(float(lost), abs=1e-6)
    found = torch.tensor(sample.tokens)[weights.argmax(-1)][:, list(sample.asked)] == torch.tensor(sample.targets)
    assert copied == pytest.approx(found.float().mean(1).view(2, 2).amax(1).tolist())
    together = weights.sum(0)
    rest = 1 - together.topk(5, -1).values.sum() / together.sum()
    assert gone[0] == pytest.approx(float(rest), abs=1e-6)
    assert [table[at][at] for at in range(2)] == [1.0, 1.0]
    assert 0 < table[0][1] < 1
    assert table[0][1] == pytest.approx(table[1][0], abs=0.1)  # early queries have fewer than five keys in both


def test_gates_lie_between_the_two_models_and_fall_where_nothing_needs_them(place, tmp_path):
    units = Units(attnc.check(MODEL + "layers { all: choose(per = head) { all: full, near: window(2) } }"))
    every = units.all()
    models = Models(units, every, place / "built", tmp_path, "cpu", "float32", "cpu")
    kept, dropped = models.uniform(0), models.uniform(1)
    samples = Source(place / "built", 64, None, 0).samples("passkey", 24, 2)
    with torch.no_grad():
        ends = [read(model, (), samples[0]).hidden for model in (dropped, kept)]
        for share, end in enumerate(ends):
            alphas = {unit.place: torch.full((2,), float(share)) for unit in every}
            torch.testing.assert_close(gate.mixed(kept, dropped, every, samples[0], alphas), end)
    free, pulled = (
        gate.trained(kept, dropped, every, samples, TrainedGate(data="passkey", l1=l1), 6, lambda _: None)
        for l1 in (0.0, 100.0)
    )
    assert all(value > 0.999 for row in free.values() for value in row)
    assert all(value < 0.95 for row in pulled.values() for value in row)


DIES = """
import os, signal, sys
from attnc.cli import invoke
from attnc.tune.journal import Journal

add, written = Journal.add, []

def dying(journal, rows):
    if len(written) == 5:
        with open(journal.path, "ab") as file:
            file.write(b'{"what": "lo')
        os.kill(os.getpid(), signal.SIGKILL)
    add(journal, rows)
    written.append(1)

Journal.add = dying
invoke(sys.argv[1:])
"""
"""A measuring process that the system kills in the middle of its sixth line."""


def test_a_run_goes_on_where_it_was_killed(place):
    whole = Journal(place / "run/journal.jsonl")
    path = place / "killed/journal.jsonl"
    given = scoring(place, "killed", "--samples", "1")
    ended = subprocess.run([sys.executable, "-c", DIES, *given], check=False, capture_output=True)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    half = {key: row for key, row in whole.rows().items() if key.sample == 0}
    assert len(Journal(path).rows()) == 10 < len(half)
    assert invoke(given) == 0
    assert len(path.read_text().splitlines()) == len(half)
    assert Journal(path).rows().keys() == half.keys()


def test_half_a_line_is_measured_again_and_a_wrong_one_is_an_error(tmp_path):
    rows = [Row(what="loss", task="text", layer=layer, values={"kl": 1.0}) for layer in range(3)]
    journal = Journal(tmp_path / "j")
    journal.add(rows)
    text = (tmp_path / "j").read_bytes()
    for cut in range(text.rfind(b"\n", 0, -1) + 1, len(text), 9):
        (tmp_path / "j").write_bytes(text[:cut])
        assert list(journal.rows().values()) == rows[:2]
        journal.add(rows[2:])
        assert (tmp_path / "j").read_bytes() == text
    (tmp_path / "j").write_bytes(text.replace(b'"layer": 1', b'"layer": "one"'))
    with pytest.raises(SpecError, match="line 2 of j is no measurement"):
        journal.rows()


def test_a_text_that_another_process_works_on_is_left_to_it(place, tmp_path):
    run = Run.open(place / "run")
    scorer = Scorer(run, place / "built", "cpu", Machine(device="cpu"), tmp_path, False, lambda _: None)
    job = scorer.work.jobs[0]
    with FileLock(run.place / "locks" / job.name), scorer.alone(job) as mine:
        assert not mine
    with scorer.alone(job) as mine:
        assert mine


def test_a_run_is_of_one_spec_and_one_checkpoint(place, capsys, tmp_path):
    (tmp_path / "m.attn").write_text(SPEC.replace("layers = 2", "layers = 3"))
    given = ["--weights", str(place / "built"), "--device", "cpu", "--length", LENGTH]
    assert invoke(["tune", "score", str(tmp_path / "m.attn"), "-o", str(place / "run"), *given]) != 0
    assert "A612" in capsys.readouterr().err
    (tmp_path / "m.attn").write_text(MODEL + "layers { all: full }")
    assert invoke(["tune", "score", str(tmp_path / "m.attn"), "-o", str(tmp_path / "run"), *given]) != 0
    assert "A611" in capsys.readouterr().err
    assert invoke(["tune", "solve", str(tmp_path / "run")]) != 0
    assert "A610" in capsys.readouterr().err


def test_solving_keeps_limits_and_says_what_none_keeps(place, capsys):
    run = Run.open(place / "run")
    table = Table(run, "h100", 4096)
    half = 0.5 * table.whole("kv_bytes")
    found = solve(table, Wanted("loss", {"kv_bytes": half}))
    assert found.solution.costs["kv_bytes"] <= half
    uniform = solve(table, Wanted("loss", {"kv_bytes": half}, per="all"))
    assert sum(found.solution.loss.values()) <= sum(uniform.solution.loss.values())
    made = made_policy(table, found, Machine(device="h100"), {"kv_bytes": half})
    bytes_told = next(one.predicted for one in made.figures if one.what == "kv_bytes")
    assert bytes_told == pytest.approx(found.solution.costs["kv_bytes"])
    with pytest.raises(SpecError, match="kv_bytes is at least"):
        solve(table, Wanted("loss", {"kv_bytes": 1.0}))
    points = frontier(table, "kv_bytes")
    for one in points:
        if one.per == "all":
            assert any(other.per == "head" and other.loss <= one.loss and other.cost <= one.cost for other in points)
    assert invoke(["tune", "solve", str(place / "run"), "--limit", "kv_bytes=half"]) == 2
    capsys.readouterr()


H100 = "NVIDIA H100 80GB HBM3"
TIMES = {
    4096: {"full": 2.0, "0": 2.0, "1": 1.4, "2": 1.2, "3": 1.6},
    8192: {"full": 3.2, "0": 3.2, "1": 1.4, "2": 1.2, "3": 1.8},
}
"""Milliseconds of models with one candidate everywhere: a fixed part, and four equal parts of the two layers' groups."""


def timed_run(place, tmp_path):
    """The run, with times that a GPU measured."""
    shutil.copytree(place / "run", tmp_path / "timed")
    run = Run.open(tmp_path / "timed")
    for length, row in TIMES.items():
        said = {"what": "cost", "length": length, "machine": H100}
        run.journal.add(
            Row(**said, candidate=name, values={"decode_ms": ms, "prefill_ms": 10 * ms}) for name, ms in row.items()
        )
    return run


def test_times_of_a_mixed_policy_are_the_sum_of_measured_parts_between_measured_lengths(place, tmp_path):
    run = timed_run(place, tmp_path)
    picks = {unit.place: [unit.candidates[0], unit.candidates[number]] for unit, number in zip(run.all, (1, 2), strict=True)}

    def taken(length):
        return {one.what: one for one in figures(Table(run, "h100", length, gpu=H100), picks)}

    for length in TIMES:
        full, near, nearer = (TIMES[length][name] for name in ("full", "1", "2"))
        whole = full + (near - full) / 4 + (nearer - full) / 4
        assert taken(length)["decode_ms"].predicted == pytest.approx(whole)
        assert taken(length)["prefill_ms"].predicted == pytest.approx(10 * whole)
        assert taken(length)["decode_ms"].full == full
    between = taken(6144)["decode_ms"]
    assert between.predicted == pytest.approx(sum(taken(length)["decode_ms"].predicted for length in TIMES) / 2)
    with pytest.raises(SpecError, match="times at 16384 tokens"):
        taken(16384)
    table = Table(run, "h100", 8192, gpu=H100)
    cheapest = solve(table, Wanted("decode_ms", {}, loss=1e9))
    assert cheapest.solution.costs["decode_ms"] == pytest.approx(1.2)
    made = made_policy(table, cheapest, Machine(device="h100"), {})
    assert next(one.predicted for one in made.figures if one.what == "decode_ms") == pytest.approx(1.2)


def test_a_policy_that_fails_its_proof_gets_more_budget_until_it_holds(place, monkeypatch, capsys):
    solving = ["tune", "solve", str(place / "run"), "--objective", "loss", "--device", "cpu", "--length", "512"]
    assert invoke([*solving, "--limit", "kv_bytes=60%"]) == 0
    first = read_policy(place / "m.cpu.policy.json")

    def evaluated(_, subject):
        wrong = 0.1 + (subject.cache_bytes(512) < 0.8 * full)
        return {("passkey", 24): (wrong, 4), ("other", 24): (0.1, 4)}

    full = cache_bytes(attnc.check(SPEC), 512, "float32")
    monkeypatch.setattr(proving.Prover, "_evaluated", evaluated)
    assert invoke(["tune", "prove", str(place / "run"), "--device", "cpu", "--rounds", "0"]) == 1
    assert "not proved" in capsys.readouterr().out
    assert invoke(["tune", "prove", str(place / "run"), "--device", "cpu", "--rounds", "5", "--json"]) == 0
    verdict = json.loads(capsys.readouterr().out)
    assert verdict["worst"] == "passkey at 24 tokens"
    assert verdict["rounds"] > 0
    proved = read_policy(place / "m.cpu.policy.json")
    assert proved.proved
    assert not first.proved
    assert first.limits["kv_bytes"] < proved.limits["kv_bytes"] < first.limits["kv_bytes"] * 1.2**5
    assert proved.figures[0].length == first.figures[0].length


def bad_policy(run):
    """Half of the groups forget most, and these are the ones that lose most by it."""
    table = Table(run, "cpu", 512)
    narrow = next(one for one in run.all[0].candidates if one.name == "near window.n=2")
    worst = sorted(table.sites, key=lambda site: -sum(table.losses(site, narrow).values()))[:2]
    picks = {unit.place: [unit.candidates[0]] * 2 for unit in run.all}
    for site in worst:
        picks[site.unit.place][site.first] = narrow
    made = Policy(
        model="m",
        spec=run.settings.spec,
        made_by="hand",
        machine=Machine(device="cpu"),
        objective="loss",
        limits={"kv_bytes": 0.5 * table.whole("kv_bytes")},
        settings=tuple(row for unit in run.all for row in setting_rows(unit, picks[unit.place], run.units.shared)),
        figures=figures(table, picks),
    )
    return Around(run, picks), made


def test_a_policy_loses_less_for_the_same_cost_by_losses_that_are_measured_around_it(place, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(refine.COARSER, "head", ())
    shutil.copytree(place / "run", tmp_path / "run")
    run = Run.open(tmp_path / "run")
    around, made = bad_policy(run)
    scorer = Scorer(run, place / "built", "cpu", Machine(device="cpu"), tmp_path / "models", False, lambda _: None)
    refiner = Refiner(scorer, Table(run, "cpu", 512))
    found = refiner.go(made, 1, tmp_path)
    assert found.steps[0].loss["passkey"] < found.begun["passkey"]
    kept = [next(one.predicted for one in own.figures if one.what == "kv_bytes") for own in (made, found.policy)]
    assert kept[1] <= max(kept[0], made.limits["kv_bytes"])

    table = Table(run, "cpu", 512, around=around)
    site = next(one for one in table.sites if around.same(one.unit, one.first, one.unit.candidates[0]))
    for candidate in site.unit.candidates[:2]:
        own = list(around.picks[site.unit.place])
        own[site.first] = candidate
        changed = refiner.whole(Around(run, {**around.picks, site.unit.place: own}))
        added = table.measured(site, candidate, "kl", around.name)["passkey"]
        assert added == pytest.approx(changed["passkey"] - found.begun["passkey"], abs=1e-6)
        assert (added == 0) == (candidate == site.unit.candidates[0])
    assert solve(table, Wanted("loss", {}, moves=0)).picks == around.picks
    assert around.apart(Around(run, solve(table, Wanted("loss", {}, moves=1)).picks)) == 1

    (tmp_path / "p.json").write_text(policy_text(made))
    lines = (tmp_path / "run/journal.jsonl").read_bytes()
    given = ["tune", "refine", str(tmp_path / "run"), "--policy", str(tmp_path / "p.json"), "--rounds", "1", "--device", "cpu"]
    assert invoke([*given, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["steps"][0]["loss"] == found.steps[0].loss
    assert (tmp_path / "run/journal.jsonl").read_bytes() == lines, "all of it was measured"
    assert read_policy(tmp_path / "p.json").settings == found.policy.settings
    (tmp_path / "p.json").write_text(policy_text(replace(made, probe="output")))
    assert invoke(given) == 2

    monkeypatch.undo()  # refining begins with what is decided alike, where that is better
    decided, there, step = refiner.alike(around, found.begun, made.limits)
    assert step.loss["passkey"] == refiner.whole(there)["passkey"] < found.begun["passkey"]
    assert all(len(set(own)) == 1 for own in decided.picks.values())
    assert step.moved == around.apart(there)
    assert refiner.alike(there, step.loss, made.limits) is None, "nothing is better than the best of them"
    assert refiner.alike(around, found.begun, {"kv_bytes": 0.0}) is None, "nothing keeps such a limit"
