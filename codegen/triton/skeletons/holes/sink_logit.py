"""Fills `add_sink_logit` where each head has a learned logit without a value."""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def add_sink_logit(best, norm, sink_logit, head):
    """Running maximum and sum with the learned logit that has no value."""
    logit = tl.load(sink_logit + head) * LOG2E
    peak = tl.maximum(best, logit)
    return peak, norm * tl.exp2(best - peak) + tl.exp2(logit - peak)
