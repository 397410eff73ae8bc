"""What a run measures: jobs, each of which one process does, and the measurements that each gives."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from attnc.compiler.policies import trouble
from attnc.compiler.tuning import RecallDrop, RetrievalScore, Similarity, TrainedGate
from attnc.compiler.units import Unit
from attnc.tune.journal import Key, Row
from attnc.tune.runs import Run


class Job(NamedTuple):
    """One text of one sort of measurement, which one process does."""

    what: Any
    task: str
    length: int
    number: int
    keys: frozenset[Key]

    @property
    def name(self) -> str:
        """Of its lock."""
        return f"{self.what}-{self.task or 'all'}-{self.length}-{self.number}"


@dataclass(eq=False)
class Work:
    """All jobs of a run. `times`: whether milliseconds are measured, on the GPU of this name. With the name of picks in
    `around`: the losses around these alone.
    """

    run: Run
    times: bool
    gpu: str
    around: str = ""

    @cached_property
    def jobs(self) -> list[Job]:
        """All of the run."""
        settings, every = self.run.settings, self.run.all
        methods = {type(unit.by) for unit in every}
        texts = range(settings.samples)
        found = []
        for task in settings.tasks:
            for length in settings.lengths:
                found += [Job("loss", task, length, n, frozenset(self._loss_keys(task, length, n))) for n in texts]
        if self.around:
            return found
        if RecallDrop in methods and not {"text", "passkey"} <= set(settings.tasks):
            message = "recall_drop compares passkeys with text, which are not both measured"
            raise trouble("A613", message, self.run.place, "add --task text,passkey; text needs a tokenizer beside the weights")
        for length in settings.lengths:
            tasks = [task for task in settings.tasks if task == "passkey"]
            if RetrievalScore in methods:
                self._asks_passkeys(tasks)
                found += [self._watch("retrieval", "passkey", length, n, RetrievalScore) for n in texts]
            if Similarity in methods:
                found += [self._watch("similarity", settings.tasks[0], length, n, Similarity) for n in texts]
            for number, method in enumerate(self.gates):
                if method.data == "passkey":
                    self._asks_passkeys(tasks)
                found.append(self._watch("gate", method.data, length, number, method))
        if self.times:
            for length in settings.times_at or settings.lengths:
                found += [
                    Job("cost", "", length, batch, frozenset(self._cost_keys(length, batch))) for batch in settings.batches
                ]
        return found

    def _asks_passkeys(self, tasks: Sequence[str]) -> None:
        if not tasks:
            raise trouble(
                "A613", "the method of a choose asks passkeys, which are not measured", self.run.place, "add --task passkey"
            )

    def _loss_keys(self, task: str, length: int, number: int) -> Iterator[Key]:
        for unit in self.run.all:
            for candidate in unit.candidates:
                for first, last in unit.groups:
                    yield self.loss_row(task, length, number, unit, candidate.name, first, last, self.around).key

    @staticmethod
    def loss_row(task: str, length: int, number: int, unit: Unit, name: str, first: int, last: int, around: str = "") -> Row:
        """The measurement of a candidate on one text, without its values."""
        place: dict[str, Any] = {"layer": unit.layer, "scope": unit.scope, "first": first, "last": last}
        said: dict[str, Any] = {"task": task, "length": length, "sample": number, "around": around}
        return Row(what="loss", **said, **place, candidate=name, values={})

    def _watch(self, what: Any, task: str, length: int, number: int, method: type | TrainedGate) -> Job:
        units = self.of(method)
        keys = [
            Row(
                what=what, task=task, length=length, sample=number, layer=u.layer, scope=u.scope, first=g, last=g, values={}
            ).key
            for u in units
            for g in (range(u.kv_heads) if what != "similarity" else [-1])
        ]
        return Job(what, task, length, number, frozenset(keys))

    @cached_property
    def gates(self) -> list[TrainedGate]:
        """The settings of gates that units have, each of which is trained by itself."""
        return list(dict.fromkeys(unit.by for unit in self.run.all if isinstance(unit.by, TrainedGate)))

    def of(self, method: type | TrainedGate) -> list[Unit]:
        """The units that a method decides, whatever its settings or with just these."""
        if isinstance(method, type):
            return [unit for unit in self.run.all if isinstance(unit.by, method)]
        return [unit for unit in self.run.all if unit.by == method]

    def _cost_keys(self, length: int, batch: int) -> Iterator[Key]:
        for name in ("full", *(str(number) for number in range(self.most))):
            yield Row(what="cost", length=length, batch=batch, candidate=name, machine=self.gpu, values={}).key

    @cached_property
    def most(self) -> int:
        """Candidates of the unit that has most."""
        return max(len(unit.candidates) for unit in self.run.all)
