"""Tuned blocks as files: one for each GPU and Triton version among the user's data, and tuning.json in a built folder."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

from filelock import FileLock
from pydantic import ValidationError

from attnc.codegen.problem import complaint
from attnc.compiler.data import from_json, to_json
from attnc.compiler.value import Value
from attnc.dsl import SpecError

Blocks = tuple[int, ...]


class Try(Value):
    """One candidate: whether it was found right, what each launch took in every round, or why it is out."""

    blocks: Blocks
    verified: bool = False
    seconds: tuple[float, ...] = ()
    refused: str = ""


class Tuned(Value):
    """One kernel in one dtype. `blocks` is None until every candidate is measured or refused.

    kernel   the skeleton
    sha256   of the kernel's text without its table of blocks
    default  the blocks of that table
    """

    kernel: str
    sha256: str
    dtype: str
    default: Blocks
    tries: tuple[Try, ...]
    blocks: Blocks | None = None

    @property
    def key(self) -> tuple[str, str]:
        """What no two rows of a table share."""
        return (self.sha256, self.dtype)


class Table(Value):
    """What is known of one GPU with one Triton version."""

    schema_version: Literal[1] = 1
    device: str
    architecture: str
    triton: str
    kernels: tuple[Tuned, ...] = ()

    def row(self, sha256: str, dtype: str) -> Tuned | None:
        """What is known of a kernel."""
        return next((row for row in self.kernels if row.key == (sha256, dtype)), None)

    def with_row(self, new: Tuned) -> Table:
        """The table with this row in the place of an older one."""
        others = [row for row in self.kernels if row.key != new.key]
        return replace(self, kernels=tuple(sorted([*others, new], key=lambda row: (row.kernel, *row.key))))


class FolderRow(Value):
    """Blocks of one kernel file for elements of so many bytes."""

    kernel: str
    bytes: int
    blocks: Blocks


class FolderTable(Value):
    """Where they hold: on this GPU, with this Triton version."""

    device: str
    architecture: str
    triton: str
    kernels: tuple[FolderRow, ...]


class FolderTuning(Value):
    """tuning.json of a built folder, which runtime/tuning.py reads."""

    schema_version: Literal[1] = 1
    tables: tuple[FolderTable, ...] = ()


BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}


def user_folder() -> Path:
    """Where tables are kept: ATTNC_DATA_DIR, or the system's place for a user's data."""
    from platformdirs import user_data_path

    return Path(os.environ.get("ATTNC_DATA_DIR") or user_data_path("attnc")) / "tuned"


def table_path(folder: Path, device: str, triton: str) -> Path:
    """`nvidia-h200-triton-3.6.0.json`."""
    return folder / (re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-") + f"-triton-{triton}.json")


def identity(text: str) -> str:
    """What names a kernel whatever blocks it takes: the digest of its text without the rows of BLOCKS."""
    from attnc.codegen import kernels  # which knows the layer graph; a schema does without networkx

    return kernels.digest(text, "none")


def read(path: Path) -> Table | None:
    """The table, or None where there is none. Raises SpecError A513 for a file that is no table of this version."""
    try:
        return from_json(Table, path.read_bytes())
    except FileNotFoundError:
        return None
    except (ValidationError, UnicodeDecodeError) as error:
        said = error.errors()[0] if isinstance(error, ValidationError) else {"loc": (), "msg": str(error)}
        where = ".".join(map(str, said["loc"]))
        message = f"`{path.name}` is no table of tuned blocks: {f'{where}: ' if where else ''}{said['msg']}"
        raise SpecError([complaint("A513", message, path, "move it away and run `attnc tune kernels` again")]) from error


def update(path: Path, empty: Table, change: Callable[[Table], Table]) -> Table:
    """The file's table after `change`; others wait meanwhile, and whoever reads sees the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        new = change(read(path) or empty)
        handle, beside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(to_json(new, indent=1) + "\n")
                file.flush()
                os.fsync(file.fileno())
            os.replace(beside, path)
        except BaseException:
            os.unlink(beside)
            raise
    return new


def read_all(folder: Path) -> tuple[Table, ...]:
    """Every table of a folder."""
    found = (read(path) for path in sorted(folder.glob("*.json")))
    return tuple(table for table in found if table is not None)


def read_given(path: Path) -> Table:
    """A table that was asked for by name. Raises SpecError A513 where it is none, or not there."""
    table = read(path)
    if table is None:
        raise SpecError([complaint("A513", f"there is no file `{path}`", path, "`attnc tune kernels` says where it writes")])
    return table


def for_folder(tables: Iterable[Table], texts: Mapping[str, str]) -> FolderTuning:
    """What of the tables concerns these kernel files (name -> text); finished rows alone."""
    names: dict[str, list[str]] = {}
    for name, text in texts.items():
        names.setdefault(identity(text), []).append(name)
    found = []
    for table in tables:
        rows = [
            FolderRow(kernel=name, bytes=BYTES[row.dtype], blocks=row.blocks)
            for row in table.kernels
            for name in names.get(row.sha256, ())
            if row.blocks is not None
        ]
        odd = _disagreeing(rows, texts, table.architecture)
        rows = [row for row in rows if (row.kernel, row.bytes) not in odd]
        if rows:
            found.append(
                FolderTable(device=table.device, architecture=table.architecture, triton=table.triton, kernels=tuple(rows))
            )
    return FolderTuning(tables=tuple(found))


def _disagreeing(rows: Iterable[FolderRow], texts: Mapping[str, str], architecture: str) -> set[tuple[str, int]]:
    """(file, bytes) of rows that would leave a launch of matrix states with chunks of two lengths, as a run that was stopped
    may leave them.
    """
    from attnc.codegen.tune.scans import disagreeing, own_blocks

    found: set[tuple[str, int]] = set()
    for size in sorted({row.bytes for row in rows}):
        chosen = {row.kernel: row.blocks for row in rows if row.bytes == size}
        found |= {(file, size) for file in disagreeing(chosen, own_blocks(texts, architecture, size))}
    return found


def folder_text(tuning: FolderTuning) -> str:
    """The text of tuning.json."""
    return json.dumps(json.loads(to_json(tuning)), indent=1) + "\n"
