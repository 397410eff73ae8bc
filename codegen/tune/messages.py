"""What the process that measures is told and answers, and the report of `attnc tune kernels`."""

from __future__ import annotations

from typing import Literal

from attnc.codegen.tune.table import Blocks, Try, Tuned
from attnc.compiler.value import Value


class TuneJob(Value):
    """One kernel file in one dtype. `tries`: what is known; `verified_in`: dtypes whose tensors have as many bytes."""

    folder: str
    file: str
    device: str
    dtype: str
    verified_in: tuple[str, ...]
    rounds: int
    tries: tuple[Try, ...]


class TuneMessage(Value):
    """One line of the answer: a candidate that is begun; one that was tried, and what is wrong; one that was measured."""

    begun: Blocks | None = None
    verified: Blocks | None = None
    wrong: str = ""
    measured: Blocks | None = None
    seconds: float = 0.0


class TunedKernel(Value):
    """A kernel file of the folder and its row of the table."""

    file: str
    row: Tuned


class TuneReport(Value):
    """What `attnc tune kernels --json` prints. `left`: kernels for which there are no candidates."""

    schema_version: Literal[1] = 1
    folder: str
    device: str
    triton: str
    table: str
    kernels: tuple[TunedKernel, ...]
    left: tuple[str, ...] = ()
