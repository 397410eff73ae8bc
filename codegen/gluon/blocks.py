"""How much of its queries and keys a Gluon kernel holds in shared memory at once, by the widths of what is copied."""

from __future__ import annotations

Row = tuple[int, ...]

ARCHITECTURE = "sm_90"

ROWS: dict[tuple[int, int], Row] = {  # queries, keys, warps, slots for keys, slots for tiles of queries, registers, PIN, EARLY
    (64, 64): (128, 128, 12, 3, 2, 240, 0, 0),
    (64, 128): (128, 128, 12, 2, 2, 240, 1, 0),
    (128, 64): (128, 128, 12, 2, 2, 240, 0, 0),
    (128, 128): (128, 128, 12, 2, 2, 240, 1, 0),
    (64, 256): (128, 64, 12, 2, 1, 240, 1, 1),
    (128, 256): (128, 64, 12, 2, 1, 240, 1, 1),
    (256, 64): (128, 64, 12, 2, 1, 240, 1, 1),
    (256, 128): (128, 64, 12, 2, 1, 240, 1, 1),
    (256, 256): (128, 64, 12, 2, 1, 240, 1, 1),
}
"""Measured on an H100 for 64 and 128, by a text whose tiles did not overlap; the others are what fits into 227 KiB. Queries
come in tiles of 128 or 192, 64 for each group of four warps, beside which one warp copies. PIN and EARLY say when values are
added beside which scores.
"""


def copied_width(width: int) -> int:
    """Columns of a copied row: the next power of two, at least the 128 bytes of a swizzled line."""
    return max(64, 1 << (width - 1).bit_length())


def blocks(head_width: int, value_width: int, far: bool) -> dict[tuple[str, int], Row]:
    """(architecture, bytes of an element) -> the row of BLOCKS; `far`: there are strides or powers, whose masks take long."""
    *row, early = ROWS[copied_width(head_width), copied_width(value_width)]
    return {(ARCHITECTURE, 2): (*row, int(early or far))}


def list_row(head_width: int, value_width: int, unit: int) -> Row:
    """The row of a kernel over lists, whose units are one block of keys or several, for widths of what is copied."""
    queries, keys, warps, slots, q_slots, *rest = ROWS[head_width, value_width]
    if unit % keys:
        keys, slots = keys // 2, slots * 2
    return (queries, keys, warps, slots, q_slots, *rest)
