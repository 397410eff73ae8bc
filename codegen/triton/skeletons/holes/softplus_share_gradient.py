"""Fills the holes for the gradient of a query's share N / sum(a): the sum over its keys of a times the gradient of x."""

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
def root_grad(grad, x):
    """A hole: the gradient of x, from that of the logarithm of x^p."""
    return grad / x


@triton.jit
def add_scale_grad(total, grad, product, scale, cap):
    """The gradient of a query's share."""
    factor, count, share = scale
    mass = softplus(logit(product, factor, count, cap))
    return total + tl.sum(root_grad(grad, above(product, scale, cap)) * mass, 1)


@triton.jit
def store_scale_grad(scale_grad, place, total, live):
    """Leaves it behind."""
    tl.store(scale_grad + place, total, mask=live)
