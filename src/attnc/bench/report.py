"""What `attnc bench --json` prints."""

from __future__ import annotations

from typing import Literal

from attnc.compiler.value import Value

Status = Literal["timed", "refused", "wrong", "failed", "out of memory"]


class Machine(Value):
    """Where and with what the times were taken. `commit`: of attnc's source, where it lies in a git tree."""

    device: str
    capability: str | None
    driver: str | None
    torch: str
    triton: str | None
    python: str
    attnc: str
    commit: str | None


class Ceiling(Value):
    """Measured in the same run: operations per second of a large product of matrices, bytes per second of a copy."""

    flops: float
    bandwidth: float


class Timed(Value):
    """Seconds of one participant: of the device (median, least, most), and `host`, the median until its call returned.

    rate     useful operations per second (forward, backward) or bytes per second (decode)
    share    of the ceiling
    ratio    its median time over ours: 2.0 takes twice as long; None where ours has no time
    errors   root mean square errors against float64, and `allowed`, what rounding may make of them
    """

    median: float
    least: float
    most: float
    host: float
    rounds: int
    rate: float
    share: float
    ratio: float | None
    errors: dict[str, float]
    allowed: dict[str, float]


class Result(Value):
    """One participant: its times, or the reason why there are none.

    ours    whether the ratios are to it
    status  refused: it cannot do this; wrong: it ran, and was farther from float64 than rounding explains; failed: it raised
    setup   seconds that its mask took, which is made once for a length
    """

    name: str
    ours: bool
    status: Status
    timed: Timed | None = None
    reason: str | None = None
    setup: float | None = None


class Row(Value):
    """One launch in one phase at one length. `reason`: why nobody runs it there. `planned`: who would in a built model.

    sizes  heads and widths in words; heads and widths of q and k, and kv_heads of v: of matrix states, the states, their rows,
           their columns, and the heads of v
    """

    launch: str
    words: str
    sizes: str
    layers: tuple[int, ...]
    heads: int
    kv_heads: int
    key_width: int
    value_width: int
    phase: str
    length: int
    batch: int
    planned: str
    flops: float
    bytes: float
    results: tuple[Result, ...]
    reason: str | None = None


class Skip(Value):
    """A launch that no generated kernel says, and why."""

    launch: str
    words: str
    reason: str


class BenchReport(Value):
    """All of one run. Only ratios within one report mean something."""

    schema_version: int = 2
    command: tuple[str, ...]
    file: str
    machine: Machine
    dtype: str
    ceiling: Ceiling
    rows: tuple[Row, ...]
    skipped: tuple[Skip, ...]

    @property
    def failed(self) -> bool:
        """Whether ours was wrong or failed anywhere."""
        ours = (result for row in self.rows for result in row.results if result.ours)
        return any(result.status in ("wrong", "failed") for result in ours)
