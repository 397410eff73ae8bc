"""Few blocks that are worth a measurement: the table's own row and its neighbours, as far as a kernel can have them.

The prior is what a tile needs: numbers that a thread keeps while it walks the blocks, and bytes of shared memory for the
stages of the pipeline. What it lets through may still spill or not fit; that is seen when it is compiled.
"""

from __future__ import annotations

from attnc.codegen.tune.table import Blocks
from attnc.compiler.families import BACKWARD, Softmax

MOST = 9
"""Candidates, the default first."""

REGISTERS = 200
"""32-bit numbers of a thread that tiles may fill; the rest is for addresses and masks."""

SHARED = {"sm_80": 166_912, "sm_90": 232_448, "sm_100": 232_448, "gfx942": 65_536}
THREADS = {"gfx942": 64}
"""Of a warp, where they are not 32."""


def candidates(skeleton: str, kernel: Softmax, default: Blocks, architecture: str, element: int) -> tuple[Blocks, ...]:
    """The default and its neighbours, those that change the tile's shape before those that change warps and stages."""
    decodes = skeleton == "softmax_decode"
    steps = _decode_steps(default) if decodes else _tile_steps(default)
    found = [default]
    for step in steps:
        if step not in found and fits(skeleton, kernel, step, architecture, element):
            found.append(step)
    return tuple(found[:MOST])


def fits(skeleton: str, kernel: Softmax, blocks: Blocks, architecture: str, element: int) -> bool:
    """Whether a tile's numbers fit into the registers of its threads, and its stages into shared memory."""
    wide, deep = (max(16, 1 << (width - 1).bit_length()) for width in (kernel.head_width, kernel.value_width))
    threads = THREADS.get(architecture, 32)
    if skeleton == "softmax_decode":
        keys, _, warps, stages = blocks
        rows = 64
    else:
        rows, keys, warps, stages = blocks
    held = {BACKWARD[0]: rows * (wide + 2 * keys), BACKWARD[1]: keys * (wide + deep + 2 * rows)}
    registers = held.get(skeleton, rows * (deep + keys)) / (warps * threads)
    walked = rows if skeleton == BACKWARD[1] else keys
    shared = (max(1, stages - 1) * walked + (rows + keys - walked)) * (wide + deep) * element
    return registers <= REGISTERS and shared <= SHARED[architecture]


def _tile_steps(default: Blocks) -> list[Blocks]:
    queries, keys, warps, stages = default
    shapes = [(queries, 2 * keys), (queries, keys // 2), (2 * queries, keys), (queries // 2, keys)]
    shapes += [(2 * queries, keys // 2), (queries // 2, 2 * keys)]
    steps = [(q, k, warps, stages) for q, k in shapes if 16 <= q <= 256 and 16 <= k <= 256]
    more = [(queries, keys, w, s) for w, s in ((12 - warps, stages), (warps, stages + 1), (warps, stages - 1))]
    more += [(2 * queries, keys, 8, stages), (queries, 2 * keys, 8, stages)]
    return [*steps, *(step for step in more if step[2] in (4, 8) and 1 <= step[3] <= 5 and max(step[:2]) <= 256)]


def _decode_steps(default: Blocks) -> list[Blocks]:
    keys, warps, most, stages = default
    steps = [(2 * keys, warps, most, stages), (keys // 2, warps, most, stages), (2 * keys, warps, 8, stages)]
    steps += [(keys, warps, most, s) for s in (stages + 1, stages - 1)]
    steps += [(keys, w, max(w, most), stages) for w in (warps // 2, 2 * warps)]
    steps += [(keys, warps, m, stages) for m in (most // 2, 2 * most)]
    return [step for step in steps if 16 <= step[0] <= 256 and 1 <= step[3] <= 5 and 2 <= step[1] <= step[2] <= 16]
