"""What `attnc verify` says, as data."""

from __future__ import annotations

from typing import Literal

from attnc.compiler.value import Value

LIMIT = 1.5
"""Times PyTorch's error that a kernel's may be."""


class Row(Value):
    """One kernel in one dtype on one class of inputs.

    error, torch_error  of the case that used most of what is allowed, against float64: of forward kernels the largest
                        difference, of gradients its root mean square; none where the kernel did not end or gave NaN
    allowed             LIMIT times PyTorch's error; of gradients of large logits a few roundings of the logits more
    reason              why it is wrong: the first case that failed, and how
    """

    kernel: str
    dtype: str
    inputs: str
    cases: int
    error: float | None = None
    torch_error: float | None = None
    allowed: float | None = None
    verdict: Literal["right", "wrong"]
    reason: str = ""

    @property
    def key(self) -> tuple[str, str, str]:
        """What no two rows share."""
        return (self.kernel, self.dtype, self.inputs)


class Kernel(Value):
    """A kernel file, and whether its text is the one that the build wrote."""

    kernel: str
    skeleton: str
    launches: tuple[str, ...]
    sha256: str
    as_built: bool


class Machine(Value):
    """Where kernels run: on a GPU, or in Triton's interpreter on the CPU."""

    device: str
    way: Literal["gpu", "interpreter"]
    torch: str
    triton: str


class VerifyReport(Value):
    """What `attnc verify --json` prints."""

    schema_version: int = 1
    attnc: str
    folder: str
    machine: Machine | None
    limit: float
    decisions: tuple[str, ...]
    kernels: tuple[Kernel, ...]
    rows: tuple[Row, ...]
    right: bool


class Job(Value):
    """What the process that runs the kernels is told. `only`: these kernels, if any is named; `done`: keys of rows that it
    need not run.
    """

    folder: str
    device: str
    dtypes: tuple[str, ...]
    only: tuple[str, ...] = ()
    done: tuple[tuple[str, str, str], ...] = ()


class Message(Value):
    """One line of what that process answers: where it runs, which kernels there are, what it begins, what came out."""

    machine: Machine | None = None
    kernels: tuple[Kernel, ...] | None = None
    begun: tuple[str, str, str] | None = None
    row: Row | None = None
