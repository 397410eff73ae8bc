"""Strengths of writing for every value channel."""

import triton
import triton.language as tl

from attnc.codegen.triton.skeletons.scan_parts import read_rows


@triton.jit
def read_write(write, row, head, heads, index, left, channel, V: tl.constexpr):
    """The strengths of what is written, of each token and channel."""
    return read_rows(write, row, heads * V, head * V, index, left, channel, V).to(tl.float32)


@triton.jit
def read_strength(write, place, channel, V: tl.constexpr):
    """A token's strengths of writing [BLOCK_V]."""
    return tl.load(write + place * V + channel, mask=channel < V, other=0.0).to(tl.float32)


@triton.jit
def store_written(value_grad, v, write, v_grad, write_grad, block, tokens, row, head, heads, v_token_stride, v_head,
                  index, left, channel, V: tl.constexpr):  # fmt: skip
    """The gradients of values and of their strengths, from that of their products."""
    value = read_rows(v, row, v_token_stride, v_head, index, left, channel, V).to(tl.float32)
    strength = read_write(write, row, head, heads, index, left, channel, V)
    to = (row * heads + head) * V + (index[:, None] * (heads * V) + channel[None, :])
    mask = (index < left)[:, None] & (channel < V)[None, :]
    tl.store(v_grad + to, (value_grad * strength).to(v_grad.dtype.element_ty), mask=mask)
    tl.store(write_grad + to, value * value_grad, mask=mask)
