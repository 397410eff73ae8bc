"""A policy with less loss for the same cost: losses of single sites do not add up, so they are measured again around it.

First the same budget is spent alike, in each layer and in all of them, since a policy that is worse than these is no place to
begin. Then a round measures what each candidate of each site adds to the loss of the whole model, and solves with these numbers
for several numbers of sites that may move: the fewer move, the more the sum is worth. The best of the models found, each
measured as a whole, is where the next round begins; one that is no better than the last is never taken.

Source: a trust region (Conn, Gould, Toint, "Trust-Region Methods", 2000), where the region is a number of exchanges.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from attnc.compiler.policy import Policy
from attnc.compiler.value import Value
from attnc.dsl import SpecError
from attnc.tune.around import Around
from attnc.tune.jobs import Job, Work
from attnc.tune.journal import Row
from attnc.tune.probes import Probe, read
from attnc.tune.score import Scorer
from attnc.tune.solve import Decided, Per, Wanted, policy, solve
from attnc.tune.table import Table

COARSER: dict[Per, tuple[Per, ...]] = {"head": ("layer", "all"), "layer": ("all",), "all": ()}
"""What else is decided alike before the first round."""

FEWER = 3
"""By how much the number of sites that may move falls from one try to the next."""


class Step(Value):
    """A round, or a better beginning than the policy given, `alike` for all KV groups of a `layer`, or `all` of the model.

    moved  how many KV groups; `foretold`, `loss`: by task that of the whole model, as the sum said and as it is
    """

    alike: Per | None = None
    moved: int
    foretold: dict[str, float]
    loss: dict[str, float]


class Refined(Value):
    """What `attnc tune refine` says. `begun`: by task the loss of the policy that was given."""

    schema_version: int = 1
    probe: str
    begun: dict[str, float]
    steps: tuple[Step, ...]
    policy: Policy


@dataclass(eq=False)
class Refiner:
    """`scorer`: one process at work on the run; `table`: its numbers, whose probe counts; `per`: what is decided alike."""

    scorer: Scorer
    table: Table
    per: Per = "head"

    def go(self, first: Policy, rounds: int, path: Path) -> Refined:
        """Raises SpecError A602, A613, A614; what is measured stays, whenever this ends."""
        around = Around.of(self.table.run, first, path)
        limits = self.held(around, first)
        begun = loss = self.whole(around)
        steps, now = list[Step](), first
        for number in range(rounds + 1):
            found = self.better(around, loss, limits) if number else self.alike(around, loss, limits)
            if found is None and number:
                break
            if found is None:
                continue
            decided, around, step = found
            steps.append(step)
            loss = step.loss
            made = policy(self.table, decided, first.machine, first.limits, f"{first.made_by}, refined")
            now = replace(made, objective=first.objective, estimate=max(loss.values()))
        return Refined(probe=self.table.loss, begun=begun, steps=tuple(steps), policy=now)

    def held(self, around: Around, first: Policy) -> dict[str, float]:
        """What the policy costs by its objective and by its limits, and no other may."""
        wanted = {first.objective, *first.limits} - {"loss"}
        found: dict[str, float] = {}
        for what in wanted:
            own = (self.table.costs_of(site, around.picks[site.unit.place][site.first])[what] for site in self.table.sites)
            found[what] = max(self.table.rest(what) + sum(own), first.limits.get(what, 0.0))
        return found

    def alike(
        self, around: Around, loss: Mapping[str, float], limits: Mapping[str, float]
    ) -> tuple[Decided, Around, Step] | None:
        """The best of what is decided alike within the limits; None where nothing is better."""
        best, value = None, self.counted(loss)
        for per in COARSER[self.per]:
            try:
                decided = solve(replace(self.table, notes=[]), Wanted("loss", limits, per=per))
            except SpecError as error:
                if error.diagnostics[0].code != "A614":
                    raise
                continue  # nothing keeps the limits alike
            there = Around(self.table.run, decided.picks)
            found = self.whole(there)
            if self.counted(found) < value:
                value = self.counted(found)
                step = Step(alike=per, moved=around.apart(there), foretold=decided.solution.loss, loss=found)
                best = decided, there, step
        return best

    def better(
        self, around: Around, loss: Mapping[str, float], limits: Mapping[str, float]
    ) -> tuple[Decided, Around, Step] | None:
        """The best that was found around these picks; None where nothing is better."""
        self.scorer.go(around)
        table = replace(self.table, around=around, notes=[])
        best, value = None, self.counted(loss)
        moves = sum(site.last - site.first + 1 for site in table.sites)
        while moves:
            decided = solve(table, Wanted("loss", limits, per=self.per, moves=moves))
            there = Around(table.run, decided.picks)
            moved = around.apart(there)
            if not moved:
                break
            found = self.whole(there)
            if self.counted(found) < value:
                value = self.counted(found)
                best = decided, there, Step(moved=moved, foretold=decided.solution.loss, loss=found)
            elif best is not None:
                break
            moves = min(moved, moves) // FEWER
        return best

    def counted(self, loss: Mapping[str, float]) -> float:
        """One number of the losses of tasks: of the worst task, where the spec says so, or of those that count together."""
        tasks = {task for site in self.table.sites for task in self.table.counted(site)}
        return max(loss[task] for task in tasks) if self.table.worst else sum(loss[task] for task in tasks)

    def whole(self, around: Around) -> dict[str, float]:
        """By task the loss of a model of these picks, measured where it is not known."""
        journal = self.table.run.journal
        known = set(journal.rows())
        for job in Work(self.table.run, False, "", around.name).jobs:
            row = Row(what="whole", task=job.task, length=job.length, sample=job.number, around=around.name, values={})
            if row.key not in known:
                journal.add([replace(row, values=self._losses(around, job))])
        return replace(self.table, notes=[]).whole_loss(around)

    @torch.no_grad()
    def _losses(self, around: Around, job: Job) -> dict[str, float]:
        sample = self.scorer.sample(job)
        full = Probe.of(self.scorer.full, (), sample, masses=False)
        return full.losses(read(self.scorer.models.of(around.picks), (), sample).hidden)._asdict()
