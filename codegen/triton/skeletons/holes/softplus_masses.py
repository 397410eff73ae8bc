"""Fills the forward pass's holes where only the sum of a query's softplus masses is asked for (softplus_parts.py).

There are no values: the first channel of a key stands for its value, and nobody reads what becomes of it.
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
def adjust_score(product, scale, cap):
    """The mass of a query and a key."""
    factor, count, share = scale
    return softplus(logit(product, factor, count, cap))


@triton.jit
def weigh(score, peak):
    """A mass beside the largest so far."""
    return score * tl.div_rn(1.0, peak)


@triton.jit
def store_sums(sums, place, peak, norm, live):
    """Leaves the largest mass, and the sum of all over it."""
    tl.store(sums + 2 * place, peak, mask=live)
    tl.store(sums + 2 * place + 1, norm, mask=live)
