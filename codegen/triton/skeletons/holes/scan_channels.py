"""Decays of every key channel: what a chunk erases of itself was found with its weights."""

import triton
import triton.language as tl


@triton.jit
def find_pairs(q, k, e, decay, fades, pairs, strengths, row, q_token_stride, q_head, k_token_stride, k_head, head, heads,
               index, left, slot, channel, K: tl.constexpr, C: tl.constexpr):  # fmt: skip
    """A [C, C]: what token i, a row, erases of what token j wrote; only j < i is read."""
    to = strengths + (row * heads + head) * C + (index[:, None] * (heads * C) + index[None, :])
    return tl.load(to, mask=(index < left)[:, None] & (index[:, None] > index[None, :]), other=0.0)
