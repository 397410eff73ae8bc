"""Decays of every key channel: rows come folded, with the decays in them (scan_chunks); what is left is the chunk's own."""

import triton
import triton.language as tl

from attnc.codegen.triton.skeletons.scan_parts import read_rows


@triton.jit
def read_gates(decay, row, head, heads, index, left, slot, channel, K: tl.constexpr):
    """What is left of every channel of a state after the chunk."""
    return (tl.load(decay + slot * K + channel, mask=channel < K, other=0.0),)


@triton.jit
def since_start(gates):
    """Queries and erased keys have it in them."""
    return 1.0


@triton.jit
def until_end(gates):
    """Keys have it in them."""
    return 1.0


@triton.jit
def fade(state, gates):
    """A state [K, V] after the chunk's decays."""
    return state * gates[0][:, None]


@triton.jit
def fade_sum(sums, gates):
    """A sum of keys [K] after the chunk's decays."""
    return sums * gates[0]


@triton.jit
def read_eraser(key, e, row, head, heads, index, left, channel, K: tl.constexpr):
    """The folded keys that are erased, strengths in them."""
    return read_rows(e, row, heads * K, head * K, index, left, channel, K), 1.0
