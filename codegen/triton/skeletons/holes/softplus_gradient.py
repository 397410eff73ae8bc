"""Fills the backward pass's holes where weights are re-weighted softplus masses (softplus_parts.py).

With g the gradient of the logarithm of a key's x^p, that of its x is e = p g / x, and that of its logit
e share sigmoid(logit log N) log N.
"""

import triton
import triton.language as tl


@triton.jit
def softplus(x):
    """A hole: log(1 + exp(x))."""
    return x


@triton.jit
def sigmoid(x):
    """A hole: the derivative of softplus."""
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
def load_sums(sums, place, live):
    """What the forward pass left of a query: one over its largest x, and over the sum of weights beside that."""
    peak = tl.load(sums + 2 * place, mask=live, other=1.0)
    norm = tl.load(sums + 2 * place + 1, mask=live, other=1.0)
    return tl.div_rn(1.0, peak), 1.0 / tl.where(norm != 0.0, norm, 1.0)


@triton.jit
def exponent(product, scale, cap, sums):
    """x over the largest of its query's."""
    over_peak, over_norm = sums
    return above(product, scale, cap) * over_peak


@triton.jit
def power(x):
    """A hole: x^p."""
    return x


@triton.jit
def weight_of(exponent, sums):
    """The weight of a key, 0 where it is not seen."""
    over_peak, over_norm = sums
    return power(exponent) * over_norm


@triton.jit
def root_grad(grad, x):
    """A hole: the gradient of x, from that of the logarithm of x^p."""
    return grad / x


@triton.jit
def logit_grad(grad, product, factor, count, cap):
    """A hole: the gradient of a query's and a key's product, from that of `logit`."""
    return grad * (factor * count)


@triton.jit
def product_grad(grad, product, scale, cap):
    """The gradient of a query's and a key's product, from that of the logarithm of x^p."""
    factor, count, share = scale
    slope = share * sigmoid(logit(product, factor, count, cap))
    return logit_grad(root_grad(grad, above(product, scale, cap)) * slope, product, factor, count, cap)
