"""Programs of a launch that wait for each other, in Triton's interpreter, which runs one after the other: each in a thread of
its own, of which one runs at a time, until it waits or ends.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import pytest
from triton.runtime import interpreter

Place = tuple[int, int, int]


class Turns:
    """Programs of one launch."""

    def __init__(self) -> None:
        self.waiting: list[tuple[Place, Callable[[], None]]] = []
        self.come: dict[int, int] = {}
        self.alive: list[Place] = []
        self.now: Place | None = None
        self.changed = threading.Condition()
        self.wrong: list[BaseException] = []

    def run(self) -> None:
        """All that wait, until the last has ended."""
        programs, self.waiting = self.waiting, []
        self.alive = [place for place, _ in programs]
        threads = [threading.Thread(target=self._one, args=one, daemon=True) for one in programs]
        for thread in threads:
            thread.start()
        self._give(self.alive[0])
        for thread in threads:
            thread.join()
        if self.wrong:
            raise self.wrong[0]

    def wait(self, counter: Any, goal: Any) -> None:
        """The kernels' own `wait`: others have their turn until all have come."""
        key, own = int(counter.handle.data.flat[0]), self.now
        assert own is not None, "a program runs"
        self.come[key] = self.come.get(key, 0) + 1
        goal = int(goal.handle.data.flat[0]) if hasattr(goal, "handle") else int(getattr(goal, "value", goal))
        while self.come[key] < goal:
            self._give(self._after(own))
            self._take(own)

    def _one(self, place: Place, program: Callable[[], None]) -> None:
        self._take(place)
        try:
            if not self.wrong:
                program()
        except BaseException as problem:
            self.wrong.append(problem)
        following = self._after(place)
        self.alive.remove(place)
        self._give(following if following in self.alive else None)

    def _after(self, place: Place) -> Place:
        return self.alive[(self.alive.index(place) + 1) % len(self.alive)]

    def _give(self, place: Place | None) -> None:
        with self.changed:
            self.now = place
            self.changed.notify_all()

    def _take(self, place: Place) -> None:
        with self.changed:
            self.changed.wait_for(lambda: self.now == place)
        if self.wrong:
            raise RuntimeError("another program failed")
        interpreter.interpreter_builder.set_grid_idx(*place)


@contextmanager
def together(module: ModuleType) -> Iterator[None]:
    """Kernels of a module whose programs meet in its function `wait`."""
    turns = Turns()

    def launched(executor: Any, *given: Any, **named: Any) -> None:
        """As `GridExecutor.__call__`, but for the loop over programs."""
        named = {name: value for name, value in named.items() if name in executor.arg_names}
        positional, keywords = executor._init_args_hst(given, named)
        patched = interpreter._patch_lang(executor.fn)
        try:
            found = inspect.getcallargs(executor.fn, *positional, **keywords)
            own = {name: x if name in executor.constexprs else interpreter._implicit_cvt(x) for name, x in found.items()}
            interpreter.interpreter_builder.set_grid_dim(*executor.grid, 1, 1)
            turns.come.clear()
            turns.waiting = [((at, 0, 0), lambda: executor.fn(**own)) for at in range(executor.grid[0])]
            turns.run()
        finally:
            patched.restore()
        executor._restore_args_dev(given, positional, named, keywords)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter.GridExecutor, "__call__", launched)
        patch.setattr(module, "wait", turns.wait)
        yield
