"""What the template prints for one class of model.py."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Group:
    """One head group of a launch: the runtime expression, and the line of the spec that it comes from."""

    text: str
    origin: str


@dataclass(frozen=True)
class Variant:
    """Head groups while `guards` (runtime expressions, joined by commas) agree."""

    guards: str
    groups: tuple[Group, ...]


@dataclass(frozen=True)
class Launch:
    """One launch: its name in PROVIDERS and kernels/, and the numbers of its softmax as source."""

    name: str
    variants: tuple[Variant, ...]
    causal: bool
    scale: str
    cap: str | None
    reference: str


@dataclass(frozen=True)
class Part:
    """A class: where a layer keeps it, the lines of its __init__ and forward, and what it needs.

    `slots`     how many storages its launches have; `plans` the expressions that describe them
    `launches`  launch name -> graph node
    `needs`     runtime file -> names that it imports from there
    `source`    whether it takes the slot of an earlier launch whose keys it reads
    `more`      lines of further methods
    `given`     what forward takes between x and the call, as source
    `chained`   whether its output gate reads `given`, what the chain around it reads, beside x
    """

    name: str
    place: str
    template: str
    summary: str
    modules: tuple[str, ...]
    body: tuple[str, ...]
    origins: tuple[str, ...] = ()
    plans: tuple[str, ...] = ()
    slots: int = 0
    mixes: tuple[Launch, ...] = ()
    launches: dict[str, str] = field(default_factory=dict)
    needs: dict[str, set[str]] = field(default_factory=dict)
    source: bool = False
    given: str = ""
    chained: bool = False
    more: tuple[str, ...] = ()


class Names:
    """Hands out each class name once: Window, Window2, Window3, ..."""

    def __init__(self) -> None:
        self.taken: dict[str, int] = {}

    def new(self, words: Iterable[str], ending: str) -> str:
        """A name from the kinds' words: `sink`, `window` -> SinkWindowAttention; four or more kinds are Mixed."""
        distinct = list(dict.fromkeys(words))
        stem = "".join(part.capitalize() for word in distinct for part in word.split("_")) if len(distinct) < 4 else "Mixed"
        name = stem + ending
        self.taken[name] = self.taken.get(name, 0) + 1
        return name if self.taken[name] == 1 else f"{name}{self.taken[name]}"


def merged(needs: Iterable[dict[str, set[str]]]) -> dict[str, set[str]]:
    """The union of several `needs`."""
    found: dict[str, set[str]] = {}
    for need in needs:
        for file, names in need.items():
            found.setdefault(file, set()).update(names)
    return found
