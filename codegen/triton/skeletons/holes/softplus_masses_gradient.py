"""Fills the backward pass's holes where only the sum of a query's softplus masses was asked for (softplus_parts.py).

Each key has the gradient of the sum, which comes as that of the log-sum-exp.
"""

import triton


@triton.jit
def load_sums(sums, place, live):
    """Nothing of it is needed."""
    return 0.0


@triton.jit
def exponent(product, scale, cap, sums):
    """Nothing but 1: each key counts once."""
    return product * 0.0 + 1.0


@triton.jit
def weight_of(exponent, sums):
    """1 where a key is seen."""
    return exponent


@triton.jit
def sigmoid(x):
    """A hole: the derivative of softplus."""
    return x


@triton.jit
def logit(product, factor, count, cap):
    """A hole: the logit of a query and a key times log N."""
    return product * (factor * count)


@triton.jit
def logit_grad(grad, product, factor, count, cap):
    """A hole: the gradient of a query's and a key's product, from that of `logit`."""
    return grad * (factor * count)


@triton.jit
def product_grad(grad, product, scale, cap):
    """The gradient of a query's and a key's product, from that of the mass."""
    factor, count, share = scale
    return logit_grad(grad * sigmoid(logit(product, factor, count, cap)), product, factor, count, cap)
