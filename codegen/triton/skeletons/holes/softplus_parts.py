"""What the softplus holes share: re-weighted softplus masses (LSSAR, arXiv 2501.13428).

    a = softplus(logit log N),  x = relu(a N / sum(a) - O),  weight = x^p / sum(x^p);  O = 1 where N > 3, else 0

N counts a query's keys. Beside the factor of its logits, a query's `scale` holds log N and its share N / sum(a), which earlier
launches have found.
"""

import triton
import triton.language as tl


@triton.jit
def read_scale(scale, head, place, live):
    """The factor of a query's logits, the logarithm of its number of keys, and that number over the sum of its masses."""
    here = scale + place * 3
    return tl.load(here, mask=live, other=0.0), tl.load(here + 1, mask=live, other=0.0), tl.load(here + 2, mask=live, other=0.0)


@triton.jit
def logit(product, factor, cap):
    """The logit of a query and a key."""
    return product * factor


@triton.jit
def logit_grad(grad, product, factor, cap):
    """The gradient of a query's and a key's product, from that of their logit."""
    return grad * factor


@triton.jit
def softplus(x):
    """log(1 + exp(x)), without losing what is small: log(1 + u) is log((1 + t) / (1 - t)), a series in t."""
    u = tl.exp(-tl.abs(x))
    t = u / (2.0 + u)
    y = t * t
    series = 1.0 / 9 + y * (1.0 / 11 + y * (1.0 / 13 + y * (1.0 / 15 + y * (1.0 / 17))))
    series = 1.0 + y * (1.0 / 3 + y * (1.0 / 5 + y * (1.0 / 7 + y * series)))
    return tl.where(x < 0.0, 0.0, x) + 2.0 * t * series


@triton.jit
def sigmoid(x):
    """The derivative of softplus."""
    u = tl.exp(-tl.abs(x))
    return tl.where(x < 0.0, u, 1.0) / (1.0 + u)


@triton.jit
def above(product, scale, cap):
    """x of a query and a key; NaN stays."""
    factor, count, share = scale
    difference = softplus(logit(product, factor, cap) * count) * share - tl.where(count > 1.25, 1.0, 0.0)  # log 3 is 1.1
    return tl.where(difference < 0.0, 0.0, difference)
