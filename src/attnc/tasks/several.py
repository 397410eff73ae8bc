"""Several tasks in turn, for a model that is to be asked each of them."""

from __future__ import annotations

from dataclasses import dataclass

from attnc.tasks.examples import Examples, Task, TaskError


@dataclass(frozen=True)
class Several:
    """Step n is of task n modulo their number: as when training on several numbers of pairs."""

    tasks: tuple[Task, ...]

    def __post_init__(self) -> None:
        if not self.tasks:
            raise TaskError("tasks", "tasks is empty", "give one or more")

    def batch(self, seed: int, step: int, size: int, length: int, vocabulary: int) -> Examples:
        """As `Task.batch`."""
        return self.tasks[step % len(self.tasks)].batch(seed, step, size, length, vocabulary)

    def chance(self, vocabulary: int) -> float:
        """The mean of theirs."""
        return sum(task.chance(vocabulary) for task in self.tasks) / len(self.tasks)
