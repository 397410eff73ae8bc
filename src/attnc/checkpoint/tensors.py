"""Safetensors files: 8 bytes with the header's length, a JSON header, then the numbers of all tensors.

Read and written here byte by byte, so that a checkpoint of any size and number format passes through without being held in
memory, and so that a damaged file is told from a good one before anything is written.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import BinaryIO

from attnc.checkpoint.problem import problem
from attnc.dsl.diagnostic import SpecError

BYTES = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
}
"""Bytes of one number; formats with less than a byte, or unknown ones, are read but not measured."""

HEADER_LIMIT = 100_000_000
CHUNK = 1 << 24


@dataclass(frozen=True)
class Tensor:
    """One tensor in a file: its number format, shape, and the bytes `begin..end` of the file, or of these the `ranges`."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    begin: int
    end: int
    ranges: tuple[tuple[int, int], ...] = ()

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(end - begin for begin, end in self.ranges or ((self.begin, self.end),))

    def chunks(self) -> Iterator[bytes]:
        """The tensor's bytes, some megabytes at a time."""
        with self.file.open("rb") as file:
            for begin, end in self.ranges or ((self.begin, self.end),):
                file.seek(begin)
                left = end - begin
                while left > 0:
                    chunk = file.read(min(CHUNK, left))
                    if not chunk:
                        raise problem("A526", f"{self.file.name} ends before {self.name} does", file=self.file)
                    left -= len(chunk)
                    yield chunk


def read(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file. Errors: A526 where the file is cut off or its header does not fit its length."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(8)
        length = int.from_bytes(head, "little") if len(head) == 8 else -1
        if length < 2 or length > HEADER_LIMIT or length > size:
            raise _damaged(path, f"it is no safetensors file, or cut off in its header ({size} bytes)")
        if length + 8 > size:
            raise _damaged(path, f"it is cut off in its header: {size} of at least {length + 8} bytes")
        text = file.read(length)
    try:
        header = json.loads(text)
        entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
        found = {name: _tensor(name, entry, path, length + 8) for name, entry in entries.items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise _damaged(path, "its header cannot be read") from None
    end = max((tensor.end for tensor in found.values()), default=length + 8)
    if end > size:
        last = min((tensor for tensor in found.values() if tensor.end > size), key=lambda tensor: tensor.begin)
        raise _damaged(
            path, f"it is cut off: {size} of {end} bytes are there, and `{last.name}` is the first tensor that is not whole"
        )
    return found


def _tensor(name: str, entry: dict[str, object], path: Path, start: int) -> Tensor:
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not isinstance(shape, list) or not isinstance(offsets, list):
        raise TypeError
    begin, end = (int(number) for number in offsets)
    sizes = tuple(int(number) for number in shape)
    if begin < 0 or end < begin or any(number < 0 for number in sizes):
        raise ValueError
    dtype = str(entry["dtype"])
    if dtype in BYTES and end - begin != prod(sizes) * BYTES[dtype]:
        raise ValueError
    return Tensor(name, dtype, sizes, path, start + begin, start + end)


def _damaged(path: Path, reason: str) -> SpecError:
    return problem("A526", f"{path.name} is damaged: {reason}", file=path, help="copy or download the file again")


def write(path: Path, tensors: Iterable[Tensor]) -> int:
    """Write these tensors under their names, in this order; returns the file's bytes."""
    tensors = tuple(tensors)
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for tensor in tensors:
        size = tensor.size
        header[tensor.name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that the numbers begin at a multiple of 8
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for tensor in tensors:
            _copy(tensor, file)
    return 8 + len(text) + at


def _copy(tensor: Tensor, file: BinaryIO) -> None:
    for chunk in tensor.chunks():
        file.write(chunk)


def same(left: Tensor, right: Tensor) -> bool:
    """Whether two tensors hold the same bytes."""
    if (left.dtype, left.shape) != (right.dtype, right.shape):
        return False
    return all(a == b for a, b in zip(left.chunks(), right.chunks(), strict=True))
