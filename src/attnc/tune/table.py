"""What a run measured as a table: for each site its candidates, with a loss for each task and each cost."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from statistics import fmean
from typing import NamedTuple

from attnc.compiler.policies import trouble
from attnc.compiler.tuning import Coverage, Method, RetrievalScore, Similarity, TrainedGate
from attnc.compiler.units import FULL, Candidate, Unit
from attnc.compiler.value import Share
from attnc.tune import costs
from attnc.tune.journal import Key, Row
from attnc.tune.reuse import reuse
from attnc.tune.runs import Run


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
    """A candidate of a site: by task its loss, by objective its cost."""

    candidate: Candidate
    losses: dict[str, float]
    costs: dict[str, float]


@dataclass(eq=False)
class Table:
    """All of a run for one device, one length and one number of sequences.

    loss  the probe whose numbers count; `gpu`: whose measured times count, empty for the table of `device`
    rounds  how often a proof failed: methods that decide by themselves are made so much stricter
    free    whether methods of the spec are passed over, and everything is searched
    """

    run: Run
    device: str
    length: int
    batch: int = 1
    loss: str = "kl"
    gpu: str = ""
    rounds: int = 0
    free: bool = False
    notes: list[str] = field(default_factory=list)

    @cached_property
    def rows(self) -> dict[Key, Row]:
        """The journal."""
        return self.run.journal.rows()

    @cached_property
    def sites(self) -> tuple[Site, ...]:
        """Every decision."""
        return tuple(Site(unit, first, last) for unit in self.run.all for first, last in unit.groups)

    @cached_property
    def _losses(self) -> dict[tuple[int, str, int, str], dict[str, dict[str, list[float]]]]:
        """(layer, scope, first group, candidate) -> task -> probe -> values of all texts."""
        found: dict[tuple[int, str, int, str], dict[str, dict[str, list[float]]]] = {}
        for row in self.rows.values():
            if row.what == "loss":
                key = (row.layer, row.scope, row.first, row.candidate)
                for probe, value in row.values.items():
                    found.setdefault(key, {}).setdefault(row.task, {}).setdefault(probe, []).append(value)
        return found

    def measured(self, site: Site, candidate: Candidate, probe: str) -> dict[str, float]:
        """By task the mean of a probe. Raises SpecError A613 where something was not measured."""
        key = (*site.unit.place, site.first, candidate.name)
        found = self._losses.get(key, {})
        settings = self.run.settings
        for task in settings.tasks:
            count = len(found.get(task, {}).get(probe, ()))
            if count < settings.samples * len(settings.lengths):
                where = f"layer {site.unit.layer}, KV group {site.first}, {candidate.name}"
                help_line = f"attnc tune score goes on with the run; --probe {probe} adds it"
                raise trouble("A613", f"`{probe}` of {task} is not measured at {where}", self.run.place, help_line)
        return {task: fmean(found[task][probe]) for task in settings.tasks}

    @cached_property
    def costs(self) -> costs.Costs:
        """Of whole units."""
        return costs.table_costs(self.run.units, self.run.all, self.device, self.length, self.batch)

    @cached_property
    def times(self) -> dict[str, dict[str, float]]:
        """By number of a candidate (or `full`) the milliseconds of the whole model, where this GPU measured them."""
        found = costs.measured_rows(self.rows, self.gpu, self.batch) if self.gpu else {}
        return {
            name: {
                what: value for what, points in own.items() if (value := costs.interpolated(points, self.length)) is not None
            }
            for name, own in found.items()
        }

    def options(self, site: Site) -> list[Option]:
        """The candidates of a site that have all costs; what nobody prices is left out, and said."""
        found = []
        for number, candidate in enumerate(site.unit.candidates):
            own = {what: one * site.share for what, one in self.costs[(*site.unit.place, candidate.name)].items()}
            if self.times:
                own |= self._of_times(number)
            lacking = [what for what in costs.OBJECTIVES if what not in own]
            if lacking:
                self._say(f"{candidate.name} has no price in {lacking[0].removesuffix('_ms')}, so it is left out")
                continue
            found.append(Option(candidate, self.measured(site, candidate, self.loss), own))
        if not found:
            message = f"no candidate of layer {site.unit.layer} has a price on {self.device}"
            raise trouble("A613", message, self.run.place, "score on a GPU, which measures times")
        return found

    def _of_times(self, number: int) -> dict[str, float]:
        """A site's part of what a model with this candidate everywhere takes more than full attention."""
        full, own = self.times.get("full", {}), self.times.get(str(number), {})
        return {what: (own[what] - full[what]) / len(self.sites) for what in own if what in full}

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

    def allowed(self, site: Site, options: list[Option]) -> list[Option]:
        """Those that the site's method leaves; without one, or with `loss`, all."""
        method = None if self.free else stricter(site.unit.by, self.rounds)
        if isinstance(method, TrainedGate | RetrievalScore):
            wanted = self._first(site, method)
            words = [one.candidate.choose for one in options]
            names = list(dict.fromkeys(words))
            keep = names[0] if wanted else names[-1]
            return [one for one in options if one.candidate.choose == keep]
        if isinstance(method, Coverage):
            return self._covered(site, options, method)
        if isinstance(method, Similarity):
            taken = self._reuse(site.unit.by, method)[site.unit.layer] != site.unit.layer
            names = list(dict.fromkeys(one.candidate.choose for one in options))
            return [one for one in options if one.candidate.choose == names[-1 if taken else 0]]
        return options

    def _covered(self, site: Site, options: list[Option], method: Coverage) -> list[Option]:
        """The cheapest that loses little enough, or the one that loses least; the worst task counts."""
        lost = {one.candidate: max(self.measured(site, one.candidate, "mass").values()) for one in options}
        least = min(lost.values())
        if method.share is None:
            enough = [one for one in options if lost[one.candidate] <= least + 1e-9]
        else:
            enough = [one for one in options if lost[one.candidate] <= 1 - method.share.percent / 100]
        enough = enough or [one for one in options if lost[one.candidate] == least]
        return [min(enough, key=lambda one: one.costs["decode_ms"] + one.costs["prefill_ms"])]

    def _first(self, site: Site, method: Method) -> bool:
        """Whether a group keeps its first alternative."""
        what = "gate" if isinstance(method, TrainedGate) else "retrieval"
        scores = self._scores(what)
        mine = scores.get((*site.unit.place, site.first))
        if mine is None:
            raise trouble("A613", f"`{what}` is not measured", self.run.place, "attnc tune score measures it")
        if isinstance(method, RetrievalScore) and method.threshold is not None:
            return mine >= method.threshold
        share = method.share.percent / 100 if isinstance(method, TrainedGate | RetrievalScore) and method.share else 0.5
        here = [
            (scores.get((*one.unit.place, one.first), 0.0), -number)
            for number, one in enumerate(self.sites)
            if one.unit.by == site.unit.by
        ]
        rank = sorted(here, reverse=True).index((mine, -self.sites.index(site)))
        return rank < round(share * len(here))

    def _scores(self, what: str) -> dict[tuple[int, str, int], float]:
        found: dict[tuple[int, str, int], list[float]] = {}
        for row in self.rows.values():
            if row.what == what:
                found.setdefault((row.layer, row.scope, row.first), []).append(row.values[what])
        return {key: fmean(values) for key, values in found.items()}

    def _reuse(self, written: Method | None, method: Similarity) -> dict[int, int]:
        """Layer -> the layer whose choice it takes."""
        layers = sorted({unit.layer for unit in self.run.all if unit.by == written})
        found: dict[tuple[int, int], list[float]] = {}
        lost: dict[int, list[float]] = {}
        for row in self.rows.values():
            if row.what == "similarity":
                lost.setdefault(row.layer, []).append(row.values["lost"])
                for other in layers:
                    found.setdefault((row.layer, other), []).append(row.values.get(str(other), 0.0))
        if any((one, other) not in found for one in layers for other in layers):
            raise trouble("A613", "`similarity` is not measured", self.run.place, "attnc tune score measures it")
        table = [[fmean(found[one, other]) for other in layers] for one in layers]
        count = -(-len(layers) * method.dense.percent // 100)
        ranked = sorted(range(len(layers)), key=lambda at: -fmean(lost[layers[at]]))
        path = reuse(table, method.threshold, set(ranked[: int(count)]))
        anchors = sum(source == at for at, source in enumerate(path))
        if anchors > method.anchors.percent / 100 * len(layers):
            message = f"{anchors} of {len(layers)} layers have to choose for themselves, more than {method.anchors} of them"
            raise trouble("A614", message, self.run.place, "lower the threshold of `similarity`, or raise `anchors`")
        return {layer: layers[source] for layer, source in zip(layers, path, strict=True)}


def stricter(method: Method | None, rounds: int) -> Method | None:
    """A method with more budget: a tenth more of the heads, or half as far from keeping everything, for each round."""
    half = 0.5**rounds
    match method:
        case TrainedGate(share=share):
            return replace(method, share=Share(percent=min(100, share.percent + 10 * rounds)))
        case RetrievalScore(threshold=threshold, share=share):
            more = None if share is None else Share(percent=min(100, share.percent + 10 * rounds))
            return replace(method, threshold=None if threshold is None else threshold * half, share=more)
        case Similarity(threshold=threshold):
            return replace(method, threshold=1 - (1 - threshold) * half)
        case Coverage(share=Share(percent=percent)):
            return replace(method, share=Share(percent=100 - (100 - percent) * half))
        case _:
            return method
