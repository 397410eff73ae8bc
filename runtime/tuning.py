"""Blocks that were tuned for this GPU: tuning.json in the built folder, read with the standard library."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from .codes import CODES

Blocks = dict[tuple[str, int], tuple[int, ...]]
"""(architecture, bytes of an element) -> blocks, as a kernel file's own table."""

VERSION = 1


class TuningError(ValueError):
    """A tuning.json that cannot be used. `code`: one of CODES."""

    def __init__(self, message: str) -> None:
        self.code = "A550"
        super().__init__(f"{self.code}: {CODES[self.code][0]}: {message}")


def blocks(path: Path, kernel: str, triton: str) -> Blocks:
    """What the file says of a kernel file on this machine's GPU with this Triton version; nothing where it says nothing.

    Raises TuningError for a file of another form or version, whatever machine it speaks of.
    """
    tables = read(path)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        (table["architecture"], row["bytes"]): tuple(row["blocks"])
        for table in tables
        if (table["device"], table["triton"]) == (device, triton)
        for row in table["kernels"]
        if row["kernel"] == kernel
    }


def read(path: Path) -> list[dict[str, Any]]:
    """The file's tables, all of them checked; none where there is no file."""
    try:
        data = json.loads(path.read_bytes())
    except FileNotFoundError:
        return []
    except ValueError as error:
        raise TuningError(f"{path} is no JSON: {error}") from error
    version = data.get("schema_version") if isinstance(data, dict) else None
    if version != VERSION:
        raise TuningError(f"{path} has schema_version {version}, not {VERSION}")
    try:
        return [_table(table) for table in data["tables"]]
    except (KeyError, TypeError, ValueError) as error:
        raise TuningError(f"{path} has another form: {type(error).__name__} {error}") from error


def _table(table: dict[str, Any]) -> dict[str, Any]:
    words = {name: table[name] for name in ("device", "architecture", "triton")}
    rows = [{"kernel": row["kernel"], "bytes": row["bytes"], "blocks": row["blocks"]} for row in table["kernels"]]
    numbers = [number for row in rows for number in (row["bytes"], *row["blocks"])]
    if not all(type(word) is str for word in (*words.values(), *(row["kernel"] for row in rows))):
        raise ValueError("names are words")
    if not all(type(number) is int and number > 0 for number in numbers) or any(len(row["blocks"]) != 4 for row in rows):
        raise ValueError("blocks are four whole numbers")
    return {**words, "kernels": rows}
