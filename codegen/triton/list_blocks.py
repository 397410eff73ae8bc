"""How large the blocks are where kernels read lists: one row for each class of head width, architecture and element size."""

from __future__ import annotations

from attnc.codegen.triton.blocks import WIDTHS, Row, Table, rows_of

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
    64: rows_of((64, 32, 4, 2), (16, 16, 4, 1), sm_90_2=(64, 64, 4, 2)),
    128: rows_of((64, 32, 8, 2), (16, 16, 8, 1), sm_90_2=(64, 64, 4, 2)),
    256: rows_of((32, 32, 8, 1), (16, 16, 8, 1), gfx942_2=(32, 16, 8, 1)),
}

UNITS: dict[int, dict[str, Row]] = {  # lines, warps, stages of a program that reads a unit, which is one block of keys
    64: {"sm_80": (128, 8, 3), "sm_90": (128, 8, 3), "sm_100": (128, 8, 3), "gfx942": (64, 4, 1), "any": (16, 4, 1)},
    128: {"sm_80": (64, 4, 3), "sm_90": (128, 8, 3), "sm_100": (128, 8, 3), "gfx942": (32, 4, 1), "any": (16, 4, 1)},
    256: {"sm_80": (32, 4, 2), "sm_90": (32, 4, 2), "sm_100": (32, 4, 2), "gfx942": (16, 4, 1), "any": (16, 4, 1)},
}

UNIT_GRADIENTS: dict[int, dict[str, Row]] = {  # the same of programs that find gradients of queries
    64: {"sm_80": (64, 4, 2), "sm_90": (64, 4, 1), "sm_100": (64, 4, 1), "gfx942": (32, 4, 1), "any": (16, 4, 1)},
    128: {"sm_80": (32, 4, 2), "sm_90": (64, 4, 1), "sm_100": (64, 4, 1), "gfx942": (16, 4, 1), "any": (16, 4, 1)},
    256: {"sm_80": (32, 4, 1), "sm_90": (32, 4, 2), "sm_100": (32, 4, 2), "gfx942": (16, 4, 1), "any": (16, 4, 1)},
}

TABLES = {"lists_attend": ATTEND, "lists_backward": BACKWARD, "lists_choose": CHOOSE}


def blocks(skeleton: str, width: int) -> Table:
    """The rows for a head width."""
    least = next(least for least in WIDTHS if width <= least)
    return TABLES[skeleton][least]


def unit_blocks(skeleton: str, width: int) -> dict[str, Row]:
    """What programs of units have on each architecture, for a head width."""
    table = UNITS if skeleton == "lists_attend" else UNIT_GRADIENTS
    return table[next(least for least in WIDTHS if width <= least)]
