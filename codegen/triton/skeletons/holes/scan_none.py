"""States that do not decay."""

import triton
import triton.language as tl


@triton.jit
def read_gates(decay, row, head, heads, index, left, slot, channel, K: tl.constexpr):
    """Nothing to read."""
    return (left,)


@triton.jit
def since_start(gates):
    """Everything."""
    return 1.0


@triton.jit
def until_end(gates):
    """Everything."""
    return 1.0


@triton.jit
def between(gates):
    """Everything."""
    return 1.0


@triton.jit
def between_turned(gates):
    """Everything."""
    return 1.0


@triton.jit
def fade(state, gates):
    """A state [K, V] as it is."""
    return state


@triton.jit
def fade_sum(sums, gates):
    """A sum of keys [K] as it is."""
    return sums


@triton.jit
def read_fade(decay, place, head, channel, K: tl.constexpr):
    """What a token leaves of a state before it."""
    return 1.0


@triton.jit
def store_fades(gates, fades, row, head, heads, index, left):
    """Whoever needs them knows them."""
