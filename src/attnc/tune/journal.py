"""The journal of a run: a line for each measurement, appended under a lock by any number of processes.

A process that dies leaves at most half a line at the end, which nobody reads and the next writer removes.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, NamedTuple

from filelock import FileLock

from attnc.compiler.data import from_json, to_json
from attnc.compiler.policies import trouble
from attnc.compiler.value import Value

What = Literal["loss", "cost", "similarity", "sensitivity", "retrieval", "gate", "whole"]


class Key(NamedTuple):
    """What no two measurements share; fields that say nothing of it are at their defaults."""

    what: str
    task: str
    length: int
    batch: int
    sample: int
    layer: int
    scope: str
    first: int
    last: int
    candidate: str
    machine: str
    around: str


class Row(Value):
    """One measurement.

    loss         of a candidate in KV groups first..last of a unit, on one text: `values` by probe. Where `around` names
                 picks, what it adds to the losses of a model of these
    whole        the losses of a model of the picks that `around` names
    cost         of a model with this candidate everywhere: decode_ms, prefill_ms on `machine`
    similarity   of the choices of layer `layer` and of others: their number -> share
    sensitivity  of a layer to keeping its largest weights alone
    retrieval    of a KV group, `gate` likewise
    """

    schema_version: Literal[1] = 1
    what: What
    task: str = ""
    length: int = 0
    batch: int = 1
    sample: int = 0
    layer: int = -1
    scope: str = ""
    first: int = -1
    last: int = -1
    candidate: str = ""
    machine: str = ""
    around: str = ""
    values: dict[str, float]

    @property
    def key(self) -> Key:
        """What no other row has."""
        return Key(*(getattr(self, name) for name in Key._fields))


class Journal:
    """The file, and what was read of it."""

    def __init__(self, path: Path) -> None:
        self.path, self.lock = path, FileLock(f"{path}.lock")

    def rows(self) -> dict[Key, Row]:
        """All measurements; of two with one key the first. Raises SpecError A610 for a line that is none."""
        text = self.path.read_bytes() if self.path.is_file() else b""
        found: dict[Key, Row] = {}
        for number, line in enumerate(text.split(b"\n")[:-1], 1):
            try:
                row = from_json(Row, line)
            except ValueError as error:
                details: Any = getattr(error, "errors", list)()
                reason = details[0]["msg"] if details else str(error)
                message = f"line {number} of {self.path.name} is no measurement: {reason}"
                help_line = "remove the line; attnc tune score measures what is missing"
                raise trouble("A610", message, self.path, help_line) from error
            found.setdefault(row.key, row)
        return found

    def add(self, rows: Iterable[Row]) -> None:
        """Appends and waits until the disk has it."""
        data = "".join(f"{to_json(row)}\n" for row in rows).encode()
        with self.lock, open(self.path, "a+b") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(0, end - 1))
            if file.read() not in (b"", b"\n"):  # half a line, of a process that died
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
