"""From measurements to a policy: the options with the least cost within limits, or the least loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Literal

from attnc.compiler.policies import check_sources, rows, trouble
from attnc.compiler.policy import Figure, Machine, Policy, Setting
from attnc.compiler.print_value import print_value
from attnc.compiler.units import Candidate, Place
from attnc.compiler.value import Value
from attnc.dsl import SpecError
from attnc.tune import costs
from attnc.tune.knapsack import Answer, exact, hull, hull_of_worst
from attnc.tune.methods import allowed, by_itself
from attnc.tune.table import Option, Site, Table

Per = Literal["head", "layer", "all"]
Solver = Literal["exact", "hull"]
SHARES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)
"""Of full attention's cost, for a frontier."""


@dataclass(frozen=True)
class Wanted:
    """What is made small, and limits: by objective a cost, and `loss` of each task.

    per     whether each site is decided by itself, or all of a layer alike, or all layers
    moves   how many KV groups may be decided otherwise than in the picks that the table is around
    solver  HiGHS, or the hull, which may miss the best and needs no scipy
    """

    objective: str
    limits: Mapping[str, float]
    loss: float | None = None
    per: Per = "head"
    solver: Solver = "exact"
    moves: int | None = None


class Solution(Value):
    """An answer: `loss` is the sum of losses of each task, each measured alone; `gap` what a better one could save.

    check  how far from the best the hull's own answer is, by its own bound
    """

    objective: str
    per: Per
    loss: dict[str, float]
    costs: dict[str, float]
    gap: float
    check: float | None
    budgets: dict[str, float]
    picks: tuple[tuple[int, str, int, int, str], ...]


@dataclass(frozen=True)
class Decided:
    """A solution with the candidates themselves; `least`: the sum that was made small."""

    solution: Solution
    picks: dict[Place, list[Candidate]]
    least: float


def solve(table: Table, wanted: Wanted) -> Decided:
    """The best of all values of the budgets that all layers share. Raises SpecError A614 where nothing keeps the limits."""
    table.check_met()
    sites = list(table.sites)
    options = [allowed(table, site, table.options(site)) for site in sites]
    best: Decided | None = None
    for values in product(*table.run.units.shared.values()):
        shared = dict(zip(table.run.units.shared, values, strict=True))
        here = [[one for one in own if _agrees(one, shared)] for own in options]
        if all(here):
            found = _solved(table, wanted, sites, here, shared)
            if found is not None and (best is None or found.least < best.least):
                best = found
    if best is None:
        raise _nothing(table, wanted, options)
    return best


def _agrees(option: Option, shared: Mapping[str, float]) -> bool:
    return all(shared.get(path, number) == number for path, number in option.candidate.budgets)


def columns(table: Table) -> list[str]:
    """Of a row of numbers: the losses that count together, of each task what counts and all of it, each cost, what moved."""
    tasks = table.run.settings.tasks
    losses = [*(f"counted of {task}" for task in tasks), *(f"loss of {task}" for task in tasks)]
    return ["loss", *losses, *costs.OBJECTIVES, "moved"]


def numbers(option: Option) -> list[float]:
    """A row: see `columns`."""
    counted = [value if task in option.counted else 0.0 for task, value in option.losses.items()]
    own = [option.costs[what] for what in costs.OBJECTIVES]
    return [sum(counted), *counted, *option.losses.values(), *own, float(option.moved)]


def _solved(
    table: Table, wanted: Wanted, sites: Sequence[Site], options: list[list[Option]], shared: dict[str, float]
) -> Decided | None:
    names = columns(table)
    together = _merged(table, sites, options, wanted.per)
    grid = [[_added(row) for row in rows_of] for rows_of, _ in together]
    if not all(grid):
        return None
    limits = {names.index(what): limit - table.rest(what) for what, limit in wanted.limits.items()}
    if wanted.loss is not None:
        limits |= {names.index(f"loss of {task}"): wanted.loss for task in table.run.settings.tasks}
    if wanted.moves is not None:
        limits[names.index("moved")] = wanted.moves
    made_least = [wanted.objective]
    if wanted.objective == "loss" and table.worst:
        made_least = [f"counted of {task}" for task in table.run.settings.tasks]
    aims = [names.index(one) for one in made_least]
    check = hull(grid, aims[0], limits) if len(aims) == 1 else hull_of_worst(grid, aims, limits)
    found = check if wanted.solver == "hull" else exact(grid, aims, limits)
    if found is None:
        return None
    gaps = found.gap(*aims), None if check is None else check.gap(*aims)
    picks: dict[Place, list[Candidate]] = {}
    chosen: dict[int, Option] = {}
    for pick, (rows_of, members) in zip(found.picks, together, strict=True):
        for at, option in zip(members, rows_of[pick], strict=True):
            chosen[at] = option
    for at, site in enumerate(sites):
        option = chosen[at]
        own = picks.setdefault(site.unit.place, [option.candidate] * site.unit.kv_heads)
        own[site.first : site.last + 1] = [option.candidate] * (site.last - site.first + 1)
    solution = _solution(table, wanted, found, gaps, shared, [(sites[at], chosen[at]) for at in sorted(chosen)])
    return Decided(solution, picks, max(found.sums[aim] for aim in aims))


def _added(bundle: Sequence[Option]) -> list[float]:
    """The numbers of options that are taken together."""
    return [sum(column) for column in zip(*map(numbers, bundle), strict=True)]


def _merged(
    table: Table, sites: Sequence[Site], options: list[list[Option]], per: Per
) -> list[tuple[list[tuple[Option, ...]], list[int]]]:
    """(choices, sites) of what is decided together: the candidates that all of its sites have."""
    bundles: dict[object, list[int]] = {}
    for at, site in enumerate(sites):
        alone = per == "head" and len(table.beside(site)) == 1
        key: object = at if alone else site.unit.candidates if per == "all" else site.unit.place
        bundles.setdefault(key, []).append(at)
    found = []
    for members in bundles.values():
        common = [one.candidate for one in options[members[0]]]
        common = [one for one in common if all(any(other.candidate == one for other in options[at]) for at in members)]
        rows_of = [tuple(next(other for other in options[at] if other.candidate == one) for at in members) for one in common]
        found.append((rows_of, members))
    return found


def _solution(
    table: Table,
    wanted: Wanted,
    found: Answer,
    gaps: tuple[float, float | None],
    shared: dict[str, float],
    chosen: Sequence[tuple[Site, Option]],
) -> Solution:
    names = columns(table)
    sums = dict(zip(names, found.sums, strict=True))
    return Solution(
        objective=wanted.objective,
        per=wanted.per,
        loss={task: sums[f"loss of {task}"] for task in table.run.settings.tasks},
        costs={what: sums[what] + table.rest(what) for what in costs.OBJECTIVES},
        gap=gaps[0],
        check=gaps[1],
        budgets=shared,
        picks=tuple((site.unit.layer, site.unit.scope, site.first, site.last, one.candidate.name) for site, one in chosen),
    )


def _nothing(table: Table, wanted: Wanted, options: list[list[Option]]) -> SpecError:
    """What is the least of each limited column, by itself."""
    names = columns(table)
    least = dict(
        zip(names, (sum(min(numbers(o)[at] for o in own) for own in options) for at in range(len(names))), strict=True)
    )
    said = [f"{what} is at least {least[what] + table.rest(what):.6g}" for what in wanted.limits]
    if wanted.loss is not None:
        said += [f"the loss of {task} at least {least[f'loss of {task}']:.4g}" for task in table.run.settings.tasks]
    message = "no setting keeps all limits; taken alone, " + ", ".join(said)
    return trouble("A614", message, table.run.place, "raise a limit, or --max-loss")


def policy(table: Table, decided: Decided, machine: Machine, limits: Mapping[str, float], made_by: str = "") -> Policy:
    """The file of a solution. Raises SpecError A604 where layers would take choices from nowhere."""
    run, solution = table.run, decided.solution
    spec = run.units.settled(decided.picks)
    check_sources(spec, run.place)
    settings: list[Setting] = []
    for unit in run.all:
        settings += rows(unit, decided.picks[unit.place], run.units.shared)
    methods = dict.fromkeys("search" if unit.by is None else print_value(unit.by) for unit in run.all)
    return Policy(
        model=run.spec.model.name,
        spec=run.settings.spec,
        weights=run.settings.weights,
        data=run.settings.data,
        made_by=made_by or ", ".join(methods),
        machine=machine,
        seed=run.settings.seed,
        lengths=run.settings.lengths,
        objective=solution.objective,
        probe=table.loss,
        limits=dict(limits),
        estimate=max(solution.loss.values()),
        budgets=solution.budgets,
        settings=tuple(settings),
        figures=figures(table, decided.picks),
    )


def figures(table: Table, picks: Mapping[Place, Sequence[Candidate]]) -> tuple[Figure, ...]:
    """What a policy costs at the table's length: by measured times, which are added up over sites, or as its plan is priced."""
    spec, found = table.run.units.settled(picks), []
    for what in costs.OBJECTIVES:
        if what == "kv_bytes" or not table.times:
            predicted = costs.priced(spec, table.device, what, table.length, table.batch)
        else:
            parts = (table.costs_of(site, picks[site.unit.place][site.first])[what] for site in table.sites)
            predicted = table.rest(what) + sum(parts)
        found.append(Figure(what=what, length=table.length, batch=table.batch, full=table.whole(what), predicted=predicted))
    return tuple(found)


class Point(Value):
    """A point of a frontier: the least loss at a cost."""

    per: Per | Literal["method"]
    share: float
    cost: float
    loss: float
    candidate: str = ""


def frontier(table: Table, objective: str, pers: Sequence[Per] = ("head", "layer", "all")) -> list[Point]:
    """The least mean loss of the tasks at shares of full attention's cost, decided for each site, layer, or all alike."""
    found = []
    if all(by_itself(unit) for unit in table.run.all):
        found.append(_point(table, objective, solve(table, Wanted(objective, {})).solution, "method"))
    table = replace(table, free=True)
    for per in pers:
        seen: set[tuple[float, float]] = set()
        for share in SHARES:
            limit = share * table.whole(objective)
            try:
                solution = solve(table, Wanted("loss", {objective: limit}, per=per)).solution
            except SpecError as error:
                if error.diagnostics[0].code == "A614":
                    break
                raise
            point = (solution.costs[objective], sum(solution.loss.values()) / len(solution.loss))
            if point not in seen:
                seen.add(point)
                found.append(_point(table, objective, solution, per))
    return found


def _point(table: Table, objective: str, solution: Solution, per: Per | Literal["method"]) -> Point:
    names = {name for *_, name in solution.picks}
    cost = solution.costs[objective]
    return Point(
        per=per,
        share=cost / table.whole(objective),
        cost=cost,
        loss=sum(solution.loss.values()) / len(solution.loss),
        candidate=next(iter(names)) if len(names) == 1 else "",
    )
