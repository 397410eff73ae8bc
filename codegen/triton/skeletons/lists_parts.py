"""What the kernels over lists share: which keys intervals show, where a list's keys lie, and how many lines a tile has.

The functions of a key set are holes, as in the softmax skeletons: here they are those of one near interval under causality. The
emitter puts the functions of this file into each kernel file, in place of its import.
"""

import triton
import triton.language as tl

MEMBERS = 1  # query heads that share a list: those of a KV head, or one

LOG2E = tl.constexpr(1.4426950408889634)
NOWHERE = tl.constexpr(2**30)  # position of a slot that holds no key; also "no bound"


@triton.jit
def read_row(row):
    """The numbers of one sequence and KV head."""
    return tl.load(row), tl.load(row + 1), tl.load(row + 2), tl.load(row + 3), tl.load(row + 4)


@triton.jit
def lower(numbers, i):
    """The first key near query i that it sees."""
    sink, align, shift, back, ahead = numbers
    return (i + shift) // align * align - shift - back


@triton.jit
def upper(numbers, i):
    """One past the last key near query i that it sees."""
    return i + 1


@triton.jit
def horizon(i):
    """One past the last key that causality shows to query i."""
    return i + 1


@triton.jit
def keep(numbers, i, j):
    """Whether the query at i sees the key at j."""
    sink, align, shift, back, ahead = numbers
    return ((j >= lower(numbers, i)) | (j < sink)) & (j <= i)


@triton.jit
def visit(numbers, first, last, base, slots, whole, BLOCK_K: tl.constexpr):
    """Which key blocks the queries first..last see: how many of the first ones, the first near one, how many in all."""
    sink_end = tl.minimum(tl.maximum(tl.minimum(numbers[0], horizon(last)) - base, 0), slots)
    sink_blocks = tl.where(whole, 0, tl.cdiv(sink_end, BLOCK_K))
    begin = tl.where(whole, 0, tl.maximum(lower(numbers, first) - base, 0))
    end = tl.where(whole, slots, tl.minimum(tl.maximum(upper(numbers, last) - base, 0), slots))
    near_block = tl.maximum(begin // BLOCK_K, sink_blocks)
    near_blocks = tl.where(begin < end, tl.maximum(tl.cdiv(end, BLOCK_K) - near_block, 0), 0)
    return sink_blocks, near_block, sink_blocks + near_blocks


@triton.jit
def block_of(visits, step, base, slots, BLOCK_K: tl.constexpr):
    """The key block of a step."""
    sink_blocks, near_block, steps = visits
    return tl.where(step < sink_blocks, step, step - sink_blocks + near_block)


@triton.jit
def chosen(index, count, step, base, UNIT: tl.constexpr, BLOCK_K: tl.constexpr):
    """The slots of a step's keys: the first one where units are whole blocks, else each."""
    if UNIT % BLOCK_K == 0:
        at = tl.minimum(tl.maximum(step * BLOCK_K // UNIT, 0), tl.maximum(count - 1, 0))
        unit = tl.load(index + at, mask=count > 0, other=0)
        slot = unit * UNIT + step * BLOCK_K % UNIT - base
    else:
        key = step * BLOCK_K + tl.arange(0, BLOCK_K)
        there = (key >= 0) & (key < count * UNIT)
        unit = tl.load(index + key // UNIT, mask=there, other=0)
        slot = tl.where(there, unit * UNIT + key % UNIT - base, NOWHERE)
    return slot


@triton.jit
def adjust_score(product, scale, cap):
    """The logit of a query and a key, to base 2."""
    return product * (scale * LOG2E)


def lines_of(queries, most):
    """Lines of a tile of a row of so many queries."""
    return max(16, triton.next_power_of_2(MEMBERS), min(most, triton.next_power_of_2(min(queries, most) * MEMBERS)))
