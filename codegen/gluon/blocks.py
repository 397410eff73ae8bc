"""How much of its queries and keys a Gluon kernel holds in shared memory at once, by the widths of what is copied."""

from __future__ import annotations

Row = tuple[int, ...]

ARCHITECTURE = "sm_90"

ROWS: dict[tuple[int, int], Row] = {
    (64, 64): (128, 128, 12, 3, 2, 8, 208, 0, 0),
    (64, 128): (128, 128, 12, 2, 2, 8, 224, 1, 0),
    (128, 64): (128, 128, 12, 2, 2, 8, 232, 0, 0),
    (128, 128): (128, 128, 12, 2, 2, 4, 224, 1, 0),
    (64, 256): (128, 64, 12, 2, 1, 8, 224, 1, 0),
    (128, 256): (128, 64, 12, 2, 1, 8, 224, 1, 0),
    (256, 64): (128, 64, 12, 2, 1, 8, 224, 1, 0),
    (256, 128): (128, 64, 12, 2, 1, 8, 224, 1, 0),
    (256, 256): (128, 64, 12, 2, 1, 8, 224, 1, 1),
}
"""Queries, keys, warps, slots for keys, for tiles of queries, AHEAD, registers, PIN, DIRECT: what fits into 227 KiB. Queries
come in tiles of 128 or 192, 64 for each group of four warps, beside which one warp plans, AHEAD steps at most, and one copies,
with what registers are left. PIN says when values are added; DIRECT: results go out from registers, for want of memory.
"""


def copied_width(width: int) -> int:
    """Columns of a copied row: the next power of two, at least the 128 bytes of a swizzled line."""
    return max(64, 1 << (width - 1).bit_length())


def blocks(head_width: int, value_width: int, far: int) -> dict[tuple[str, int], Row]:
    """(architecture, bytes of an element) -> the row of BLOCKS; `far`: strides and powers, of whose keys more is told."""
    widths = copied_width(head_width), copied_width(value_width)
    *row, direct = ROWS[widths]
    return {(ARCHITECTURE, 2): (*row, int(direct or (far > 0 and widths == (128, 128))))}


def list_row(head_width: int, value_width: int, unit: int) -> Row:
    """The row of a kernel over lists, whose units are one block of keys or several, for widths of what is copied."""
    queries, keys, warps, slots, q_slots, ahead, *rest = ROWS[head_width, value_width]
    if unit % keys:
        keys, slots, ahead = keys // 2, slots * 2, slots * 2 + 2
    return (queries, keys, warps, slots, q_slots, ahead, *rest)
