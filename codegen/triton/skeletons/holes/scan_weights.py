"""Weights within a chunk that were found before a state passes (scan_chunks)."""

import triton
import triton.language as tl


@triton.jit
def pair_weights(query, k, gates, pairs, row, token_stride, offset, head, heads, index, left, channel,
                 K: tl.constexpr, C: tl.constexpr):  # fmt: skip
    """What the output of token i takes of what token j wrote [C, C]; 0 for j > i."""
    to = pairs + (row * heads + head) * C + (index[:, None] * (heads * C) + index[None, :])
    return tl.load(to, mask=(index < left)[:, None] & (index[:, None] >= index[None, :]), other=0.0).to(tl.float32)


@triton.jit
def turned_weights(key, q, gates, pairs, row, token_stride, offset, head, heads, index, left, channel,
                   K: tl.constexpr, C: tl.constexpr):  # fmt: skip
    """What the output of token i, a column, takes of what token j, a row, wrote [C, C]; 0 for j > i."""
    to = pairs + (row * heads + head) * C + (index[None, :] * (heads * C) + index[:, None])
    return tl.load(to, mask=(index < left)[None, :] & (index[None, :] >= index[:, None]), other=0.0).to(tl.float32)
