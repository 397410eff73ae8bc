"""The proof of a policy: the whole model on texts that nothing was measured on. Sums of single losses are no proof."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import attnc
from attnc.codegen.build import Options as BuildOptions
from attnc.codegen.build import build
from attnc.compiler.laws import laws
from attnc.compiler.policies import of_folder, trouble
from attnc.compiler.policy import Figure, Machine, Policy, TaskLoss
from attnc.compiler.units import FULL
from attnc.compiler.value import Value
from attnc.evaluate.asking import losses_behind
from attnc.evaluate.report import Loss
from attnc.evaluate.run import Options, evaluate
from attnc.evaluate.subject import Subject
from attnc.evaluate.tokenizer import NAME
from attnc.tasks.text import Text, topics
from attnc.tune import costs
from attnc.tune.models import Models, uniform
from attnc.tune.runs import Run
from attnc.tune.solve import Wanted, policy, solve
from attnc.tune.table import Table

EVALUATED = {"text": "nll", "passkey": "passkey"}
"""What each task of a run is called in an evaluation."""

DECODED = 128
"""Tokens of a text that are decoded behind a prefill of the rest, at most half of it."""

RISES = 9
"""How often budgets are made higher before nothing is expected to change any more."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Gate:
    """How much worse than full attention each task may be: `rise` of a loss relatively, `drop` of a share of right answers.

    rounds  how often budgets rise and another policy is tried
    """

    rise: float = 0.01
    drop: float = 0.02
    trials: int = 40
    lengths: tuple[int, ...] = ()
    text: Path | None = None
    rounds: int = 3
    batch: int = 4


class Verdict(Value):
    """What `attnc tune prove` says: `worst` is the task that comes nearest to its limit, or is farthest beyond it, and `used`
    the part of the limit that it takes.
    """

    schema_version: int = 1
    proved: bool
    rounds: int
    worst: str
    used: float
    estimate: float | None
    policy: Policy


@dataclass(eq=False)
class Prover:
    """One proof on one machine. `dtype`: of the models, as in `attnc eval`."""

    run: Run
    weights: Path
    scratch: Path
    device: str
    dtype: Any
    machine: Machine
    gate: Gate
    times: bool
    say: Say

    def go(self, first: Policy, table: Table) -> Verdict:
        """Tries the policy, and as long as it fails another one with higher budgets."""
        now, count = first, 0
        while True:
            subject = self.subject(now, f"policy_{count}")
            losses = self._compared(self.full, self._evaluated(subject))
            worst, used = max(((one, self._used(one)) for one in losses), key=lambda pair: pair[1])
            now = replace(now, losses=losses, proved=used <= 1, figures=self._figures(now, subject))
            name = f"{worst.task} at {worst.length} tokens"
            self.say(f"round {count}: {name} takes {used:.0%} of what it may lose")
            if used <= 1 or count == self.gate.rounds:
                estimate = now.estimate
                return Verdict(proved=used <= 1, rounds=count, worst=name, used=used, estimate=estimate, policy=now)
            count += 1
            raised = self._raised(now, table, count)
            if raised is None:
                self.say("nothing has a higher budget")
                return Verdict(proved=False, rounds=count, worst=name, used=used, estimate=now.estimate, policy=now)
            now = raised

    def _raised(self, last: Policy, table: Table, count: int) -> Policy | None:
        """The policy with half the loss, or with a fifth more of each cost, as often as it takes until something changes; None
        where nothing does.
        """
        for more in range(1, RISES):
            limits = {what: limit / 2**more if what == "loss" else limit * 1.2**more for what, limit in last.limits.items()}
            wider = replace(table, rounds=count + more - 1, notes=[])
            costly = {what: limit for what, limit in limits.items() if what != "loss"}
            made = policy(wider, solve(wider, Wanted(last.objective, costly, limits.get("loss"))), self.machine, limits)
            if (made.settings, made.budgets) != (last.settings, last.budgets):
                return made
        return None

    def _used(self, one: TaskLoss) -> float:
        """The part of what a task may lose that it loses."""
        limit = self.gate.rise if one.task == "text" else self.gate.drop
        return one.rise / limit if limit else (0.0 if one.rise <= 0 else float("inf"))

    def _full(self) -> Subject:
        """Full attention at every site, whose tensors are some of the checkpoint's."""
        kind = str(self.dtype).removeprefix("torch.")
        models = Models(self.run.units, self.run.all, self.weights, self.scratch, self.device, kind, self.machine.device)
        spec = self.run.units.settled({unit.place: [FULL] * unit.kv_heads for unit in self.run.all})
        model = models.load(spec)
        place = self.scratch / "model_1"
        if (self.weights / NAME).is_file():
            shutil.copyfile(self.weights / NAME, place / NAME)
        return Subject(place, model, spec)

    def subject(self, now: Policy, name: str) -> Subject:
        """The model that `attnc build` makes of a policy."""
        place = self.scratch / name
        build(self.run.spec, place, BuildOptions(device=self.machine.device, weights=self.weights, policy=now))
        return Subject(place, attnc.load(place, self.device, self.dtype), of_folder(place))

    @cached_property
    def full(self) -> Mapping[tuple[str, int], tuple[float, int]]:
        """What full attention answers, asked once."""
        subject = self._full()
        self.say(f"full: {subject.cache_bytes(max(self._lengths)):,} bytes of cache")
        return self._evaluated(subject)

    @property
    def _lengths(self) -> tuple[int, ...]:
        return self.gate.lengths or self.run.settings.lengths

    def _evaluated(self, subject: Subject) -> dict[tuple[str, int], tuple[float, int]]:
        """(task, length) -> nats a token or the share of wrong answers, and trials."""
        tasks = tuple(EVALUATED[task] for task in self.run.settings.tasks if not (task == "text" and self.behind))
        options = Options(
            tasks=tasks,
            lengths=self._lengths,
            trials=self.gate.trials,
            batch=self.gate.batch,
            seed=self.run.settings.seed + 1,
            text=self.gate.text,
        )
        found: dict[tuple[str, int], tuple[float, int]] = self._read_behind(subject) if self.behind else {}
        if not tasks:
            return found
        report = evaluate(subject, options, lambda *_: None)
        for row in report.rows:
            if isinstance(row, Loss):
                found["text", row.length] = row.value, row.windows
            else:
                found[row.task, row.length] = 1 - row.value, row.trials
        return found

    @cached_property
    def behind(self) -> bool:
        """Whether a prefill may look ahead, so that only what is decoded behind it tells the loss on text."""
        most = max(len(unit.candidates) for unit in self.run.all)
        specs = [self.run.units.settled(uniform(self.run.all, number)) for number in range(most)]
        ahead = any(law.name == "causal" and not law.owed for spec in specs for law in laws(spec))
        return ahead and "text" in self.run.settings.tasks

    def _read_behind(self, subject: Subject) -> dict[tuple[str, int], tuple[float, int]]:
        text = Text(str(self.gate.text), self.gate.text) if self.gate.text else topics()
        found = {}
        for length in self._lengths:
            decoded = min(DECODED, length // 2)
            gate, reader = self.gate, subject.tokenizer(subject.form)
            rows = losses_behind(subject, reader, text, length, gate.trials, gate.batch, decoded)
            if not rows:
                raise trouble("A613", f"{text.name} has no {length} tokens", self.run.place, "--text with a longer text")
            found["text", length] = sum(nats for nats, _ in rows) / sum(tokens for _, tokens in rows), len(rows)
        return found

    @staticmethod
    def _compared(
        full: Mapping[tuple[str, int], tuple[float, int]], own: Mapping[tuple[str, int], tuple[float, int]]
    ) -> tuple[TaskLoss, ...]:
        found = []
        for (task, length), (value, trials) in own.items():
            before = full[task, length][0]
            rise = value / before - 1 if task == "text" else value - before
            found.append(TaskLoss(task=task, length=length, full=before, policy=value, rise=rise, trials=trials))
        return tuple(found)

    def _figures(self, now: Policy, subject: Subject) -> tuple[Figure, ...]:
        """The policy's figures with what the composed model takes, where times are measured."""
        if not self.times:
            return now.figures
        return self.timed(now.figures, subject)

    def timed(self, figures: Sequence[Figure], subject: Subject) -> tuple[Figure, ...]:
        """Figures with the times that a model takes."""
        found, taken = [], dict[tuple[int, int], dict[str, float]]()
        for figure in figures:
            if figure.what == "kv_bytes":
                found.append(figure)
            else:
                model: Any = subject.model
                at = figure.length, figure.batch
                if at not in taken:
                    taken[at] = costs.measured({"policy": model}, *at, self.say)["policy"]
                found.append(replace(figure, measured=taken[at][figure.what]))
        return tuple(found)
