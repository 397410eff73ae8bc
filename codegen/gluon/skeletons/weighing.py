"""From products of queries and keys to weights: scores, running maxima and sums, weights as an operand."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from attnc.codegen.gluon.skeletons.seeing import HIDDEN, SHARE

LOG2E = gl.constexpr(1.4426950408889634)


@gluon.jit
def adjust_score(product, scale, cap):
    """The logit of a query and a key, to base 2; called where scores are capped, else scales are part of the exponent."""
    return product * (scale * LOG2E)


@gluon.jit
def add_sink_logit(best, norm, sink_logit, head):
    """Running maximum and sum with the learned logit that has no value."""
    return best, norm


@gluon.jit
def thread_sums(weight, BLOCK_K: gl.constexpr):
    """The part of the rows' sums that lies inside each thread, [64, 4]: no exchange while blocks are walked."""
    return gl.sum(gl.sum(weight.reshape([SHARE, BLOCK_K // 8, 4, 2]), 3), 1)


@gluon.jit
def weigh(score, best, sums, factor, EXACT: gl.constexpr, BLOCK_K: gl.constexpr):
    """Weights of a block's scores beside the new maximum, what older weights fade by, the maximum, and the sums.

    The factor and the maximum are one operation for each weight. It leaves the rounding error of their product in all weights
    of a block alike: 2^(1e-7 times the largest logit), which bfloat16 does not see. EXACT takes two. What fades must be exactly
    1 where the maximum stays, as it is met in every block.
    """
    peak = gl.maximum(best, gl.max(score, 1))
    some = gl.where(peak == HIDDEN, 0.0, peak)
    if EXACT:
        weight = gl.exp2((score - some[:, None]) * factor)
    else:
        weight = gl.exp2(score * factor - (some * factor)[:, None])
    fade = gl.exp2((best - some) * factor)
    part = thread_sums(weight, BLOCK_K)
    sums = sums * gl.convert_layout(fade, gl.SliceLayout(1, part.type.layout))[:, None] + part
    return weight, fade, peak, sums


@gluon.jit
def narrow(weight, dtype: gl.constexpr, OPERAND: gl.constexpr):
    """Weights as an operand in registers. By assembly that is not pure: LLVM would put the conversion behind the next wait."""
    if dtype == gl.bfloat16:
        weight = gl.inline_asm_elementwise(
            "cvt.rn.bf16x2.f32 $0, $2, $1;", "=r,r,r", [weight], dtype=gl.bfloat16, is_pure=False, pack=2
        )
    else:
        weight = gl.inline_asm_elementwise(
            "cvt.rn.f16x2.f32 $0, $2, $1;", "=r,r,r", [weight], dtype=gl.float16, is_pure=False, pack=2
        )
    return gl.convert_layout(weight, OPERAND, assert_trivial=True)
