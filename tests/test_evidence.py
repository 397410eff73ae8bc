"""The page of evidence says what was measured, and its specs are as small as it says."""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import attnc
from attnc.compiler import graph, passes
from attnc.compiler.data import from_json
from attnc.compiler.parameters import parameters, total
from attnc.compiler.unbuilt import unbuilt
from attnc.evaluate import evidence_memory
from attnc.evaluate.evidence import Evidence, Trained, best, cells, claims, page
from attnc.evaluate.evidence_chosen import MARK, Asked, ChosenEvidence, joined, part
from attnc.evaluate.evidence_memory import MemoryEvidence
from attnc.evaluate.report import EvalReport, Share
from attnc.tasks.examples import TaskError
from attnc.tasks.recall import Mqar
from attnc.tasks.several import Several

DOCS = Path(__file__).parent.parent / "docs"
SPECS = ("based", "delta", "full", "hgrn2", "linear", "quarter")


def trained(spec, seed, shares, lr=0.003):
    rows = tuple(
        Share(
            task="mqar", form="tokens", length=256, settings={"pairs": pairs, "power": 0.01}, value=share, low=0.0, high=1.0,
            effective=500.0, right=0, asked=500 * pairs, trials=500, chance=1 / 4096, depths=(), read="chunks",
            cache_bytes=262144,
        )
        for pairs, share in shares.items()
    )  # fmt: skip
    report = EvalReport(
        folder=spec, name=spec, context=None, parameters=1705088, device="a GPU", dtype="float32", seed=0, batch=100,
        torch="2.11", attnc="0.1.0", rows=rows,
    )  # fmt: skip
    return Trained(spec=spec, seed=seed, lr=lr, seconds=50.0 + seed, commit="0123456789abcdef", report=report)


MEASURED = Evidence(
    steps=3000,
    batch=64,
    length=256,
    rates=(0.003, 0.01),
    seeds=2,
    trials=500,
    runs=(
        trained("full", 0, {4: 1.0, 64: 0.99}),
        trained("full", 0, {4: 0.5, 64: 0.1}, lr=0.01),
        trained("linear", 0, {4: 0.9, 64: 0.1}),
        trained("quarter", 0, {4: 1.0, 64: 0.96}),
        trained("full", 1, {4: 1.0, 64: 0.97}),
        trained("linear", 1, {4: 0.8, 64: 0.3}),
        trained("quarter", 1, {4: 1.0, 64: 0.94}),
    ),
)


def test_the_page_has_a_row_for_each_mix_and_says_what_holds(golden):
    golden("page.md", page(MEASURED, "make evidence"))
    assert cells(MEASURED)["linear"] == {4: pytest.approx((0.85, 0.8, 0.9)), 64: pytest.approx((0.2, 0.1, 0.3))}
    assert [claim.holds for claim in claims(cells(MEASURED))] == [True, False, True, False]
    assert best(MEASURED)["full"] == 0.003, "the rate that recalls most"


def test_a_claim_is_of_every_seed():
    runs = [
        trained("full", 0, {4: 1.0, 64: 0.99}),
        trained("linear", 0, {4: 0.96, 64: 0.1}),
        trained("delta", 0, {4: 1.0, 64: 0.3}),
    ]
    assert [claim.holds for claim in claims(cells(replace(MEASURED, runs=tuple(runs))))] == [True, True, True, True]
    runs += [trained("linear", 1, {4: 0.94, 64: 0.5}), trained("delta", 1, {4: 1.0, 64: 0.9})]
    runs.append(replace(trained("full", 1, {}), report=None))  # it diverged
    assert [claim.holds for claim in claims(cells(replace(MEASURED, runs=tuple(runs))))] == [False, False, False, False]


@pytest.mark.parametrize("name", SPECS)
def test_a_spec_of_the_page_has_at_most_three_million_parameters(name):
    spec = attnc.check(DOCS / "evidence" / f"{name}.attn")
    assert spec.model.name == name
    assert total(parameters(spec, passes.run(graph.build(spec)))) <= 3_000_000


@pytest.mark.parametrize("path", sorted((DOCS / "evidence" / "memory").glob("*.attn")), ids=lambda path: path.stem)
def test_a_memory_of_the_page_can_be_built(path):
    spec = attnc.check(path)
    assert not unbuilt(spec)
    if path.stem != "allmem":
        assert spec.model.name == path.stem
        assert total(parameters(spec, passes.run(graph.build(spec)))) <= 3_000_000


def test_the_page_is_what_was_measured():
    record, written = DOCS / "evidence" / "mqar.json", DOCS / "evidence.md"
    records = (record, DOCS / "evidence" / "chosen.json", DOCS / "evidence" / "memory.json")
    assert any(one.exists() for one in records) == written.exists(), "numbers and page are written together"
    text = written.read_text("utf-8") if written.exists() else ""
    if record.exists():
        expected = page(from_json(Evidence, record.read_text("utf-8")), "make evidence")
        assert text.startswith(expected)
    if records[1].exists():
        assert text.endswith(part(from_json(ChosenEvidence, records[1].read_text("utf-8")), "make evidence-chosen"))
    if records[2].exists():
        found = from_json(MemoryEvidence, records[2].read_text("utf-8"))
        assert evidence_memory.part(found, "make evidence-memory") in text


def test_the_part_of_chosen_keys_stands_at_the_end_and_is_replaced():
    row = Asked(
        mix="quest",
        length=2048,
        kept=0.125,
        nll=3.0,
        tokens=64,
        passkey=0.5,
        low=0.4,
        high=0.6,
        trials=200,
        cache_bytes=2**20,
        prefill=250.0,
        decode=2.0,
    )
    rest = {"device": "cpu", "dtype": "float32", "share": 0.125, "trials": 200, "windows": 1, "decoded": 64, "text": "a text"}
    written = part(ChosenEvidence(model="smollm2", commit=None, rows=(row,), **rest), "make evidence-chosen")
    told = part(ChosenEvidence(model="smollm2", commit=None, kernels=("quest",), **rest), "make evidence-chosen")
    assert "generated kernels for quest" in told
    assert "generated kernels" not in written
    assert "| quest | 2048 | 12.5% | 3.000 | 50.0% (40.0% to 60.0% of 200) | 1.0 MiB | 250 ms | 2 ms |" in written
    once = joined("# Evidence\n\nfirst\n", written)
    assert once.startswith("# Evidence\n\nfirst\n\n## Keys that content chooses\n")
    assert joined(once, written) == once


def tool(name, monkeypatch):
    """A module of tools/."""
    monkeypatch.syspath_prepend(str(DOCS.parent / "tools"))
    return importlib.import_module(name)


@pytest.fixture
def command(monkeypatch):
    """tools/evidence.py"""
    return tool("evidence", monkeypatch)


def test_the_command_measures_what_is_missing_and_writes_the_page(command, tmp_path, monkeypatch, capsys):
    words = ["--specs", "full", "--steps", "2", "--batch", "2", "--length", "16", "--trials", "3", "--device", "cpu"]
    words += ["--rates", "0.001,0.01"]
    command.main([*words, "--seeds", "1", "--out", str(tmp_path)])
    record = tmp_path / "evidence" / "mqar.json"
    first = from_json(Evidence, record.read_text())
    assert [(run.spec, run.seed, run.lr) for run in first.runs] == [("full", 0, 0.001), ("full", 0, 0.01)]
    assert [row.settings["pairs"] for row in first.runs[0].report.rows] == [4]
    assert (tmp_path / "evidence.md").read_text() == page(first, "make evidence")

    def once(words, wanted):
        assert wanted == ("full", 1, best(first)["full"]), "what is written down is not measured again"
        return replace(first.runs[0], seed=1, lr=wanted[2])

    monkeypatch.setattr(command, "trained", once)
    command.main([*words, "--seeds", "2", "--out", str(tmp_path)])
    assert [run.seed for run in from_json(Evidence, record.read_text()).runs] == [0, 0, 1]
    assert "full, seed 0, lr 0.01: " in capsys.readouterr().out


def test_the_command_of_memories_trains_converts_and_goes_on(tmp_path, monkeypatch):
    model = tmp_path / "tiny.attn"
    model.write_text(
        "model tiny { vocab = 256, dim = 16, layers = 1, ffn = swiglu(16), norm = rms(1e-5), heads = 2, rope = 100 }\n"
        "layers { all: full }\n"
    )
    attnc.build(attnc.check(model), tmp_path / "tiny", init=0)
    words = "--specs lmm --seeds 1 --steps 2 --batch 2 --length 64 --lengths 16,48 --pairs 2 --trials 2 --device cpu"
    words += f" --model {model} --taught 16 --taught-steps 1 --read 24 --windows 2 --out {tmp_path}"
    memories = tool("evidence_memory", monkeypatch)
    (tmp_path / "evidence.md").write_text(f"# Evidence\n\nfirst\n\n{MARK}\n\nlast\n")
    memories.main(words.split())
    found = from_json(MemoryEvidence, (tmp_path / "evidence" / "memory.json").read_text())
    assert [(one.task, one.length) for one in found.runs[0].recalled] == [
        (task, length) for task in ("needle", "mqar") for length in (16, 48)
    ]
    assert [(one.mix, one.steps) for one in found.converted] == [("full", 0), ("window", 0), ("allmem", 1)]
    written = evidence_memory.part(found, "make evidence-memory")
    assert (tmp_path / "evidence.md").read_text() == f"# Evidence\n\nfirst\n\n{written}\n{MARK}\n\nlast\n"

    def never(*_):
        raise AssertionError("what is written down is not measured again")

    monkeypatch.setattr(memories, "remembered", never)
    monkeypatch.setattr(memories, "converted", never)
    memories.main(words.split())

    def killed(_, wanted):
        if wanted[0] == "mac":
            raise KeyboardInterrupt
        return replace(found.runs[0], spec=wanted[0], seed=wanted[1])

    monkeypatch.setattr(memories, "remembered", killed)
    with pytest.raises(KeyboardInterrupt):
        memories.main([*words.split(), "--specs", "lmm,mal,mac", "--seeds", "2"])
    kept = from_json(MemoryEvidence, (tmp_path / "evidence" / "memory.json").read_text())
    assert [(run.spec, run.seed) for run in kept.runs] == [("lmm", 0), ("mal", 0)]
    assert evidence_memory.part(kept, "make evidence-memory") in (tmp_path / "evidence.md").read_text()
    one_more = replace(kept, runs=(*kept.runs, replace(kept.runs[0], seed=1)))
    assert "**Not run: mal with seed 1.**" in evidence_memory.part(one_more, "make evidence-memory")


def test_examples_that_are_drawn_ahead_are_those_that_are_asked_for(monkeypatch):
    task, ahead = Mqar(pairs=2), tool("evidence_runs", monkeypatch).Ahead(Mqar(pairs=2))
    for step, size in ((0, 1), (0, 4), (1, 4), (2, 4), (7, 4)):
        assert torch.equal(ahead.batch(3, step, size, 20, 64).tokens, task.batch(3, step, size, 20, 64).tokens)


def test_several_tasks_take_turns():
    tasks = [Mqar(pairs=2), Mqar(pairs=3), Mqar(pairs=4)]
    for step in range(5):
        found = Several(tuple(tasks)).batch(0, step, 3, 40, 64)
        assert torch.equal(found.targets, tasks[step % 3].batch(0, step, 3, 40, 64).targets)
    with pytest.raises(TaskError, match="tasks is empty"):
        Several(())
