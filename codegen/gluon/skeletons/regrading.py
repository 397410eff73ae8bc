"""From products of queries and keys to weights and to the products' gradients, in a backward pass."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

HALF = gl.constexpr(64)  # queries or keys of one group of warps
LOG2E = gl.constexpr(1.4426950408889634)
EMPTY = gl.constexpr(1e30)  # stands for the log-sum-exp of a query without keys: no key has a weight beside it


@gluon.jit
def load_sums(lse, place, live):
    """What the forward pass left of a query: the log-sum-exp of its scores, to base 2; NaN stays."""
    sums = gl.load(lse + place, mask=live, other=float("-inf"))
    return gl.where(sums == float("-inf"), EMPTY, sums * LOG2E)


@gluon.jit
def exponent(product, scale, cap, sums):
    """The logit of a query and a key less the query's log-sum-exp, to base 2."""
    return product * (scale * LOG2E) - sums


@gluon.jit
def product_grad(grad, product, scale, cap):
    """The gradient of a query's and a key's product, from that of their logit."""
    return grad * scale
