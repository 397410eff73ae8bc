"""How a kind's parameters are declared: fields whose annotations carry bounds, places and budgets.

Read by the checker (to turn syntax into values), by the docs, and by the random-spec generator of the tests.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Bounds:
    """Smallest and largest number allowed, both included. Shares are bounded by `share_low..share_high` per cent."""

    low: float
    high: float
    share_low: float = 0.0
    share_high: float = 100.0


@dataclass(frozen=True)
class Positional:
    """The argument may be given by place, in the order of the fields."""


@dataclass(frozen=True)
class Budgeted:
    """`budget(lo..hi, default = x)` may stand here: moved by the tuner, or only before training."""

    when: Literal["tuned", "training"]


@dataclass(frozen=True)
class Divides:
    """The number must divide that of the field named, which then may not be a share."""

    field: str


@dataclass(frozen=True)
class NotBuilt:
    """Values of the language that the compiler does not build yet: words, or classes of `word(...)` values.

    Without values: everything but the default.
    """

    values: tuple[str | type, ...]

    def __init__(self, *values: str | type) -> None:
        object.__setattr__(self, "values", values)
