"""`make evidence`: trains the mixes of docs/evidence on recall, asks them, and writes docs/evidence.md.

Every run is written down when it is done. A command that was stopped goes on with the runs that are missing.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

import attnc
from attnc.bench.machine import commit
from attnc.compiler.data import from_json, to_json
from attnc.evaluate import run as asking
from attnc.evaluate.evidence import Evidence, Trained, page
from attnc.evaluate.evidence_chosen import MARK
from attnc.evaluate.subject import Subject
from attnc.tasks.examples import Examples, Task
from attnc.tasks.recall import Mqar
from attnc.tasks.several import Several
from attnc.train.report import Progress, Settings
from attnc.train.run import train

TOP = Path(__file__).resolve().parent.parent
FOLDER = TOP / "docs" / "evidence"
SPECS = ("full", "based", "linear", "delta", "hgrn2", "quarter")
PAIRS = (4, 8, 16, 32, 64)
COMMAND = "make evidence"


def arguments(words: list[str]) -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--specs", default=",".join(SPECS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--trials", type=int, default=500)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    at_once = 6 if torch.cuda.is_available() else 1
    parser.add_argument("--processes", type=int, default=at_once, help="runs at a time: small models leave a GPU idle")
    parser.add_argument("--out", type=Path, default=TOP / "docs", help="where evidence.md and evidence/mqar.json go")
    return parser.parse_args(words)


def main(command_line: list[str]) -> None:
    """All runs that are missing, then the page."""
    words = arguments(command_line)
    record = words.out / "evidence" / "mqar.json"
    record.parent.mkdir(parents=True, exist_ok=True)
    known = begun(words, record)
    for run in measured(words, list(missing(words, known))):
        known = replace(known, runs=(*known.runs, run))
        write(record, to_json(known, indent=1) + "\n")
    known = replace(known, runs=tuple(sorted(known.runs, key=lambda run: (run.seed, SPECS.index(run.spec)))))
    write(record, to_json(known, indent=1) + "\n")
    written = words.out / "evidence.md"
    before = written.read_text("utf-8") if written.exists() else ""
    _, mark, rest = before.partition(MARK)  # the part of another command
    write(written, page(known, COMMAND) + (f"\n{mark}{rest}" if mark else ""))
    print(f"wrote {words.out / 'evidence.md'}")


def begun(words: argparse.Namespace, record: Path) -> Evidence:
    """What is written down already, if it was measured in the same way."""
    empty = Evidence(steps=words.steps, batch=words.batch, length=words.length, lr=words.lr, commit=commit(), runs=())
    if not record.exists():
        return empty
    found = from_json(Evidence, record.read_text("utf-8"))
    same = all(getattr(found, name) == getattr(empty, name) for name in ("steps", "batch", "length", "lr", "commit"))
    if not same:
        print(f"{record} is of another commit or other settings: all runs anew")
    return found if same else empty


def missing(words: argparse.Namespace, known: Evidence) -> Iterator[tuple[str, int]]:
    """Specs and seeds; all specs with one seed before any with the next."""
    done = {(run.spec, run.seed) for run in known.runs}
    wanted = [(spec, seed) for seed in range(words.seeds) for spec in words.specs.split(",")]
    return iter([pair for pair in wanted if pair not in done])


def measured(words: argparse.Namespace, wanted: list[tuple[str, int]]) -> Iterator[Trained]:
    """The runs, each as soon as it is done."""
    if min(words.processes, len(wanted)) < 2:
        yield from (trained(words, spec, seed) for spec, seed in wanted)
        return
    with ProcessPoolExecutor(min(words.processes, len(wanted)), mp_context=get_context("spawn")) as pool:
        for done in as_completed([pool.submit(trained, words, spec, seed) for spec, seed in wanted]):
            yield done.result()


class Ahead:
    """A task whose next examples are drawn while the model learns from these."""

    def __init__(self, task: Task) -> None:
        self.task, self.pool = task, ThreadPoolExecutor(max_workers=1)
        self.drawn: tuple[tuple[int, ...], Future[Examples]] | None = None

    def batch(self, seed: int, step: int, size: int, length: int, vocabulary: int) -> Examples:
        """As the task's own."""
        wanted, after = ((seed, number, size, length, vocabulary) for number in (step, step + 1))
        known = self.drawn[1].result() if self.drawn and self.drawn[0] == wanted else self.task.batch(*wanted)
        self.drawn = (after, self.pool.submit(self.task.batch, *after))
        return known

    def chance(self, vocabulary: int) -> float:
        """As the task's own."""
        return self.task.chance(vocabulary)


def trained(words: argparse.Namespace, spec: str, seed: int) -> Trained:
    """One model from nothing to its answers, in a folder that is thrown away."""
    pairs = [count for count in PAIRS if 4 * count <= words.length]
    with TemporaryDirectory(prefix="attnc-evidence-") as scratch:
        place = Path(scratch) / spec
        attnc.build(attnc.check(FOLDER / f"{spec}.attn"), place, device="cpu", init=seed)
        task = Ahead(Several(tuple(Mqar(pairs=count) for count in pairs)))
        report = train(place, settings(words, seed), task, lambda progress: say(spec, seed, progress), lambda _: None)
        subject = Subject.of(place, words.device, None, reference=False)
        options = asking.Options(tasks=("mqar",), lengths=(words.length,), trials=words.trials, batch=100, pairs=tuple(pairs))
        answers = asking.evaluate(subject, options, lambda *_: None)
    shares = ", ".join(f"{row.value:.1%} of {count}" for row, count in zip(answers.rows, pairs, strict=True))
    print(f"{spec}, seed {seed}: {report.seconds:.0f} s, loss {report.held:.4f}, {shares}", flush=True)
    return Trained(spec=spec, seed=seed, loss=report.held, seconds=report.seconds, report=replace(answers, folder=spec))


def settings(words: argparse.Namespace, seed: int) -> Settings:
    """The same for all mixes."""
    return Settings(
        task="mqar",
        steps=words.steps,
        length=words.length,
        batch=words.batch,
        accumulate=1,
        lr=words.lr,
        warmup=words.steps // 10,
        clip=1.0,
        decay=0.1,
        every=words.steps + 1,
        keep=1,
        seed=seed,
        rank=1,
        alpha=1.0,
        device=words.device,
        dtype="float32" if words.device == "cpu" else "bfloat16",
        compiled=False,
    )


def say(spec: str, seed: int, progress: Progress) -> None:
    """A line now and then."""
    if progress.step % max(1, progress.steps // 5) == 0:
        speed = f"{progress.tokens_per_second:,.0f} tokens a second"
        print(f"{spec}, seed {seed}: step {progress.step}, loss {progress.loss:.4f}, {speed}", file=sys.stderr, flush=True)


def write(path: Path, text: str) -> None:
    """In one step, so that a killed command loses no run that was done."""
    beside = path.with_name(f".{path.name}.writing")
    beside.write_text(text, "utf-8")
    os.replace(beside, path)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except KeyboardInterrupt:
        sys.exit("stopped; the same command goes on with the runs that are missing")
