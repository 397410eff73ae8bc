"""`make evidence`: trains the mixes of docs/evidence on recall, asks them, and writes docs/evidence.md.

Each mix learns from one seed at every learning rate; the rate that recalls most then trains it from the other seeds.
Every run is written down when it is done, with the commit that made it. A command that was stopped goes on with the runs that
are missing, also at another commit: change a setting (or remove the numbers) to have all of them anew.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from evidence_runs import AT_ONCE, FOLDER, TOP, Ahead, diverged, say, settings, side_by_side, write

import attnc
from attnc.bench.machine import commit
from attnc.compiler.data import from_json, to_json
from attnc.dsl import SpecError
from attnc.evaluate import run as asking
from attnc.evaluate.evidence import Evidence, Trained, best, missing, page
from attnc.evaluate.evidence_chosen import PARTS
from attnc.evaluate.subject import Subject
from attnc.tasks.recall import Mqar
from attnc.tasks.several import Several
from attnc.train.run import train

SPECS = ("full", "based", "linear", "delta", "hgrn2", "quarter")
PAIRS = (4, 8, 16, 32, 64)
COMMAND = "make evidence"

Wanted = tuple[str, int, float]
"""A spec, a seed, a learning rate."""


def arguments(words: list[str]) -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--specs", default=",".join(SPECS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--rates", default="0.005,0.015", help="learning rates that the first seed tries")
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--processes", type=int, default=AT_ONCE, help="runs at a time")
    parser.add_argument("--out", type=Path, default=TOP / "docs", help="where evidence.md and evidence/mqar.json go")
    found = parser.parse_args(words)
    found.rates = tuple(map(float, found.rates.split(",")))
    return found


def main(command_line: list[str]) -> None:
    """All runs that are missing, then the page."""
    words = arguments(command_line)
    known = measured(words, begun(words))
    written = put(words, known)
    lacking = missing(known)
    print(f"wrote {written}" + (f"; not run: {', '.join(lacking)}" if lacking else ""))


def record_of(words: argparse.Namespace) -> Path:
    """Where the numbers are written down."""
    place: Path = words.out / "evidence" / "mqar.json"
    place.parent.mkdir(parents=True, exist_ok=True)
    return place


def put(words: argparse.Namespace, known: Evidence) -> Path:
    """Writes numbers and page down."""
    runs = sorted(known.runs, key=lambda run: (SPECS.index(run.spec), run.seed, run.lr))
    known = replace(known, runs=tuple(runs))
    write(record_of(words), to_json(known, indent=1) + "\n")
    written: Path = words.out / "evidence.md"
    if all(run.report is None for run in known.runs):
        return written  # which stays as it was: nothing was asked yet
    before = written.read_text("utf-8") if written.exists() else ""
    places = [before.index(mark) for mark in PARTS if mark in before]  # of other commands
    write(written, page(known, COMMAND) + (f"\n{before[min(places) :]}" if places else ""))
    return written


def begun(words: argparse.Namespace) -> Evidence:
    """What is written down already, if it was measured in the same way; seeds may have become more or fewer."""
    names = ("steps", "batch", "length", "rates", "seeds", "trials")
    empty = Evidence(**{name: getattr(words, name) for name in names}, runs=())
    record = record_of(words)
    if not record.exists():
        return empty
    found = replace(from_json(Evidence, record.read_text("utf-8")), seeds=words.seeds)
    same = replace(found, runs=()) == empty
    if not same:
        print(f"{record} is of other settings: all runs anew")
    return found if same else empty


def measured(words: argparse.Namespace, known: Evidence) -> Evidence:
    """With those of the runs that are missing, each written down when it is done."""
    asked: set[Wanted] = {(run.spec, run.seed, run.lr) for run in known.runs}

    def wanted() -> list[Wanted]:
        """What is wanted by now, and was not before: other seeds of a mix when its first one has tried all rates."""
        tried = {(run.spec, run.lr) for run in known.runs if run.seed == 0}
        found: list[Wanted] = [(spec, 0, rate) for spec in words.specs.split(",") for rate in words.rates]
        rates = {spec: rate for spec, rate in best(known).items() if {(spec, one) for one in words.rates} <= tried}
        found += [(spec, seed, rate) for seed in range(1, words.seeds) for spec, rate in rates.items()]
        new = [one for one in found if one not in asked]
        asked.update(new)
        print(f"{len(asked)} runs are done or wanted, {len(known.runs)} of them are done", flush=True)
        return new

    for run in side_by_side(words.processes, partial(trained, words), wanted(), wanted):
        known = replace(known, runs=(*known.runs, run))
        put(words, known)
    return known


def trained(words: argparse.Namespace, wanted: Wanted) -> Trained:
    """One model from nothing to its answers, in a folder that is thrown away."""
    spec, seed, lr = wanted
    name = f"{spec}, seed {seed}, lr {lr:g}"
    pairs = [count for count in PAIRS if 4 * count <= words.length]
    with TemporaryDirectory(prefix="attnc-evidence-") as scratch:
        place = Path(scratch) / spec
        attnc.build(attnc.check(FOLDER / f"{spec}.attn"), place, device="cpu", init=seed)
        task = Ahead(Several(tuple(Mqar(pairs=count, noise=False) for count in pairs)))
        chosen = {"steps": words.steps, "length": words.length, "batch": words.batch, "lr": lr, "seed": seed}
        try:
            report = train(place, settings(words.device, task="mqar", **chosen), task, partial(say, name), lambda _: None)
        except SpecError as error:
            diverged(name, error)
            return Trained(spec=spec, seed=seed, lr=lr, seconds=0.0, commit=commit(), report=None)
        subject = Subject.of(place, words.device, None, reference=False)
        options = asking.Options(("mqar",), (words.length,), trials=words.trials, batch=100, pairs=tuple(pairs), noise=False)
        answers = asking.evaluate(subject, options, lambda *_: None)
    shares = ", ".join(f"{row.value:.1%} of {count}" for row, count in zip(answers.rows, pairs, strict=True))
    print(f"{name}: {report.seconds:.0f} s, {shares}", flush=True)
    answered = replace(answers, folder=spec)
    return Trained(spec=spec, seed=seed, lr=lr, seconds=report.seconds, commit=commit(), report=answered)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except KeyboardInterrupt:
        sys.exit("stopped; the same command goes on with the runs that are missing")
