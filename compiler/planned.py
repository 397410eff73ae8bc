"""What a plan says: for every node and phase who runs it, at what price, and every other way or why it cannot be."""

from __future__ import annotations

from attnc.compiler.spec import Phase
from attnc.compiler.value import Value

SCHEMA_VERSION = 1


class HeadPart(Value):
    """KV heads first..last of a launch, counted from its first, and who runs them."""

    first: int
    last: int
    provider: str
    how: str = ""


class Price(Value):
    """A candidate that could run, and what it would cost; None where it is the only one and is not priced.

    `how`: which of its ways a provider takes. `parts`: of `split`, who runs which heads.
    """

    provider: str
    seconds: float | None
    how: str = ""
    parts: tuple[HeadPart, ...] = ()


class Refusal(Value):
    """A candidate that cannot run, and why."""

    provider: str
    reason: str


class Choice(Value):
    """How one node runs in one phase. `how` and `parts` as of a `Price`; `others` are sorted by price."""

    node: str
    layer: int
    phase: Phase
    provider: str
    seconds: float | None
    how: str = ""
    parts: tuple[HeadPart, ...] = ()
    others: tuple[Price, ...] = ()
    refused: tuple[Refusal, ...] = ()

    @property
    def providers(self) -> frozenset[str]:
        """Everyone who runs some heads of it."""
        return frozenset(part.provider for part in self.parts) or frozenset((self.provider,))


class Plan(Value):
    """All choices for one device and workload. `absent`: providers that were not asked, and why."""

    schema_version: int = SCHEMA_VERSION
    device: str
    length: int
    batch: int
    choices: tuple[Choice, ...]
    absent: tuple[Refusal, ...] = ()

    def choice(self, node: str, phase: Phase) -> Choice:
        """How a node runs in a phase."""
        return next(choice for choice in self.choices if choice.node == node and choice.phase == phase)

    def provider(self, node: str, phase: Phase) -> str:
        """The provider of a node in a phase."""
        return self.choice(node, phase).provider

    def references(self) -> tuple[Choice, ...]:
        """The choices that run a reference because nothing faster can."""
        return tuple(choice for choice in self.choices if choice.provider == "reference")
