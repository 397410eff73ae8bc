"""What a plan says: for every node and phase who runs it, at what price, and every other way or why it cannot be."""

from __future__ import annotations

from attnc.compiler.spec import Phase
from attnc.compiler.value import Value

SCHEMA_VERSION = 1


class Price(Value):
    """A candidate that could run, and what it would cost; None where it is the only one and is not priced."""

    provider: str
    seconds: float | None


class Refusal(Value):
    """A candidate that cannot run, and why."""

    provider: str
    reason: str


class Choice(Value):
    """How one node runs in one phase. `others` are sorted by price."""

    node: str
    layer: int
    phase: Phase
    provider: str
    seconds: float | None
    others: tuple[Price, ...] = ()
    refused: tuple[Refusal, ...] = ()


class Plan(Value):
    """All choices for one device and workload."""

    schema_version: int = SCHEMA_VERSION
    device: str
    length: int
    batch: int
    choices: tuple[Choice, ...]

    def provider(self, node: str, phase: Phase) -> str:
        """The provider of a node in a phase."""
        return next(choice.provider for choice in self.choices if choice.node == node and choice.phase == phase)

    def references(self) -> tuple[Choice, ...]:
        """The choices that run a reference because nothing faster can."""
        return tuple(choice for choice in self.choices if choice.provider == "reference")
