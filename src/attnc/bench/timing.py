"""Times of several participants in one run, taken in turns; and what the machine itself can do.

On a GPU a time is that of the device alone: the second-level cache is emptied, the device is kept busy while the host prepares
the call, and events say when the call's first kernel could begin and when its last ended.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch

FLUSHED = 2**28
"""Bytes that are written between calls: more than any second-level cache holds."""

ROUNDS = (5, 101)
WARM = 3


@dataclass(frozen=True)
class Times:
    """Seconds: of the device, median, least and most of `rounds`; `host` is the median until the call returned."""

    median: float
    least: float
    most: float
    host: float
    rounds: int


class Clock(Protocol):
    """Takes the time of one call."""

    def prepare(self, call: Callable[[], object]) -> float:
        """Runs it until everything about it is compiled and chosen; returns about how many seconds a round takes."""
        ...

    def start(self, call: Callable[[], object]) -> Callable[[], tuple[float, float]]:
        """Runs it; what comes back waits for it and gives (seconds, host's seconds)."""
        ...


class HostClock:
    """For the CPU, where a call that returned is done."""

    def prepare(self, call: Callable[[], object]) -> float:
        """The first call may still load code."""
        call()
        began = time.perf_counter()
        call()
        return time.perf_counter() - began

    def start(self, call: Callable[[], object]) -> Callable[[], tuple[float, float]]:
        """See the protocol."""
        began = time.perf_counter()
        call()
        seconds = time.perf_counter() - began
        return lambda: (seconds, seconds)


class DeviceClock:
    """For CUDA devices."""

    def __init__(self) -> None:
        self.flush = torch.empty(FLUSHED, dtype=torch.int8, device="cuda")
        self.busy = 0.0005

    def prepare(self, call: Callable[[], object]) -> float:
        """Also learns how long the host takes, so that the device can be kept busy for so long."""
        for _ in range(WARM):
            call()
        torch.cuda.synchronize()
        began = time.perf_counter()
        call()
        host = time.perf_counter() - began
        torch.cuda.synchronize()
        self.busy = min(0.02, max(self.busy, 2 * host))
        return time.perf_counter() - began + self.busy

    def start(self, call: Callable[[], object]) -> Callable[[], tuple[float, float]]:
        """See the protocol."""
        cuda: Any = torch.cuda
        begin, end = (cuda.Event(enable_timing=True) for _ in range(2))
        self.flush.zero_()
        cuda._sleep(int(self.busy * 2e9))  # cycles; no device counts faster than 2 GHz
        begin.record()
        began = time.perf_counter()
        call()
        host = time.perf_counter() - began
        end.record()

        def seconds() -> tuple[float, float]:
            end.synchronize()
            return float(begin.elapsed_time(end)) / 1000, host

        return seconds


def clock(device: torch.device) -> Clock:
    """The clock for a device."""
    return DeviceClock() if device.type == "cuda" else HostClock()


def interleaved(calls: Mapping[str, Callable[[], object]], watch: Clock, budget: float) -> dict[str, Times]:
    """Times of all calls, taken in turns (A B C A B C ...) for about `budget` seconds; all are warm before the first counts."""
    round_ = sum(watch.prepare(call) for call in calls.values())
    rounds = max(ROUNDS[0], min(ROUNDS[1], int(budget / max(round_, 1e-9))))
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, waiting in [(name, watch.start(call)) for name, call in calls.items()]:
            found[name].append(waiting())
    return {name: _times(rows) for name, rows in found.items()}


def _times(rows: list[tuple[float, float]]) -> Times:
    device, host = zip(*rows, strict=True)
    return Times(statistics.median(device), min(device), max(device), statistics.median(host), len(rows))


@dataclass(frozen=True)
class Roof:
    """What this machine reached just now: operations per second of a large product of matrices, bytes per second of a copy."""

    flops: float
    bandwidth: float


def roof(device: torch.device, dtype: torch.dtype, budget: float) -> Roof:
    """Measures both; on a GPU this also brings its clocks up."""
    gpu = device.type == "cuda"
    side, size = (8192, 2**31) if gpu else (1024, 2**26)
    if gpu and torch.cuda.mem_get_info()[0] < 4 * size:
        size = 2**28
    watch = clock(device)
    a = torch.randn(side, side, device=device, dtype=dtype)
    product = torch.empty_like(a)
    source = torch.zeros(size, dtype=torch.int8, device=device)
    target = torch.empty_like(source)
    calls = {"product": lambda: torch.mm(a, a, out=product), "copy": lambda: target.copy_(source)}
    times = interleaved(calls, watch, budget)
    return Roof(2 * side**3 / times["product"].median, 2 * size / times["copy"].median)
