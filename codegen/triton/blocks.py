"""How large the blocks are: one row for each class of head width, architecture and element size, as data.

Chosen so that no kernel spills registers at widths 64 and 128 and none takes more shared memory than there is: the tests
compile them, and a tuner may pass other blocks to `attend`. "any" is for Triton's interpreter.
"""

from __future__ import annotations

Row = tuple[int, ...]
Table = dict[tuple[str, int], Row]

WIDTHS = (64, 128, 256)
"""Classes of head width: the least that holds the wider of keys and values."""

PREFILL: dict[int, Table] = {  # queries, keys, warps, stages
    64: {
        ("sm_80", 2): (128, 64, 8, 3),
        ("sm_90", 2): (64, 64, 4, 3),
        ("sm_100", 2): (128, 64, 8, 3),
        ("gfx942", 2): (128, 64, 8, 2),
        ("sm_80", 4): (64, 32, 8, 2),
        ("sm_90", 4): (64, 32, 8, 2),
        ("sm_100", 4): (64, 32, 8, 1),
        ("gfx942", 4): (64, 32, 8, 2),
        ("any", 2): (32, 32, 4, 1),
        ("any", 4): (32, 32, 4, 1),
    },
    128: {
        ("sm_80", 2): (128, 32, 8, 3),
        ("sm_90", 2): (128, 64, 8, 3),
        ("sm_100", 2): (128, 64, 8, 3),
        ("gfx942", 2): (128, 32, 8, 2),
        ("sm_80", 4): (32, 16, 8, 2),
        ("sm_90", 4): (32, 16, 8, 2),
        ("sm_100", 4): (32, 16, 8, 1),
        ("gfx942", 4): (32, 16, 8, 2),
        ("any", 2): (32, 32, 4, 1),
        ("any", 4): (32, 32, 4, 1),
    },
    256: {
        ("sm_80", 2): (64, 32, 8, 2),
        ("sm_90", 2): (64, 32, 8, 2),
        ("sm_100", 2): (64, 32, 8, 2),
        ("gfx942", 2): (64, 32, 8, 2),
        ("sm_80", 4): (32, 16, 8, 2),
        ("sm_90", 4): (16, 16, 8, 1),
        ("sm_100", 4): (16, 16, 8, 1),
        ("gfx942", 4): (32, 16, 8, 1),
        ("any", 2): (16, 32, 4, 1),
        ("any", 4): (16, 32, 4, 1),
    },
}

DECODE: dict[int, Table] = {  # keys, warps, warps of the largest tile, stages
    64: {
        ("sm_80", 2): (64, 4, 4, 3),
        ("sm_90", 2): (64, 4, 4, 4),
        ("sm_100", 2): (64, 4, 4, 4),
        ("gfx942", 2): (64, 4, 4, 2),
        ("sm_80", 4): (32, 8, 8, 1),
        ("sm_90", 4): (32, 8, 8, 1),
        ("sm_100", 4): (32, 8, 16, 1),
        ("gfx942", 4): (32, 8, 8, 2),
        ("any", 2): (32, 4, 4, 1),
        ("any", 4): (32, 4, 4, 1),
    },
    128: {
        ("sm_80", 2): (64, 4, 8, 3),
        ("sm_90", 2): (64, 4, 8, 3),
        ("sm_100", 2): (64, 4, 8, 3),
        ("gfx942", 2): (32, 4, 4, 2),
        ("sm_80", 4): (16, 4, 8, 2),
        ("sm_90", 4): (16, 4, 8, 2),
        ("sm_100", 4): (16, 4, 8, 2),
        ("gfx942", 4): (16, 8, 8, 2),
        ("any", 2): (32, 4, 4, 1),
        ("any", 4): (32, 4, 4, 1),
    },
    256: {
        ("sm_80", 2): (32, 4, 8, 2),
        ("sm_90", 2): (32, 4, 8, 3),
        ("sm_100", 2): (32, 4, 8, 3),
        ("gfx942", 2): (32, 4, 4, 1),
        ("sm_80", 4): (16, 8, 16, 1),
        ("sm_90", 4): (16, 8, 16, 1),
        ("sm_100", 4): (16, 8, 16, 1),
        ("gfx942", 4): (16, 8, 8, 1),
        ("any", 2): (32, 4, 4, 1),
        ("any", 4): (32, 4, 4, 1),
    },
}


def blocks(skeleton: str, width: int) -> Table:
    """The rows for a head width, of `softmax_prefill` or `softmax_decode`."""
    tables = {"softmax_prefill": PREFILL, "softmax_decode": DECODE}[skeleton]
    return tables[next(least for least in WIDTHS if width <= least)]
