"""What the commands print as JSON."""

from __future__ import annotations

from attnc.compiler.value import Value
from attnc.tune.solve import Point


class ScoreReport(Value):
    """A run after measuring: sites, their candidates, measurements in the journal, and the seconds of this process."""

    schema_version: int = 1
    run: str
    sites: int
    candidates: int
    measurements: int
    seconds: float
    machine: str


class FrontierReport(Value):
    """The least loss at each cost. `full`: the cost of full attention."""

    schema_version: int = 1
    run: str
    device: str
    objective: str
    length: int
    batch: int
    full: float
    points: tuple[Point, ...]
