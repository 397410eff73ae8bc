"""Where examples come from: a task, which is a function of seed and step, or a text, which is read on and on.

Legend: B examples; N tokens of each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from attnc.tasks.examples import Examples, Task

Position = dict[str, Tensor]
"""What a source has to know to go on; empty for one that needs no more than the step."""


class Source(Protocol):
    """Gives each step its examples."""

    @property
    def digest(self) -> str:
        """Of the file that it reads, empty for none."""
        ...

    def position(self) -> Position:
        """Where it stands, kept in checkpoints."""
        ...

    def go_to(self, position: Position) -> None:
        """Back to where it stood."""
        ...

    def examples(self, step: int, size: int) -> Examples:
        """The next examples, tokens and targets [size, N]; targets are shifted already."""
        ...


@dataclass(frozen=True)
class FromTask:
    """Examples of a task."""

    task: Task
    seed: int
    length: int
    vocabulary: int
    digest: str = ""

    def position(self) -> Position:
        """The step says it all."""
        return {}

    def go_to(self, position: Position) -> None:
        """The step says it all."""
        assert not position, "a task stands nowhere"

    def examples(self, step: int, size: int) -> Examples:
        """As the task draws them for this step."""
        return self.task.batch(self.seed, step, size, self.length, self.vocabulary)
