"""One option for each site, so that a sum is least and other sums stay within limits (multiple-choice knapsack).

Exactly by HiGHS (scipy.optimize.milp); and by Lagrange multipliers, whose bound says how far from the best an answer may be.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Sites = Sequence[Sequence[Sequence[float]]]
"""Site -> option -> its number in each column."""

SLACK = 1e-9
"""Relative: sums of the same numbers in another order."""

STEPS = 100
"""Of the multipliers."""

HALVINGS = 12
"""Of what is between a bound and an answer."""


@dataclass(frozen=True)
class Answer:
    """The number of each site's option, the sums of all columns, and what no answer is below."""

    picks: tuple[int, ...]
    sums: tuple[float, ...]
    bound: float

    def gap(self, *columns: int) -> float:
        """How much worse than the best it is at most, relatively; of several columns their largest sum counts."""
        value = max(self.sums[column] for column in columns)
        return max(0.0, value - self.bound) / max(abs(value), 1e-12)


def sums(sites: Sites, picks: Sequence[int]) -> tuple[float, ...]:
    """The sums of all columns."""
    return tuple(float(one) for one in np.sum([site[pick] for site, pick in zip(sites, picks, strict=True)], axis=0))


def within(totals: Sequence[float], limits: Mapping[int, float]) -> bool:
    """Whether sums keep the limits."""
    return all(totals[column] <= limit + SLACK * max(1.0, abs(limit)) for column, limit in limits.items())


def exact(sites: Sites, column: int | Sequence[int], limits: Mapping[int, float], gap: float = 1e-4) -> Answer | None:
    """The options whose sum of `column` is least, or of several columns the largest sum, as far as `gap` tells; None if none
    keep the limits.

    Source: the multiple-choice knapsack (Sinha & Zoltners, 1979) as a mixed integer programme.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_matrix, vstack

    columns = [column] if isinstance(column, int) else list(column)
    kept = [undominated(np.array(site, dtype=np.float64)[:, [*columns, *limits]]) for site in sites]
    sizes = [len(own) for own in kept]
    table = np.array([site[at] for site, own in zip(sites, kept, strict=True) for at in own], dtype=np.float64)
    count = len(table)
    scale = max(float(np.abs(table[:, columns]).max()), 1e-30)
    # The last variable is what is made least; the sums of the columns are no more than it.
    owner = np.repeat(np.arange(len(sites)), sizes)
    rows = [csr_matrix((np.ones(count), (owner, np.arange(count))), shape=(len(sites), count + 1))]
    rows += [csr_matrix(np.append(table[:, one] / scale, -1.0)[None]) for one in columns]
    low, high = [1.0] * len(sites) + [-np.inf] * len(columns), [1.0] * len(sites) + [0.0] * len(columns)
    for limited, limit in limits.items():
        own = max(abs(limit), float(np.abs(table[:, limited]).max()), 1e-30)
        rows.append(csr_matrix(np.append(table[:, limited] / own, 0.0)[None]))
        low.append(-np.inf)
        high.append(limit / own + SLACK)
    found = milp(
        np.append(np.zeros(count), 1.0),
        integrality=np.append(np.ones(count), 0),
        bounds=Bounds(np.append(np.zeros(count), -np.inf), np.append(np.ones(count), np.inf)),
        constraints=LinearConstraint(vstack(rows), np.array(low), np.array(high)),
        options={"mip_rel_gap": gap},
    )
    if found.x is None:
        return None
    starts = np.concatenate(([0], np.cumsum(sizes)[:-1]))
    picks = tuple(int(own[np.argmax(found.x[at : at + len(own)])]) for at, own in zip(starts, kept, strict=True))
    totals = sums(sites, picks)
    if not within(totals, limits):  # the solver's tolerance is absolute: a limit that is kept by a hair may be broken by one
        tight = {c: limit - 2 * max(0.0, totals[c] - limit) for c, limit in limits.items()}
        return exact(sites, column, tight, gap)
    return Answer(picks, totals, float(found.mip_dual_bound) * scale)


def undominated(site: Array) -> NDArray[np.int64]:
    """The options that no other one of the site is as good as in every column; of equal ones the first."""
    before = np.tri(len(site), k=-1, dtype=bool)
    as_good = (site[None] <= site[:, None]).all(-1)
    better = as_good & (~as_good.T | before)
    return np.flatnonzero(~better.any(1))


def hull_of_worst(sites: Sites, columns: Sequence[int], limits: Mapping[int, float]) -> Answer | None:
    """As `hull`, where the largest sum of several columns is made least: their limit is halved in on."""
    alone = [hull(sites, column, limits) for column in columns]
    answers = [one for one in alone if one is not None]
    if len(answers) < len(alone):
        return None
    bound = max(one.bound for one in answers)
    best = min(answers, key=lambda one: max(one.sums[column] for column in columns))
    low, high = bound, max(best.sums[column] for column in columns)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        found = hull(sites, columns[0], {**limits, **dict.fromkeys(columns, middle)})
        if found is None:
            low = middle
        else:
            best, high = found, middle
    return Answer(best.picks, best.sums, bound)


def hull(sites: Sites, column: int, limits: Mapping[int, float]) -> Answer | None:
    """A good answer without a solver, and a bound: multipliers for the limits by subgradients, then exchanges site by site.

    With one limit this walks the lower convex hull of each site's options. None if it finds no options that keep the limits.

    Source: Fisher, "The Lagrangian relaxation method for solving integer programming problems" (1981).
    """
    width = max(len(site) for site in sites)
    table = np.full((len(sites), width, len(sites[0][0])), np.inf)
    for at, site in enumerate(sites):
        table[at, : len(site)] = site
    columns, caps = list(limits), np.array([limits[one] for one in limits], dtype=np.float64)
    weights = np.zeros(len(columns))
    real = np.isfinite(table[:, :, column])
    spread = np.where(real[..., None], table[:, :, columns], 0.0)
    size = np.maximum(np.abs(caps), 1e-12)
    reach = max(float(np.where(real, np.abs(table[:, :, column]), 0).max(1).sum()), 1e-12)
    bound = -np.inf
    starts: list[NDArray[np.int64]] = []
    for step in range(STEPS if columns else 1):
        priced = np.where(real, table[:, :, column] + spread @ weights if columns else table[:, :, column], np.inf)
        picks = priced.argmin(1)
        value = float(priced.min(1).sum() - weights @ caps)
        if value > bound:
            bound = value
            starts = [*starts[-1:], picks]
        over = (spread[np.arange(len(sites)), picks].sum(0) - caps) / size if columns else np.zeros(0)
        weights = np.maximum(0.0, weights + reach / size * over / (1 + step) ** 0.7)
    repaired = [_repaired(table, picks, column, columns, caps) for picks in starts]
    found = [one for one in repaired if one is not None]
    if not found:
        return None
    answer = tuple(int(one) for one in min(found, key=lambda one: one[1])[0])
    return Answer(answer, sums(sites, answer), bound)


def _repaired(
    table: Array, picks: NDArray[np.int64], column: int, columns: list[int], caps: Array
) -> tuple[NDArray[np.int64], float] | None:
    """Exchanges options until the limits hold, the cheapest first, and then as long as one makes the sum smaller."""
    picks, sites = picks.copy(), np.arange(len(table))
    size = np.maximum(np.abs(caps), 1e-12)
    for _ in range(4 * len(table)):
        now = table[sites, picks]
        worse = table[:, :, column] - now[:, column, None]
        moved = table[:, :, columns] - now[:, None, columns]
        over = (now[:, columns].sum(0) - caps) / size
        after = over + np.where(np.isfinite(moved), moved, np.inf) / size
        broken, then = np.maximum(over, 0).sum(), np.maximum(after, 0).sum(-1)
        if broken > SLACK:
            gain = np.where(then < broken - 1e-15, broken - then, 0.0)
            value = np.where(gain > 0, worse / np.maximum(gain, 1e-30), np.inf)
        else:
            value = np.where((then <= SLACK) & (worse < -1e-15), worse, np.inf)
        at = int(np.argmin(value))
        if not np.isfinite(value.flat[at]):
            break
        picks[at // table.shape[1]] = at % table.shape[1]
    now = table[sites, picks]
    if columns and (now[:, columns].sum(0) > caps + SLACK * np.maximum(1.0, np.abs(caps))).any():
        return None
    return picks, float(now[:, column].sum())
