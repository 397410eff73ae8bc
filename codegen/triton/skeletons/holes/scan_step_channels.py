"""A decay of every key channel, token by token."""

import triton
import triton.language as tl

from attnc.codegen.triton.skeletons.scan_parts import exp_of


@triton.jit
def read_fade(decay, place, head, channel, K: tl.constexpr):
    """What a token leaves of each channel of a state before it."""
    return exp_of(tl.load(decay + place * K + channel, mask=channel < K, other=0.0))


@triton.jit
def of_rows(fade):
    """A fade of all channels, or one of each, beside a state [K, BLOCK_V]."""
    return fade[:, None]
