"""One decay of a head for all tokens."""

import triton
import triton.language as tl

from attnc.codegen.triton.skeletons.scan_parts import exp_of

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def read_gates(decay, row, head, heads, index, left, slot, channel, K: tl.constexpr):
    """The head's decay as a logarithm to base 2, the tokens' numbers, and how many of the chunk there are."""
    return tl.load(decay + head) * LOG2E, index, tl.minimum(left, index.shape[0])


@triton.jit
def since_start(gates):
    """What each token, a row, finds of the state before the chunk."""
    rate, index, count = gates
    return tl.exp2(rate * (index + 1))[:, None]


@triton.jit
def until_end(gates):
    """What is left after the chunk of what each token, a row, wrote."""
    rate, index, count = gates
    return tl.exp2(rate * tl.maximum(count - 1 - index, 0))[:, None]


@triton.jit
def between(gates):
    """What token i, a row, finds of what token j, a column, wrote; j <= i, the others are not read."""
    rate, index, count = gates
    return tl.exp2(rate * tl.maximum(index[:, None] - index[None, :], 0))


@triton.jit
def between_turned(gates):
    """The same with the writing token as row, the finding one as column."""
    rate, index, count = gates
    return tl.exp2(rate * tl.maximum(index[None, :] - index[:, None], 0))


@triton.jit
def fade(state, gates):
    """A state [K, V] after the chunk's decays."""
    return state * tl.exp2(gates[0] * gates[2])


@triton.jit
def fade_sum(sums, gates):
    """A sum of keys [K] after the chunk's decays."""
    return sums * tl.exp2(gates[0] * gates[2])


@triton.jit
def read_fade(decay, place, head, channel, K: tl.constexpr):
    """What a token leaves of a state before it."""
    return exp_of(tl.load(decay + head))


@triton.jit
def store_fades(gates, fades, row, head, heads, index, left):
    """Whoever needs them knows them."""
