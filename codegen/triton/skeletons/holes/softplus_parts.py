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
def logit(product, factor, count, cap):
    """The logit of a query and a key times log N."""
    return product * (factor * count)


@triton.jit
def logit_grad(grad, product, factor, count, cap):
    """The gradient of a query's and a key's product, from that of `logit`."""
    return grad * (factor * count)


@triton.jit
def softplus(x):
    """log(1 + exp(x)), without losing what is small: log(1 + u) is u times the polynomial of degree 9 whose largest relative
    error for u in [0, 1] is least (found by Lawson's reweighted least squares; 5e-9), without a division.
    """
    u = tl.exp(-tl.abs(x))
    series = -0.15305594 + u * (0.10603656 + u * (-0.05695954 + u * (0.019851463 + u * -0.0032440247)))
    series = 1.0 + u * (-0.499999 + u * (0.33329964 + u * (-0.24954134 + u * (0.1967594 + u * series))))
    return tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL) + u * series


@triton.jit
def sigmoid(x):
    """The derivative of softplus."""
    u = tl.exp(-tl.abs(x))
    return tl.where(x < 0.0, u, 1.0) / (1.0 + u)


@triton.jit
def above(product, scale, cap):
    """x of a query and a key; NaN stays."""
    factor, count, share = scale
    difference = softplus(logit(product, factor, count, cap)) * share - tl.where(count > 1.25, 1.0, 0.0)  # log 3 is 1.1
    return tl.maximum(difference, 0.0, propagate_nan=tl.PropagateNan.ALL)
