"""A decay of every key channel, token by token."""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def read_fade(decay, place, head, channel, K: tl.constexpr):
    """What a token leaves of each channel of a state before it."""
    return tl.exp2(tl.load(decay + place * K + channel, mask=channel < K, other=0.0) * LOG2E)


@triton.jit
def of_rows(fade):
    """A fade of all channels, or one of each, beside a state [K, BLOCK_V]."""
    return fade[:, None]
