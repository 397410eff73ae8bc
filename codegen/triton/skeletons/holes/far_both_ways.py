"""Fills `visit` where a union has strides or powers of two and no causality: a head that has such a part walks every block."""

import triton
import triton.language as tl


@triton.jit
def lower(numbers, i):
    """A hole: the first key near query i that it sees."""
    return i


@triton.jit
def upper(numbers, i):
    """A hole: one past the last key near query i that it sees."""
    return i + 1


@triton.jit
def far_part(numbers):
    """The far pattern's unit, whether its distances double, and how many patterns there are."""
    stride, power = numbers[-2], numbers[-1]
    return stride + power, power > 0, (stride > 0).to(tl.int32) + (power > 0).to(tl.int32)


@triton.jit
def visit(numbers, first, last, base, slots, whole, BLOCK_K: tl.constexpr):
    """Which key blocks the queries first..last see: how many of the first ones, the first near one, how many in all."""
    whole = whole | (far_part(numbers)[2] > 0)
    sink_end = tl.minimum(tl.maximum(numbers[0] - base, 0), slots)
    sink_blocks = tl.where(whole, 0, tl.cdiv(sink_end, BLOCK_K))
    begin = tl.where(whole, 0, tl.maximum(lower(numbers, first) - base, 0))
    end = tl.where(whole, slots, tl.minimum(tl.maximum(upper(numbers, last) - base, 0), slots))
    near_block = tl.maximum(begin // BLOCK_K, sink_blocks)
    near_blocks = tl.where(begin < end, tl.maximum(tl.cdiv(end, BLOCK_K) - near_block, 0), 0)
    return sink_blocks, near_block, sink_blocks + near_blocks
