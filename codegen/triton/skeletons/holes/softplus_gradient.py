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
def logit(product, factor, cap):
    """A hole: the logit of a query and a key."""
    return product * factor


@triton.jit
def above(product, scale, cap):
    """A hole: x of a query and a key."""
    return product


@triton.jit
def load_sums(sums, place, live):
    """What the forward pass left of a query: its largest x, and one over the sum of weights beside that."""
    peak = tl.load(sums + 2 * place, mask=live, other=1.0)
    norm = tl.load(sums + 2 * place + 1, mask=live, other=1.0)
    return peak, 1.0 / tl.where(norm != 0.0, norm, 1.0)


@triton.jit
def exponent(product, scale, cap, sums):
    """x over the largest of its query's."""
    peak, norm = sums
    return tl.div_rn(above(product, scale, cap), peak)


@triton.jit
def power(x):
    """A hole: x^p."""
    return x


@triton.jit
def weight_of(exponent, sums):
    """The weight of a key, 0 where it is not seen."""
    peak, norm = sums
    return power(exponent) * norm


@triton.jit
def root_grad(grad, x):
    """A hole: the gradient of x, from that of the logarithm of x^p."""
    return grad / x


@triton.jit
def logit_grad(grad, product, factor, cap):
    """A hole: the gradient of a query's and a key's product, from that of their logit."""
    return grad * factor


@triton.jit
def product_grad(grad, product, scale, cap):
    """The gradient of a query's and a key's product, from that of the logarithm of x^p."""
    factor, count, share = scale
    slope = share * count * sigmoid(logit(product, factor, cap) * count)
    return logit_grad(root_grad(grad, above(product, scale, cap)) * slope, product, factor, cap)
