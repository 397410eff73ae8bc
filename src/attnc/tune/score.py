"""Measuring: what is missing of a run, one text after another, by as many processes as there are.

A process that works on a text holds its lock; others take other texts. The system lets a lock go when its process dies.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from filelock import FileLock, Timeout

from attnc.compiler.policies import trouble
from attnc.compiler.policy import Machine
from attnc.compiler.tuning import Coverage, RetrievalScore, Similarity
from attnc.compiler.units import Place, Unit
from attnc.compiler.value import Share, tokens_of
from attnc.compiler.walk import every as every_mixer
from attnc.compiler.walk import kinds
from attnc.tune import costs, gate, watch
from attnc.tune.around import Around
from attnc.tune.jobs import Job, Work
from attnc.tune.journal import Key, Row
from attnc.tune.models import Models
from attnc.tune.probes import Probe, Seen, read
from attnc.tune.runs import Run
from attnc.tune.samples import Sample, Source

GATE_STEPS = 200
WAIT = 0.5
"""Seconds before a process that has nothing to do looks again."""

DEAR = ("hidden", "nll", "kl")
"""Losses for which the layers above are run again."""


class Progress(NamedTuple):
    """Measurements that are there, those of all, what was measured last, and seconds until the end (None: nobody knows)."""

    done: int
    total: int
    what: str
    left: float | None


@dataclass(eq=False)
class Scorer:
    """One process at work on a run."""

    run: Run
    weights: Path
    device: str
    machine: Machine
    scratch: Path
    times: bool
    say: Callable[[Progress], None]
    around: Around | None = field(default=None, init=False)

    def go(self, around: Around | None = None) -> None:
        """Measures until nothing is missing; with picks, of the losses around these, and of nothing else.

        Raises SpecError A6xx; what is measured stays, whenever this ends.
        """
        self.around, self.done = around, 0
        (self.run.place / "locks").mkdir(exist_ok=True)
        known = set(self.run.journal.rows())
        wanted = frozenset(key for job in self.work.jobs for key in job.keys)
        self.began, self.first = time.monotonic(), len(known & wanted)
        while missing := [job for job in self.work.jobs if not job.keys <= known]:
            worked = False
            for job in missing:
                with self.alone(job) as mine:
                    if not mine:
                        continue
                    known = set(self.run.journal.rows())
                    if not job.keys <= known:
                        self.do(job, known)
                        worked = True
            known = set(self.run.journal.rows())
            if not worked:
                time.sleep(WAIT)  # others hold what is left, or have just done it
        self.progress("done")

    @contextmanager
    def alone(self, job: Job) -> Iterator[bool]:
        """Whether no other process has the job."""
        lock = FileLock(self.run.place / "locks" / job.name)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            yield False
            return
        try:
            yield True
        finally:
            lock.release()

    def do(self, job: Job, known: set[Key]) -> None:
        """Measures what is missing of a job."""
        doing: Any = getattr(self, f"_{job.what}")
        doing(job, known)

    def add(self, *rows: Row) -> None:
        """Into the journal at once."""
        self.run.journal.add(rows)
        self.done += len(rows)
        self.progress(f"{rows[-1].what} {rows[-1].task} {rows[-1].length}")

    def progress(self, what: str) -> None:
        """Tells how far this is."""
        total = sum(len(job.keys) for job in self.work.jobs)
        speed = (time.monotonic() - self.began) / self.done if self.done else None
        here = min(total, self.first + self.done)
        self.say(Progress(here, total, what, None if speed is None else speed * (total - here)))

    done, first, began = 0, 0, 0.0

    @property
    def work(self) -> Work:
        """What is to be measured."""
        name = self.around.name if self.around else ""
        if name not in self.works:
            self.works[name] = Work(self.run, self.times, self.machine.gpu, name)
        return self.works[name]

    @cached_property
    def works(self) -> dict[str, Work]:
        """By the name of the picks that losses are measured around."""
        return {}

    @cached_property
    def models(self) -> Models:
        """All from one checkpoint."""
        settings = self.run.settings
        return Models(
            self.run.units, self.run.all, self.weights, self.scratch, self.device, settings.dtype, self.machine.device
        )

    @cached_property
    def full(self) -> Any:
        """The model that losses are measured against."""
        return self.models.full()

    @cached_property
    def apart(self) -> list[list[tuple[frozenset[Place], Any]]]:
        """Models for each number of a candidate."""
        return [self.models.alone(number) for number in range(self.work.most)]

    def _read(self, number: int, probe: Probe, masses: bool) -> Seen:
        """What each unit does with its candidate of this number."""
        found = Seen()
        for places, model in self.apart[number]:
            units = [unit for unit in self.run.all if unit.place in places]
            found.take(read(model, units, probe.sample, probe.seen, masses=masses))
        return found

    @cached_property
    def source(self) -> Source:
        """Of texts."""
        settings = self.run.settings
        text = None if settings.text is None else Path(settings.text)
        return Source(self.weights, self.run.spec.model.vocab, text, settings.seed)

    def sample(self, job: Job) -> Sample:
        """The text of a job."""
        found = self.texts.setdefault((job.task, job.length), [])
        if not found:
            found += self.source.samples(job.task, job.length, self.run.settings.samples)
        if job.number >= len(found):
            message = f"{self.source.prose.name} has only {len(found)} texts of {job.length} tokens"
            raise trouble("A613", message, self.run.place, f"--samples {max(1, len(found))}, or a longer --text")
        return found[job.number]

    @cached_property
    def texts(self) -> dict[tuple[str, int], list[Sample]]:
        """By task and length."""
        return {}

    @torch.no_grad()
    def _loss(self, job: Job, known: set[Key]) -> None:
        """Each candidate of each unit, alone among full attention, or among the picks that this is around."""
        around = self.around or Around.full(self.run)
        masses = "mass" in self.probes
        probe = Probe.of(self.full, self.run.all, self.sample(job), masses)
        if self.around is not None:
            probe = probe.around(self.models.of(self.around.picks), self.run.all)
        for number in range(self.work.most):
            seen = None
            for unit in self.run.all:
                if number >= len(unit.candidates):
                    continue
                said = job.task, job.length, job.number, unit, unit.candidates[number].name
                empty = {group: Work.loss_row(*said, *group, self.work.around) for group in unit.groups}
                if all(row.key in known for row in empty.values()):
                    continue
                moved = [(first, last) for first, last in unit.groups if not around.same(unit, first, unit.candidates[number])]
                if moved and seen is None:
                    seen = self._read(number, probe, masses)
                values = self._values(probe, unit, moved, seen) if seen and moved else {}
                rows = [replace(row, values=values.get(group, _nothing(self.probes))) for group, row in empty.items()]
                self.add(*(row for row in rows if row.key not in known))

    @property
    def probes(self) -> Sequence[str]:
        """Of losses; around picks only those that the layers above tell."""
        return self.run.settings.probes if self.around is None else ("hidden",)

    def _values(
        self, probe: Probe, unit: Unit, groups: Sequence[tuple[int, int]], seen: Seen
    ) -> dict[tuple[int, int], dict[str, float]]:
        """By probe, of some decisions of a unit."""
        probes = self.probes
        above = probe.above(unit, groups, seen) if "hidden" in probes else [None] * len(groups)
        values = {}
        for group, losses in zip(groups, above, strict=True):
            found: dict[str, float] = {}
            if "mass" in probes and unit.place in seen.masses and unit.place in probe.seen.masses:
                rows = unit.by.rows if isinstance(unit.by, Coverage) else 0
                found["mass"] = probe.mass(unit, *group, seen, rows if rows < len(probe.sample.tokens) else 0)
            found["output"] = probe.output(unit, *group, seen)
            values[group] = found if losses is None else found | losses._asdict()
        return values

    @torch.no_grad()
    def _retrieval(self, job: Job, known: set[Key]) -> None:
        found = watch.retrieval(self.full, self.work.of(RetrievalScore), self.sample(job))
        self._by_group(job, known, self.work.of(RetrievalScore), found, "retrieval")

    def _gate(self, job: Job, known: set[Key]) -> None:
        method = self.work.gates[job.number]
        units, settings = self.work.of(method), self.run.settings
        tasks = settings.tasks if method.data == "tasks" else ("passkey",)
        each = -(-GATE_STEPS // len(tasks))
        texts = [self.source.samples(task, job.length, each) for task in tasks]
        samples = [texts[at % len(tasks)][at // len(tasks) % len(texts[at % len(tasks)])] for at in range(GATE_STEPS)]
        ends = ({unit.place: [unit.ends[end]] * unit.kv_heads for unit in self.run.all} for end in (0, 1))
        kept, dropped = (self.models.load(self.run.units.settled(picks)).use("torch") for picks in ends)

        def said(step: int) -> None:
            self.progress(f"gate, step {step} of {GATE_STEPS}")

        found = gate.trained(kept, dropped, units, samples, method, GATE_STEPS, said)
        self._by_group(job, known, units, found, "gate")

    def _by_group(self, job: Job, known: set[Key], units: Sequence[Unit], found: Any, name: str) -> None:
        for unit in units:
            for group, value in enumerate(found.get(unit.place, [0.0] * unit.kv_heads)):
                place: dict[str, Any] = {"layer": unit.layer, "scope": unit.scope, "first": group, "last": group}
                said: dict[str, Any] = {"task": job.task, "length": job.length, "sample": job.number}
                row = Row(what=job.what, **said, **place, values={name: float(value)})
                if row.key not in known:
                    self.add(row)

    @torch.no_grad()
    def _similarity(self, job: Job, known: set[Key]) -> None:
        units = self.work.of(Similarity)
        counts = {unit.place: self._kept(unit, job.length) for unit in units}
        table, lost = watch.similarity(self.full, units, self.sample(job), counts)
        for at, unit in enumerate(units):
            values = {str(other.layer): table[at][number] for number, other in enumerate(units)} | {"lost": lost[at]}
            said: dict[str, Any] = {"task": job.task, "length": job.length, "sample": job.number}
            row = Row(what="similarity", **said, layer=unit.layer, scope=unit.scope, values=values)
            if row.key not in known:
                self.add(row)

    def _kept(self, unit: Unit, length: int) -> int:
        """How many keys the alternative that reuses a choice keeps."""
        for candidate in unit.candidates:
            for mixer in every_mixer(self.run.units.mixer(unit.place, candidate)):
                for kind, _ in kinds(mixer):
                    count = getattr(kind, "top_k", None)
                    if isinstance(count, int | Share):
                        return max(1, tokens_of(count, length))
        return max(1, length // 10)

    @torch.no_grad()
    def _cost(self, job: Job, known: set[Key]) -> None:
        """Each candidate in all units at once and full attention, in turns."""
        models = {"full": self.full} | {str(number): self.models.uniform(number) for number in range(self.work.most)}
        found = costs.measured(models, job.length, job.number, self.progress)
        said: dict[str, Any] = {"length": job.length, "batch": job.number, "machine": self.machine.gpu}
        rows = [Row(what="cost", **said, candidate=name, values=values) for name, values in found.items()]
        self.add(*(row for row in rows if row.key not in known))


def _nothing(probes: Sequence[str]) -> dict[str, float]:
    """Of a candidate that is full attention."""
    return dict.fromkeys([*(("mass",) if "mass" in probes else ()), "output", *(DEAR if "hidden" in probes else ())], 0.0)
