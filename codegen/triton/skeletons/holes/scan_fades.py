"""Decays since a chunk's start and until its end that were found before a state passes (scan_chunks)."""

import triton
import triton.language as tl


@triton.jit
def read_gates(decay, row, head, heads, index, left, slot, channel, K: tl.constexpr):
    """What is left since the chunk's start, until its end, and of the whole chunk."""
    here = decay + (row * heads + head) * 2
    since = tl.load(here + index * (heads * 2), mask=index < left, other=0.0)
    until = tl.load(here + index * (heads * 2) + 1, mask=index < left, other=0.0)
    return since, until, tl.load(here + (tl.minimum(left, index.shape[0]) - 1) * (heads * 2))


@triton.jit
def since_start(gates):
    """What each token, a row, finds of the state before the chunk."""
    return gates[0][:, None]


@triton.jit
def until_end(gates):
    """What is left after the chunk of what each token, a row, wrote."""
    return gates[1][:, None]


@triton.jit
def fade(state, gates):
    """A state [K, V] after the chunk's decays."""
    return state * gates[2]


@triton.jit
def fade_sum(sums, gates):
    """A sum of keys [K] after the chunk's decays."""
    return sums * gates[2]
