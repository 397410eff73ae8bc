"""Fills the forward pass's holes where weights are re-weighted softplus masses (softplus_parts.py).

Scores are x. The largest x so far takes the place of a maximum of logarithms, and weights are powers of quotients: x^15 alone
would vanish. Both the largest x and the sum are left of a query: one number of both, to the power p, were p times less exact.
"""

import triton
import triton.language as tl


@triton.jit
def softplus(x):
    """A hole: log(1 + exp(x))."""
    return x


@triton.jit
def logit(product, factor, count, cap):
    """A hole: the logit of a query and a key times log N."""
    return product * (factor * count)


@triton.jit
def above(product, scale, cap):
    """A hole: x of a query and a key."""
    return product


@triton.jit
def adjust_score(product, scale, cap):
    """How far a key's mass lies above the mean of its query's masses."""
    return above(product, scale, cap)


@triton.jit
def power(x):
    """A hole: x^p."""
    return x


@triton.jit
def weigh(score, peak):
    """The weight of a key beside the largest so far. A quotient for each key, correctly rounded, would leave the fast path of
    its division for every x of 0.
    """
    return power(score * tl.div_rn(1.0, peak))


@triton.jit
def store_sums(sums, place, peak, norm, live):
    """Leaves the largest x, and the sum of weights beside it."""
    tl.store(sums + 2 * place, peak, mask=live)
    tl.store(sums + 2 * place + 1, norm, mask=live)
