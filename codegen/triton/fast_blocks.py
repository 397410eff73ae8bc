"""How large the blocks of the kernels of fast weights are: one row for each class of width, architecture and element size.

Weights are in fp32 whatever q, k and v are; the element size says how products round. Chosen as in blocks.py.
"""

from __future__ import annotations

from attnc.codegen.triton.blocks import Table, rows_of
from attnc.compiler.families import FastWeights

LINEAR: dict[int, Table] = {  # tokens of a tile, value channels, warps, stages
    64: rows_of((16, 32, 4, 1), (16, 16, 8, 1), interpreted=(16, 32, 4, 1)),
    128: rows_of((32, 16, 8, 1), (16, 16, 8, 1), interpreted=(16, 32, 4, 1)),
}

MAPS: dict[int, Table] = {  # tokens of a tile, hidden units, warps, stages
    64: rows_of((32, 32, 8, 1), (16, 16, 8, 1), interpreted=(16, 16384, 4, 1)),
    128: rows_of((32, 32, 8, 1), (16, 16, 8, 1), interpreted=(16, 16384, 4, 1)),
}

STEPS: dict[int, Table] = {  # tokens of a tile, units, warps, stages
    64: rows_of((16, 64, 8, 1), (16, 32, 8, 1), interpreted=(16, 16, 4, 1)),
    128: rows_of((16, 16, 8, 1), (16, 16, 8, 1), interpreted=(16, 32, 4, 1)),
}


def blocks(skeleton: str, kernel: FastWeights) -> Table:
    """The rows for a kernel's widths."""
    tables = {"fast_linear": LINEAR, "fast_maps": MAPS, "fast_step": STEPS}[skeleton]
    return next(table for least, table in tables.items() if max(kernel.key_width, kernel.value_width) <= least)
