"""What a run measured as a table: for each site its candidates, with a loss for each task and each cost."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from statistics import fmean
from typing import NamedTuple

from attnc.compiler.policies import trouble
from attnc.compiler.tuning import Loss
from attnc.compiler.units import FULL, Candidate, Unit
from attnc.tune import costs
from attnc.tune.around import Around
from attnc.tune.journal import Key, Row
from attnc.tune.runs import Run

Measured = tuple[str, int, str, int, str]
"""Name of the picks around it, layer, scope, first KV group and candidate; of a whole model the first alone."""


class Site(NamedTuple):
    """One decision: KV groups first..last of a unit."""

    unit: Unit
    first: int
    last: int

    @property
    def share(self) -> float:
        """Of the unit's groups."""
        return (self.last - self.first + 1) / self.unit.kv_heads


class Option(NamedTuple):
    """A candidate of a site: by task its loss, by objective its cost.

    counted  the tasks that the site is searched by
    moved    its KV groups, where these do something else in the picks that the table is around
    """

    candidate: Candidate
    losses: dict[str, float]
    costs: dict[str, float]
    counted: tuple[str, ...]
    moved: int = 0


@dataclass(eq=False)
class Table:
    """All of a run for one device, one length and one number of sequences.

    loss  the probe whose numbers count; `gpu`: whose measured times count, empty for the table of `device`
    rounds  how often a proof failed: methods that decide by themselves are made so much stricter
    free    whether methods of the spec are passed over, and everything is searched
    around  picks whose losses, and what each candidate adds to them, count instead of those of single sites
    """

    run: Run
    device: str
    length: int
    batch: int = 1
    loss: str = "kl"
    gpu: str = ""
    rounds: int = 0
    free: bool = False
    around: Around | None = None
    notes: list[str] = field(default_factory=list)

    @cached_property
    def rows(self) -> dict[Key, Row]:
        """The journal."""
        return self.run.journal.rows()

    @cached_property
    def sites(self) -> tuple[Site, ...]:
        """Every decision."""
        return tuple(Site(unit, first, last) for unit in self.run.all for first, last in unit.groups)

    def beside(self, site: Site) -> list[Site]:
        """The sites that are decided with this one: all of its unit where heads that differ are not built, which is said."""
        why = self.run.units.tied(site.unit)
        if not why:
            return [site]
        self._say(f"KV groups of a layer are decided together: {why} for some of them is not built")
        return [one for one in self.sites if one.unit.place == site.unit.place]

    @cached_property
    def _losses(self) -> dict[Measured, dict[str, dict[str, list[float]]]]:
        """What was measured -> task -> probe -> values of all texts."""
        found: dict[Measured, dict[str, dict[str, list[float]]]] = {}
        for row in self.rows.values():
            if row.what in ("loss", "whole"):
                key = (row.around, row.layer, row.scope, row.first, row.candidate)
                for probe, value in row.values.items():
                    found.setdefault(key, {}).setdefault(row.task, {}).setdefault(probe, []).append(value)
        return found

    def measured(self, site: Site, candidate: Candidate, probe: str, around: str = "") -> dict[str, float]:
        """By task the mean of a probe, alone or around picks. Raises SpecError A613 where something was not measured."""
        key = (around, *site.unit.place, site.first, candidate.name)
        return self._means(key, probe, f"layer {site.unit.layer}, KV group {site.first}, {candidate.name}")

    def _means(self, key: Measured, probe: str, where: str) -> dict[str, float]:
        found, settings = self._losses.get(key, {}), self.run.settings
        for task in settings.tasks:
            count = len(found.get(task, {}).get(probe, ()))
            if count < settings.samples * len(settings.lengths):
                help_line = f"attnc tune score goes on with the run; --probe {probe} adds it"
                raise trouble("A613", f"`{probe}` of {task} is not measured at {where}", self.run.place, help_line)
        return {task: fmean(found[task][probe]) for task in settings.tasks}

    def whole_loss(self, around: Around) -> dict[str, float]:
        """By task the loss of a model of these picks. Raises SpecError A613 where it was not measured."""
        return self._means((around.name, -1, "", -1, ""), self.loss, "the policy as a whole")

    def losses(self, site: Site, candidate: Candidate) -> dict[str, float]:
        """By task what a site adds: measured alone, or what it adds to the losses of the picks around it and a part of these,
        so that the sum over all sites is that of the whole.
        """
        if self.around is None:
            return self.measured(site, candidate, self.loss)
        added, whole = self.measured(site, candidate, self.loss, self.around.name), self.whole_loss(self.around)
        return {task: value + whole[task] / len(self.sites) for task, value in added.items()}

    @cached_property
    def costs(self) -> costs.Costs:
        """Of whole units."""
        return costs.table_costs(self.run.units, self.run.all, self.device, self.length, self.batch)

    @cached_property
    def times(self) -> dict[str, dict[str, float]]:
        """By number of a candidate (or `full`) the milliseconds of the whole model, where this GPU measured them.

        Raises SpecError A613 for a length that lies outside of those that were measured.
        """
        found: dict[str, dict[str, float]] = {}
        for name, own in (costs.measured_rows(self.rows, self.gpu, self.batch) if self.gpu else {}).items():
            for what, points in own.items():
                value = costs.interpolated(points, self.length)
                if value is None:
                    lengths = ", ".join(map(str, sorted(points)))
                    message = f"times at {self.length} tokens: {self.gpu} measured {lengths}, and nothing follows from these"
                    help_line = f"attnc tune score --time-length {self.length}, or --length {max(points)} here"
                    raise trouble("A613", message, self.run.place, help_line)
                found.setdefault(name, {})[what] = value
        return found

    def options(self, site: Site) -> list[Option]:
        """The candidates of a site that have all costs; what nobody prices is left out, and said."""
        found = []
        for candidate in site.unit.candidates:
            own = self.costs_of(site, candidate)
            lacking = [what for what in costs.OBJECTIVES if what not in own]
            if lacking:
                self._say(f"{candidate.name} has no price in {lacking[0].removesuffix('_ms')}, so it is left out")
                continue
            here = self.around is None or self.around.same(site.unit, site.first, candidate)
            moved = 0 if here else site.last - site.first + 1
            found.append(Option(candidate, self.losses(site, candidate), own, self.counted(site), moved))
        if not found:
            message = f"no candidate of layer {site.unit.layer} has a price on {self.device}"
            raise trouble("A613", message, self.run.place, "score on a GPU, which measures times")
        return found

    def counted(self, site: Site) -> tuple[str, ...]:
        """The tasks whose losses are made small: of `loss(data = passkey)` that one, else all of the run."""
        tasks, method = self.run.settings.tasks, site.unit.by
        if not isinstance(method, Loss) or method.data == "tasks" or self.free:
            return tasks
        if method.data not in tasks:
            message = f"the spec decides layer {site.unit.layer} by the loss of {method.data}, which is not measured"
            raise trouble("A613", message, self.run.place, f"attnc tune score --task {method.data}, into another run")
        return (method.data,)

    @property
    def worst(self) -> bool:
        """Whether the loss of the worst task is made small, and not that of all together."""
        return not self.free and any(isinstance(unit.by, Loss) and unit.by.worst for unit in self.run.all)

    def costs_of(self, site: Site, candidate: Candidate) -> dict[str, float]:
        """A site's part of each cost of its unit; where times were measured, of what a model with this candidate everywhere
        takes more than full attention.
        """
        found = {what: one * site.share for what, one in self.costs[(*site.unit.place, candidate.name)].items()}
        full, own = (self.times.get(name, {}) for name in ("full", str(site.unit.candidates.index(candidate))))
        return found | {what: (own[what] - full[what]) / len(self.sites) for what in own if what in full}

    def whole(self, objective: str) -> float:
        """The cost of the model with full attention at every site: measured, or by the device's table."""
        if objective != "kv_bytes" and self.times:
            return self.times["full"][objective]
        if objective not in self._whole:
            picks = {unit.place: [FULL] * unit.kv_heads for unit in self.run.all}
            self._whole[objective] = costs.priced(
                self.run.units.settled(picks), self.device, objective, self.length, self.batch
            )
        return self._whole[objective]

    @cached_property
    def _whole(self) -> dict[str, float]:
        return {}

    def everywhere(self, name: str, objective: str) -> float | None:
        """The share of full attention's cost that the model has with the candidate of this name at every site; None where
        some site has none, or nobody prices it.
        """
        total = self.rest(objective)
        for site in self.sites:
            found = next((one for one in site.unit.candidates if one.name == name), None)
            own = None if found is None else self.costs_of(site, found).get(objective)
            if own is None:
                return None
            total += own
        return total / self.whole(objective)

    def rest(self, objective: str) -> float:
        """What of the cost is not in the sum over sites; measured times are differences from full attention."""
        if objective != "kv_bytes" and self.times:
            return self.whole(objective)
        return self.whole(objective) - sum(self.costs[(*unit.place, FULL.name)][objective] for unit in self.run.all)

    def _say(self, words: str) -> None:
        if words not in self.notes:
            self.notes.append(words)

    def check_met(self) -> None:
        """Raises SpecError A615 where no candidate of a unit changed anything on any text."""
        for site in self.sites:
            names = [one for one in site.unit.candidates if self.run.units.mixer(site.unit.place, one) != self._full(site)]
            values = [max(self.measured(site, one, "output").values()) for one in names]
            if values and max(values) == 0:
                lengths = ", ".join(map(str, self.run.settings.lengths))
                message = f"nothing that layer {site.unit.layer} may be changes anything at {lengths} tokens"
                raise trouble("A615", message, self.run.place, "measure longer texts: --length")

    def _full(self, site: Site) -> object:
        return self.run.units.mixer(site.unit.place, FULL)
