"""Takes the place of functions of softplus_parts.py where logits pass a soft cap."""

import triton


@triton.jit
def tanh(x):
    """A helper: see cap.py."""
    return x


@triton.jit
def logit(product, factor, count, cap):
    """The logit of a query and a key, under the soft cap, times log N."""
    return tanh(product * (factor / cap)) * (cap * count)


@triton.jit
def logit_grad(grad, product, factor, count, cap):
    """The gradient of a query's and a key's product, from that of `logit`: the cap's slope is 1 - tanh^2."""
    bent = tanh(product * (factor / cap))
    return grad * (1.0 - bent * bent) * (factor * count)
