"""Strengths of erasing for every key channel."""

import triton
import triton.language as tl

from attnc.codegen.triton.skeletons.scan_parts import read_rows


@triton.jit
def read_eraser(key, e, row, head, heads, index, left, channel, K: tl.constexpr):
    """The keys that are erased [C, K], strengths in them."""
    strength = read_rows(e, row, heads * K, head * K, index, left, channel, K)
    return (key.to(tl.float32) * strength.to(tl.float32)).to(key.dtype), 1.0


@triton.jit
def read_erase(e, place, channel, K: tl.constexpr):
    """A token's strengths of erasing [K]."""
    return tl.load(e + place * K + channel, mask=channel < K, other=0.0).to(tl.float32)


@triton.jit
def store_erased(erased_grad, key, e, erase_grad, block, tokens, row, head, heads, index, left, channel, K: tl.constexpr):
    """The gradient of keys from that of erased keys [C, BLOCK_K]; leaves that of strengths."""
    strength = read_rows(e, row, heads * K, head * K, index, left, channel, K).to(tl.float32)
    to = erase_grad + (row * heads + head) * K + (index[:, None] * (heads * K) + channel[None, :])
    tl.store(to, key.to(tl.float32) * erased_grad, mask=(index < left)[:, None] & (channel < K)[None, :])
    return erased_grad * strength
