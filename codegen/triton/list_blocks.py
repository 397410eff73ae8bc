"""How large the blocks are where kernels read lists: one row for each class of head width, architecture and element size."""

from __future__ import annotations

from attnc.codegen.triton.blocks import WIDTHS, Table, rows_of

ATTEND: dict[int, Table] = {  # lines, keys, warps, stages
    64: rows_of((128, 64, 4, 3), (32, 32, 4, 1), (16, 16, 4, 1), sm_90_2=(64, 64, 4, 3), gfx942_2=(64, 64, 4, 2)),
    128: rows_of((128, 64, 8, 3), (32, 16, 8, 1), (16, 16, 4, 1), sm_80_2=(64, 64, 4, 2), gfx942_2=(64, 32, 4, 2)),
    256: rows_of((64, 32, 8, 2), (16, 16, 8, 1), (16, 16, 4, 1), gfx942_2=(64, 32, 8, 1)),
}

CHOOSE: dict[int, Table] = {  # lines, runs, warps, stages
    64: rows_of((64, 64, 4, 2), (32, 32, 4, 1), (16, 16, 4, 1)),
    128: rows_of((64, 64, 8, 2), (32, 32, 4, 1), (16, 16, 4, 1)),
    256: rows_of((64, 64, 8, 1), (16, 32, 4, 1), (16, 16, 4, 1)),
}

BACKWARD: dict[int, Table] = {  # lines, keys, warps, stages; of queries and of keys
    64: rows_of((64, 32, 4, 2), (16, 16, 4, 1)),
    128: rows_of((64, 32, 8, 2), (16, 16, 8, 1)),
    256: rows_of((32, 32, 8, 1), (16, 16, 8, 1), gfx942_2=(32, 16, 8, 1)),
}

TABLES = {"lists_attend": ATTEND, "lists_backward": BACKWARD, "lists_choose": CHOOSE}


def blocks(skeleton: str, width: int) -> Table:
    """The rows for a head width."""
    least = next(least for least in WIDTHS if width <= least)
    return TABLES[skeleton][least]
