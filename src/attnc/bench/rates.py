"""What a machine can do at most: the peaks of its device table, measured."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from attnc.bench.timing import clock, interleaved, roof

STEPS = 2048
"""Exponentials of each number in one call: far more work than reading it."""

LAUNCHES = 500


@dataclass(frozen=True)
class Rates:
    """Per second: operations on matrices and on fp32 vectors, bytes, exponentials. Memory in bytes; seconds of a launch."""

    matrix_flops: float
    vector_flops: float
    bandwidth: float
    exponentials: float
    memory: float
    launch: float


def measure(device: torch.device, budget: float, say: Callable[[str], None]) -> Rates:
    """All of them; `budget` seconds each. On a CPU matrices are fp32, and vectors do them."""
    gpu = device.type == "cuda"
    say("products of matrices, copies")
    ceiling = roof(device, torch.bfloat16 if gpu else torch.float32, budget)
    say("vectors, exponentials, launches")
    return Rates(
        matrix_flops=ceiling.flops,
        vector_flops=_vector(device, budget) if gpu else ceiling.flops,
        bandwidth=ceiling.bandwidth,
        exponentials=_exponentials(device, budget),
        memory=float(memory(device)),
        launch=_launch(device),
    )


def memory(device: torch.device) -> int:
    """Bytes that the device has."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _vector(device: torch.device, budget: float) -> float:
    """A product in fp32 without tensor cores: multiplications and additions in the vector units."""
    side = 4096
    a = torch.randn(side, side, device=device)
    out = torch.empty_like(a)
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        times = interleaved({"product": lambda: torch.mm(a, a, out=out)}, clock(device), budget)
    finally:
        torch.set_float32_matmul_precision(precision)
    return 2 * side**3 / times["product"].median


def _exponentials(device: torch.device, budget: float) -> float:
    if device.type == "cuda":
        from attnc.bench import exponentials

        x = exponentials.numbers(device)
        times = interleaved({"exp": lambda: exponentials.run(x, STEPS)}, clock(device), budget)
        return x.numel() * STEPS / times["exp"].median
    x = torch.rand(2**16)
    out = torch.empty_like(x)
    times = interleaved({"exp": lambda: torch.exp(x, out=out)}, clock(device), budget)
    return x.numel() / times["exp"].median


def _launch(device: torch.device) -> float:
    """Seconds from one small operation to the next, the host's part included, as outside a CUDA graph."""
    x = torch.zeros(1, device=device)

    def many() -> float:
        began = time.perf_counter()
        for _ in range(LAUNCHES):
            x.add_(1)
        if device.type == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - began) / LAUNCHES

    return sorted(many() for _ in range(5))[2]
