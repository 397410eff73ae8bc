"""How large the blocks of the kernels of matrix states are: one row for each class of width, architecture and element size.

Chosen as in blocks.py. The chunk, the first number of a row, is the same for all kernels of a class, architecture and size.
"""

from __future__ import annotations

from attnc.codegen.triton.blocks import WIDTHS, Table, rows_of
from attnc.compiler.families import Recurrence

FORWARD: dict[int, Table] = {  # tokens of a chunk, value channels, warps, stages
    64: rows_of((64, 64, 4, 2), (16, 32, 4, 1), sm_80_2=(64, 32, 8, 2)),
    128: rows_of((64, 32, 4, 3), (16, 16, 8, 1), sm_80_2=(32, 32, 4, 2), sm_100_2=(64, 64, 8, 2), gfx942_2=(64, 32, 4, 1)),
    256: rows_of((32, 16, 8, 2), (16, 16, 8, 1)),
}

OUTPUTS: dict[int, Table] = {  # tokens of a chunk, value channels, warps, stages
    64: rows_of((64, 64, 4, 1), (16, 32, 4, 1)),
    128: rows_of((64, 64, 4, 1), (16, 32, 4, 1), sm_80_2=(32, 64, 4, 1)),
    256: rows_of((32, 64, 4, 1), (16, 32, 8, 1)),
}

BACKWARD: dict[int, Table] = {  # tokens of a chunk, value channels, warps, stages
    64: rows_of((64, 64, 8, 2), (16, 32, 8, 1), sm_80_2=(64, 32, 8, 2), sm_100_2=(64, 64, 8, 1), gfx942_2=(64, 64, 8, 1)),
    128: rows_of((64, 32, 4, 3), (16, 16, 8, 1), sm_80_2=(32, 64, 8, 2), sm_100_2=(64, 64, 8, 2), gfx942_2=(64, 32, 4, 2)),
    256: rows_of((32, 16, 4, 2), (16, 16, 8, 1), sm_80_2=(32, 16, 8, 2)),
}

VALUES: dict[int, Table] = {  # tokens of a chunk, value channels, warps, stages
    64: rows_of((64, 64, 4, 1), (16, 32, 4, 1)),
    128: rows_of((64, 64, 4, 1), (16, 32, 4, 1), sm_80_2=(32, 64, 4, 1)),
    256: rows_of((32, 64, 4, 1), (16, 32, 8, 1)),
}

GRADIENTS: dict[int, Table] = {  # tokens of a chunk, channels of a block of keys and values, warps, stages
    64: rows_of((64, 64, 8, 1), (16, 16, 4, 1)),
    128: rows_of((64, 64, 8, 1), (16, 16, 4, 1), sm_80_2=(32, 64, 8, 1)),
    256: rows_of((32, 64, 8, 1), (16, 16, 4, 1)),
}

CHUNKS: dict[int, Table] = {  # tokens of a chunk, warps for pairs, warps to solve, stages
    64: rows_of((64, 4, 4, 1), (16, 4, 4, 1), interpreted=(16, 4, 4, 1)),
    128: rows_of((64, 4, 4, 1), (16, 4, 4, 1), interpreted=(16, 4, 4, 1), sm_80_2=(32, 4, 4, 1)),
    256: rows_of((32, 4, 4, 1), (16, 4, 4, 1), interpreted=(16, 4, 4, 1)),
}

FLOWS: dict[int, Table] = {  # tokens of a chunk, key channels, warps, stages
    64: rows_of((64, 32, 4, 1), (16, 32, 4, 1)),
    128: rows_of((64, 32, 4, 1), (16, 32, 4, 1), sm_80_2=(32, 32, 4, 1)),
    256: rows_of((32, 32, 4, 1), (16, 32, 4, 1)),
}

STEP: dict[int, Table] = {  # tokens at a time, value channels, warps, stages
    64: rows_of((1, 32, 4, 1), (1, 32, 4, 1), interpreted=(1, 16, 4, 1)),
    128: rows_of((1, 32, 4, 1), (1, 32, 4, 1), interpreted=(1, 16, 4, 1)),
    256: rows_of((1, 16, 4, 1), (1, 16, 4, 1), interpreted=(1, 16, 4, 1)),
}

TABLES = {
    "scan_forward": FORWARD,
    "scan_outputs": OUTPUTS,
    "scan_chunks": CHUNKS,
    "scan_step": STEP,
    "scan_backward": BACKWARD,
    "scan_values": VALUES,
    "scan_gradients": GRADIENTS,
    "scan_flows": FLOWS,
}

DELTA: dict[tuple[str, int], Table] = {
    ("scan_chunks", 64): {("sm_80", 2): (32, 4, 4, 1)},
    ("scan_forward", 64): {("sm_80", 2): (32, 32, 4, 2), **dict.fromkeys((("sm_80", 4), ("sm_90", 4)), (16, 16, 4, 1))},
    ("scan_outputs", 64): {("sm_80", 2): (32, 64, 4, 1)},
    ("scan_backward", 64): {("sm_80", 2): (32, 32, 4, 2)},
    ("scan_values", 64): {("sm_80", 2): (32, 64, 4, 1)},
    ("scan_gradients", 64): {("sm_80", 2): (32, 32, 8, 1), ("sm_90", 2): (64, 32, 8, 1), ("gfx942", 2): (64, 32, 4, 1)},
    ("scan_flows", 64): {("sm_80", 2): (32, 32, 4, 1)},
    ("scan_forward", 128): {
        ("sm_80", 2): (32, 32, 8, 2),
        ("sm_100", 2): (64, 32, 8, 2),
        ("gfx942", 2): (64, 32, 4, 1),
        ("gfx942", 4): (16, 16, 4, 1),
    },
    ("scan_backward", 128): {("sm_80", 2): (32, 32, 8, 2), ("sm_90", 2): (64, 32, 8, 2), ("gfx942", 2): (64, 32, 4, 1)},
    ("scan_gradients", 128): {("sm_80", 2): (32, 32, 8, 1), ("gfx942", 2): (64, 32, 4, 1)},
    ("scan_gradients", 256): {("sm_90", 2): (32, 64, 4, 1)},
}
"""Where kernels of the delta rule, which hold more numbers at once, take other blocks. WATCHED in known_bugs.py says which were
wrong on sm_90.
"""


def blocks(skeleton: str, kernel: Recurrence) -> Table:
    """The rows for a kernel's widths. Programs share a state's columns among them, so wider values are more programs."""
    widest = min(max(kernel.key_width, kernel.value_width), WIDTHS[-1])
    least = next(least for least in WIDTHS if widest <= least)
    return TABLES[skeleton][least] | (DELTA.get((skeleton, least), {}) if kernel.update == "delta" else {})
