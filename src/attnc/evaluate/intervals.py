"""95% intervals of what was counted in trials. Questions of one trial may go right or wrong together, so trials are units."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from statistics import NormalDist

Z = NormalDist().inv_cdf(0.975)


def wilson(share: float, number: float) -> tuple[float, float]:
    """Wilson's interval (1927) of a share among `number` independent questions."""
    centre = (share + Z**2 / (2 * number)) / (1 + Z**2 / number)
    half = Z / (1 + Z**2 / number) * sqrt(share * (1 - share) / number + Z**2 / (4 * number**2))
    return max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half))


def effective(right: Sequence[float], asked: Sequence[float]) -> float:
    """How many independent questions would be as uncertain: between the number of trials and that of questions.

    The share's variance from the spread among trials, put into that of independent questions, p (1 - p) / n. Where it is no
    guide (all right, all wrong, one trial) each trial counts once.
    """
    share = sum(right) / sum(asked)
    if len(asked) < 2 or share in (0.0, 1.0):
        return len(asked)
    spread = _variance(right, asked)
    return min(sum(asked), max(len(asked), share * (1 - share) / spread if spread else sum(asked)))


def mean(sums: Sequence[float], counts: Sequence[float]) -> tuple[float, float] | None:
    """The normal interval of sum / count over all windows, from the spread among windows; None for one window."""
    if len(counts) < 2:
        return None
    value, half = sum(sums) / sum(counts), Z * sqrt(_variance(sums, counts))
    return value - half, value + half


def _variance(sums: Sequence[float], counts: Sequence[float]) -> float:
    """Of the ratio sum(sums) / sum(counts), by linearisation."""
    ratio, units = sum(sums) / sum(counts), len(counts)
    squares = sum((part - ratio * count) ** 2 for part, count in zip(sums, counts, strict=True))
    return units / (units - 1) * squares / sum(counts) ** 2
