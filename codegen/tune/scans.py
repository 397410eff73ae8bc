"""Blocks of the kernels of matrix states: those worth a measurement, and which are taken together.

All kernels of a launch but that of single steps cut sequences into chunks of the same length. So every length is measured with
each of them, and the one is taken whose kernels together are fastest.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterable, Mapping, Sequence

from attnc.codegen.tune.table import Blocks, Tuned
from attnc.compiler.families import FAMILIES

MOST = 9
STEP = "scan_step"
CHUNKED = tuple(name for name in FAMILIES["recurrence"] if name != STEP)
SHORTEST, LONGEST = 16, 128


def is_scan(file: str) -> bool:
    """Whether a kernel file is one of matrix states."""
    return file.rpartition("_")[0] in FAMILIES["recurrence"]


def candidates(skeleton: str, default: Blocks, element: int) -> tuple[Blocks, ...]:
    """The default, and what differs from it in one number; other chunks than its own in 16 bits alone, as errors of float32
    grow with them. What does not fit a GPU is seen when it is compiled.
    """
    chunk, block, warps, stages = default
    other = 12 - warps if warps in (4, 8) else 4
    found = [default]
    if skeleton == "scan_chunks":  # block: warps for pairs
        found += [(chunk, 12 - block if block in (4, 8) else 4, warps, stages), (chunk, block, other, stages)]
    else:
        found += [(chunk, size, warps, stages) for size in (2 * block, block // 2) if 16 <= size <= 128]
        found += [(chunk, block, other, stages)]
        found += [(chunk, 2 * block, other, stages)] if warps == 4 and block <= 64 else []
        found += [(chunk, block // 2, other, stages)] if warps == 8 and block >= 32 else []
        found += [(chunk, block, warps, 3 - stages if stages in (1, 2) else 2)]
    if skeleton != STEP and element == 2:
        for length in (chunk // 2, 2 * chunk):
            if SHORTEST <= length <= LONGEST:
                found += [(length, block, warps, stages), (length, block, other, stages)]
    return tuple(dict.fromkeys(found))[:MOST]


def together(rows: Sequence[Tuned], better: float) -> dict[str, Blocks]:
    """sha256 -> blocks of all kernels of a launch with chunks: the length whose fastest are fastest together, unless the
    default's is within `better` of it. A length that some kernel has none right for is out.
    """
    best = [_fastest(row) for row in rows]
    default = rows[0].default[0]
    lengths = set.intersection(*(set(one) for one in best))
    if not lengths:
        return {row.sha256: row.default for row in rows}
    sums = {length: sum(one[length][1] for one in best) for length in lengths}
    least = min(sums, key=lambda length: sums[length])
    if default in sums and sums[least] > better * sums[default]:
        least = default
    return {row.sha256: _unless_near(row, one[least], better) for row, one in zip(rows, best, strict=True)}


def _fastest(row: Tuned) -> dict[int, tuple[Blocks, float]]:
    """The fastest right candidate of each length of chunks, with its median."""
    found: dict[int, tuple[Blocks, float]] = {}
    for one in row.tries:
        if one.verified and not one.refused and one.seconds:
            median = statistics.median(one.seconds)
            if one.blocks[0] not in found or median < found[one.blocks[0]][1]:
                found[one.blocks[0]] = (one.blocks, median)
    return found


def _unless_near(row: Tuned, best: tuple[Blocks, float], better: float) -> Blocks:
    """The default where it has the same length of chunks and is as good as equal."""
    default = next((one for one in row.tries if one.blocks == row.default and one.verified and one.seconds), None)
    same = default is not None and not default.refused and row.default[0] == best[0][0]
    return row.default if same and best[1] > better * statistics.median(default.seconds if default else ()) else best[0]


def own_blocks(texts: Mapping[str, str], architecture: str, element: int) -> dict[str, Blocks]:
    """The rows of the tables in kernel files of matrix states, by file name."""
    found = {}
    for name, text in texts.items():
        if is_scan(name):
            row = re.search(rf'^    \("{architecture}", {element}\): \(([\d, ]+)\),$', text, re.M)
            assert row is not None, f"{name} has no row for {architecture}"
            found[name] = tuple(int(number) for number in row[1].split(","))
    return found


def disagreeing(chosen: Mapping[str, Blocks], defaults: Mapping[str, Blocks]) -> Iterable[str]:
    """Of the files of a folder those whose launch would have chunks of two lengths; `chosen` and `defaults` by file name."""
    launches: dict[str, set[str]] = {}
    for file in defaults:
        skeleton, _, number = file.rpartition("_")
        if skeleton in CHUNKED:
            launches.setdefault(number, set()).add(file)
    for files in launches.values():
        if len({(chosen.get(file) or defaults[file])[0] for file in files}) > 1:
            yield from files
