"""The record of kernels that a GPU has run right: docs/gpu.json, written by tests/gpu."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from attnc.compiler.data import from_json
from attnc.compiler.value import Value

Constant = bool | int | float | str | None | tuple[bool | int | float | str, ...]
"""What stands behind a name at the top of a kernel's text."""


class Verified(Value):
    """One kernel in one dtype on one device: `cases` calls, each at most 1.5 times as far from float64 as torch's attention.

    error, torch_error  the largest difference from float64 among the cases, the kernel's and torch's; of states the root mean
                        square of the call that used most of what is allowed, and that of plain torch, or of the formula in the
                        kernel's roundings; of choices the share of rows that keep other units than plain torch, whose scores
                        differ by a rounding
    constants           the names at the top of its text that say what it was emitted for; each family has its own
    sha256              of what a GPU runs of the kernel's text: no blocks of other architectures, no functions of the host
    """

    device: str
    capability: str
    torch: str
    triton: str
    commit: str
    skeleton: str
    sha256: str
    dtype: Literal["bfloat16", "float16", "float32"]
    constants: dict[str, Constant]
    cases: int
    error: float
    torch_error: float


class Record(Value):
    """docs/gpu.json."""

    schema_version: Literal[1]
    kernels: tuple[Verified, ...]


def read(path: Path) -> tuple[Verified, ...]:
    """The rows of a record; pydantic's ValidationError if it has another form or version."""
    return from_json(Record, path.read_text(encoding="utf-8")).kernels
