"""Sums of decays that were found before a state passes (scan_chunks)."""

import triton
import triton.language as tl


@triton.jit
def read_gates(decay, row, head, heads, index, left, slot, channel, K: tl.constexpr):
    """What is left of a state since the chunk's start, as logarithms to base 2 in two parts, of every token and at the end."""
    here = decay + (row * heads + head) * 2
    high = tl.load(here + index * (heads * 2), mask=index < left, other=0.0)
    low = tl.load(here + index * (heads * 2) + 1, mask=index < left, other=0.0)
    end = here + (tl.minimum(left, index.shape[0]) - 1) * (heads * 2)
    return high, low, tl.load(end), tl.load(end + 1)
