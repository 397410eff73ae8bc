"""Fills `visit` and `block_of` where a union has strides or powers of two, under causality.

One such pattern alone is walked sparsely: its intervals of keys lie at the distances reach, reach + 1, reach + 2, ...
(a stride) or reach, 2 reach, 4 reach, ... (powers) times `unit`. Several patterns, or one whose intervals come closer than
the blocks they touch, are walked as one stretch, so that no block is met twice.
"""

import triton
import triton.language as tl

NOWHERE = tl.constexpr(2**30)


@triton.jit
def lower(numbers, i):
    """A hole: the first key near query i that it sees."""
    return i


@triton.jit
def far_part(numbers):
    """The far pattern's unit, whether its distances double, and how many patterns there are."""
    stride, power = numbers[-2], numbers[-1]
    return stride + power, power > 0, (stride > 0).to(tl.int32) + (power > 0).to(tl.int32)


@triton.jit
def visit(numbers, first, last, base, slots, whole, BLOCK_K: tl.constexpr):
    """Which key blocks the queries first..last see: how many of the first ones, the first near one, how many far ones and where
    they are, how many in all.
    """
    unit, doubling, parts = far_part(numbers)
    unit = tl.maximum(unit, 1)
    start = tl.where(doubling, first // unit * unit, first)  # keys at distance x: [start - x unit, stop - x unit)
    stop = tl.where(doubling, (last // unit + 1) * unit, last + 1)
    within = tl.where(unit % BLOCK_K == 0, ((start - base) % BLOCK_K + BLOCK_K) % BLOCK_K, BLOCK_K - 1)  # of its first block
    width = (within + stop - start - 1) // BLOCK_K + 1  # blocks that one interval may touch
    crowded = (parts > 1) | ((parts == 1) & (doubling == 0) & (unit < width * BLOCK_K))
    reach = 1
    while doubling & (reach * unit < width * BLOCK_K):  # closer intervals than this count as near
        reach *= 2
    near = tl.minimum(lower(numbers, first), tl.where(parts > 0, tl.where(doubling, start - reach // 2 * unit, first), NOWHERE))
    near = tl.where(crowded, base, near)

    seen = tl.where(whole, slots, tl.minimum(tl.maximum(last + 1 - base, 0), slots))
    sink_blocks = tl.where(whole, 0, tl.cdiv(tl.minimum(tl.maximum(numbers[0] - base, 0), seen), BLOCK_K))
    begin = tl.where(whole, 0, tl.maximum(near - base, 0))
    near_block = tl.maximum(tl.where(begin < seen, begin // BLOCK_K, tl.cdiv(seen, BLOCK_K)), sink_blocks)
    near_blocks = tl.cdiv(seen, BLOCK_K) - near_block

    while doubling & (start - reach * unit - base >= near_block * BLOCK_K):
        reach *= 2
    reach = tl.where(doubling, reach, tl.maximum((first - base - near_block * BLOCK_K) // unit + 1, 1))
    farthest = (stop - 1 - base - sink_blocks * BLOCK_K) // unit
    doublings = 0
    while doubling & (reach << doublings <= farthest):
        doublings += 1
    turns = tl.where(doubling, doublings, tl.maximum(farthest - reach + 1, 0))
    far_blocks = tl.where((parts == 1) & (near_block > sink_blocks), turns * width, 0)
    steps = sink_blocks + far_blocks + near_blocks
    return sink_blocks, near_block, far_blocks, start, unit, doubling, reach, width, steps


@triton.jit
def block_of(visits, step, base, slots, BLOCK_K: tl.constexpr):
    """The key block of a step; one past the last where a far interval touches fewer blocks than it may."""
    sink_blocks, near_block, far_blocks, start, unit, doubling, reach, width, steps = visits
    far = tl.minimum(tl.maximum(step - sink_blocks, 0), far_blocks)
    turn = far // width
    distance = tl.where(doubling, reach << tl.minimum(turn, 30), reach + turn)
    block = (start - base - distance * unit + width * BLOCK_K) // BLOCK_K - width + far % width
    inside = (block >= sink_blocks) & (block < near_block)
    far_block = tl.where(inside, block, tl.cdiv(slots, BLOCK_K))
    near = step - sink_blocks - far_blocks
    return tl.where(step < sink_blocks, step, tl.where(near < 0, far_block, near + near_block))
