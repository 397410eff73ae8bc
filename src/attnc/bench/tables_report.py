"""What `attnc calibrate --json` prints."""

from __future__ import annotations

from attnc.bench.report import Machine
from attnc.compiler.device import Device
from attnc.compiler.value import Value


class Lack(Value):
    """A share that was not measured, and why: the shipped table's stands in its place."""

    provider: str
    phase: str
    reason: str


class CalibrationReport(Value):
    """The table that was written to `path`, beside the shipped one.

    found     whether commands find it there
    lacks     shares that were not measured
    failures  providers that were wrong or failed
    """

    schema_version: int = 1
    machine: Machine
    path: str
    found: bool
    old: Device
    new: Device
    lacks: tuple[Lack, ...]
    failures: tuple[str, ...]
