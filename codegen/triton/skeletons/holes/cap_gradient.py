"""Fills `exponent` and `product_grad` where scores pass a soft cap."""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def tanh(x):
    """The hyperbolic tangent from exp2; near 0 its series, where the quotient would cancel."""
    falling = tl.exp2(tl.abs(x) * (-2.0 * LOG2E))
    far = (1.0 - falling) / (1.0 + falling)
    y = x * x
    series = 1.0 + y * (-1.0 / 3 + y * (2.0 / 15 + y * (-17.0 / 315 + y * (62.0 / 2835 - y * (1382.0 / 155925)))))
    return tl.where(y < 0.0625, x * series, tl.where(x < 0, -far, far))


@triton.jit
def exponent(product, scale, cap, sums):
    """The soft-capped logit of a query and a key, as the forward pass rounds it, less the query's log-sum-exp; to base 2."""
    return tanh(product * (scale / cap)) * (cap * LOG2E) - sums


@triton.jit
def product_grad(grad, product, scale, cap):
    """The gradient of a query's and a key's product, from that of their logit: the cap's slope is 1 - tanh^2."""
    bent = tanh(product * (scale / cap))
    return grad * (1.0 - bent * bent) * scale
