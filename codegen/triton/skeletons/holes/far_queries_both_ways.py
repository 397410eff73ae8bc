"""Fills `visit_queries` where a union has strides or powers of two and no causality: every block sees such a head's keys."""

import triton
import triton.language as tl

NOWHERE = tl.constexpr(2**30)


@triton.jit
def seen_from(numbers, j):
    """A hole: the first query that sees key j, and no later one than for the next key."""
    return j


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
    """Which query blocks see the keys at first..last: the first one, how many in all."""
    whole = far_part(numbers)[2] > 0
    begin = tl.where(whole, 0, tl.minimum(tl.maximum(seen_from(numbers, first) - start, 0), count))
    until = tl.where(whole | (first < numbers[0]), NOWHERE, seen_until(numbers, last))
    end = tl.minimum(tl.maximum(until - start, 0), count)
    return begin // BLOCK_Q, tl.where(begin < end, tl.cdiv(end, BLOCK_Q) - begin // BLOCK_Q, 0)
