"""How large the blocks are: one row for each class of head width, architecture and element size, as data.

Chosen so that no kernel spills registers at widths 64 and 128 (but for a few bytes of the fp32 forward kernel on sm_90) and
none takes more shared memory than there is: the tests compile them, and a tuner may pass other blocks to `attend`. "any" is for
Triton's interpreter.
"""

from __future__ import annotations

Row = tuple[int, ...]
Table = dict[tuple[str, int], Row]

WIDTHS = (64, 128, 256)
"""Classes of head width: the least that holds the wider of keys and values."""

ARCHITECTURES = ("sm_80", "sm_90", "sm_100", "gfx942")


def rows_of(two_bytes: Row, four_bytes: Row, interpreted: Row = (16, 16, 4, 1), **others: Row) -> Table:
    """The same blocks on every architecture, but for `others` ("gfx942_2" is gfx942 and two bytes) and the interpreter."""
    table = {
        (name, size): others.get(f"{name}_{size}", row)
        for size, row in ((2, two_bytes), (4, four_bytes))
        for name in ARCHITECTURES
    }
    return table | {("any", 2): interpreted, ("any", 4): interpreted}


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
        ("sm_90", 2): (64, 64, 4, 3),
        ("sm_100", 2): (128, 64, 8, 3),
        ("gfx942", 2): (128, 32, 8, 2),
        ("sm_80", 4): (32, 16, 8, 1),
        ("sm_90", 4): (32, 16, 8, 2),
        ("sm_100", 4): (16, 16, 8, 1),
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

BACKWARD_QUERIES: dict[int, Table] = {  # queries, keys, warps, stages
    64: rows_of((64, 32, 4, 2), (16, 16, 4, 1), sm_90_2=(64, 64, 4, 2)),
    128: rows_of((64, 32, 8, 2), (16, 16, 8, 1), sm_90_2=(64, 64, 4, 2)),
    256: rows_of((32, 32, 8, 1), (16, 16, 8, 1), gfx942_2=(32, 16, 8, 1)),
}

BACKWARD_KEYS: dict[int, Table] = {  # queries, keys, warps, stages
    64: rows_of((32, 64, 8, 2), (16, 16, 4, 1), sm_80_2=(32, 32, 4, 2), gfx942_2=(32, 64, 4, 2)),
    128: rows_of((32, 32, 8, 2), (16, 16, 8, 1), sm_90_2=(32, 64, 4, 2), gfx942_2=(32, 32, 4, 1)),
    256: rows_of((16, 32, 8, 1), (16, 16, 8, 1), sm_100_2=(32, 32, 8, 1)),
}

TABLES = {
    "softmax_prefill": PREFILL,
    "softmax_decode": DECODE,
    "softmax_backward_queries": BACKWARD_QUERIES,
    "softmax_backward_keys": BACKWARD_KEYS,
}


SOFTPLUS: dict[tuple[str, int], Table] = {
    ("softmax_prefill", 64): {("sm_90", 4): (32, 32, 4, 2)},
    ("softmax_decode", 64): {
        ("sm_100", 2): (64, 4, 8, 4),
        ("sm_80", 2): (64, 4, 8, 3),
        ("sm_80", 4): (16, 8, 8, 1),
        ("sm_90", 4): (16, 4, 8, 2),
    },
    ("softmax_backward_queries", 64): {("sm_90", 2): (64, 32, 4, 2)},
    ("softmax_backward_keys", 64): {("sm_90", 2): (32, 32, 4, 2)},
    ("softmax_backward_keys", 128): {("sm_90", 2): (64, 32, 8, 2)},
    ("softmax_prefill", 128): {("sm_90", 2): (128, 64, 8, 3), ("sm_90", 4): (16, 16, 8, 1), ("sm_100", 4): (16, 16, 8, 1)},
    ("softmax_backward_queries", 128): {("sm_90", 2): (64, 32, 8, 2), ("gfx942", 2): (32, 32, 8, 1)},
}
"""Where kernels of softplus masses, which hold more numbers at once, take other blocks."""


def blocks(skeleton: str, width: int, softplus: bool = False) -> Table:
    """The rows for a head width, of one of the softmax family's skeletons."""
    least = next(least for least in WIDTHS if width <= least)
    return TABLES[skeleton][least] | (SOFTPLUS.get((skeleton, least), {}) if softplus else {})
