"""Fills `block_of` as far.py does, without a division in every step: for kernels of many queries."""

import triton
import triton.language as tl


@triton.jit
def block_of(visits, step, base, slots, BLOCK_K: tl.constexpr):
    """The key block of a step; one past the last where a far interval touches fewer blocks than it may."""
    sink_blocks, near_block, far_blocks, start, unit, doubling, reach, width, steps = visits
    far = tl.minimum(tl.maximum(step - sink_blocks, 0), far_blocks)
    turn = ((far.to(tl.float32) + 0.5) * (1.0 / width.to(tl.float32))).to(tl.int32)  # far // width, below 2^22
    distance = tl.where(doubling, reach << tl.minimum(turn, 30), reach + turn)
    block = (start - base - distance * unit + width * BLOCK_K) // BLOCK_K - width + (far - turn * width)
    inside = (block >= sink_blocks) & (block < near_block)
    far_block = tl.where(inside, block, tl.cdiv(slots, BLOCK_K))
    near = step - sink_blocks - far_blocks
    return tl.where(step < sink_blocks, step, tl.where(near < 0, far_block, near + near_block))
