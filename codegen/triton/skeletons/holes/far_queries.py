"""Fills `visit_queries` and `query_block_of` where a union has strides or powers of two, under causality.

The mirror of far.py: one such pattern alone is walked sparsely, the queries that see a block of keys lie at the distances
reach, reach + 1, reach + 2, ... (a stride) or reach, 2 reach, 4 reach, ... (powers) times `unit` after it. Several patterns,
or one whose intervals come closer than the blocks they touch, are walked as one stretch, so that no block is met twice.
"""

import triton
import triton.language as tl

NOWHERE = tl.constexpr(2**30)


@triton.jit
def seen_until(numbers, j):
    """A hole: one past the last query near key j that sees it."""
    return j


@triton.jit
def far_part(numbers):
    """The far pattern's unit, whether its distances double, and how many patterns there are."""
    stride, power = numbers[-2], numbers[-1]
    return stride + power, power > 0, (stride > 0).to(tl.int32) + (power > 0).to(tl.int32)


@triton.jit
def visit_queries(numbers, first, last, start, count, BLOCK_Q: tl.constexpr):
    """Which query blocks see the keys at first..last: the first near one, the end of the near ones, where the far ones lie, and
    how many in all.
    """
    unit, doubling, parts = far_part(numbers)
    unit = tl.maximum(unit, 1)
    low = tl.where(doubling, first // unit * unit, first) - start  # queries at distance x: [low + x unit, high + x unit)
    high = tl.where(doubling, (last // unit + 1) * unit, last + 1) - start
    within = tl.where(unit % BLOCK_Q == 0, (low % BLOCK_Q + BLOCK_Q) % BLOCK_Q, BLOCK_Q - 1)  # of its first block
    width = (within + high - low - 1) // BLOCK_Q + 1  # blocks that one interval may touch
    crowded = (parts > 1) | ((parts == 1) & (doubling == 0) & (unit < width * BLOCK_Q))
    reach = 1
    while doubling & (reach * unit < width * BLOCK_Q):  # closer intervals than this count as near
        reach *= 2
    near = tl.where(doubling, high + reach // 2 * unit, last + 1 - start)
    near = tl.maximum(seen_until(numbers, last) - start, tl.where(parts > 0, near, -NOWHERE))
    near = tl.where(crowded | (first < numbers[0]), count, near)

    begin = tl.minimum(tl.maximum(first - start, 0), count)
    end = tl.minimum(tl.maximum(near, begin), count)
    near_block = begin // BLOCK_Q
    near_end = tl.where(begin < end, tl.cdiv(end, BLOCK_Q), near_block)
    while doubling & (high + reach * unit <= near_end * BLOCK_Q):
        reach *= 2
    passed = tl.maximum(near_end * BLOCK_Q - high, 0) // unit + 1  # the first distance that leaves the near blocks
    reach = tl.where(doubling, reach, tl.maximum(passed, 1))
    farthest = (count - 1 - low) // unit
    doublings = 0
    while doubling & (reach << doublings <= farthest):
        doublings += 1
    turns = tl.where(doubling, doublings, tl.maximum(farthest - reach + 1, 0))
    far_blocks = tl.where((parts == 1) & (near_end * BLOCK_Q < count), turns * width, 0)
    return near_block, near_end, low, unit, doubling, reach, width, far_blocks + near_end - near_block


@triton.jit
def query_block_of(visits, step, count, BLOCK_Q: tl.constexpr):
    """The query block of a step; one past the last where a far interval touches fewer blocks than it may."""
    near_block, near_end, low, unit, doubling, reach, width, steps = visits
    far = tl.maximum(step - (near_end - near_block), 0)
    turn = far // width
    distance = tl.where(doubling, reach << tl.minimum(turn, 30), reach + turn)
    block = (low + distance * unit) // BLOCK_Q + far % width
    far_block = tl.where(block >= near_end, block, tl.cdiv(count, BLOCK_Q))
    return tl.where(step < near_end - near_block, near_block + step, far_block)
