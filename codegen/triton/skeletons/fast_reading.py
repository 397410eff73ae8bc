"""What tokens read of fast weights of one map after their own writes: one program for a chunk and a head, all side by side.

With W and S as a chunk began, d_j what token j's error is to blame for, and reach_tj what of its write token t finds:

    o_t = left_t W q_t + speed_t S q_t - sum_{j <= t} reach_tj (q_t . k_j) d_j
"""

import triton
import triton.language as tl

from attnc.codegen.triton.skeletons.fast_parts import error, product, read_map, read_norm, read_rows, read_turned


@triton.jit
def normed(raw, weight, bias, inside, V: tl.constexpr, NORM: tl.constexpr):
    """A row with the layer norm, where there is one."""
    if NORM:
        less = tl.where(inside, raw - tl.sum(raw, 1)[:, None] / V, 0.0)
        raw = less * tl.rsqrt(tl.sum(less * less, 1) / V + 1e-6)[:, None] * weight + bias
    return raw


@triton.jit(do_not_specialize=["heads", "size"])
def read_kernel(
    q, k, v, reach, left, speed, weight, bias, kept, kept_moment, o, heads, size,
    K: tl.constexpr, V: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr, TILE: tl.constexpr,
    DECAYS: tl.constexpr, MOMENTUM: tl.constexpr, NORM: tl.constexpr, RESIDUAL: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    place = tl.program_id(0).to(tl.int64)
    c = tl.arange(0, BLOCK_K)
    d = tl.arange(0, BLOCK_V)
    index = tl.arange(0, TILE)
    inside = (d < V)[None, :]
    norm_weight, norm_bias = read_norm(weight, bias, place % heads, d, V, NORM)
    key = read_rows(k + place * size * K, index, size, c, K)
    value = read_rows(v + place * size * V, index, size, d, V)
    x = value
    if RESIDUAL:
        x = read_rows(k + place * size * K, index, size, d, K)
    known = read_map(kept + place * (V * K), c, d, K, V, 1, K)
    wrong = error(product(key, known, PRECISION), x, value, norm_weight, norm_bias, inside, V, NORM, RESIDUAL)
    query = read_rows(q + place * size * K, index, size, c, K)
    found = product(query, known, PRECISION)
    if DECAYS:
        found *= tl.load(left + place * size + index, mask=index < size, other=0.0)[:, None]
    if MOMENTUM:
        moment = product(query, read_map(kept_moment + place * (V * K), c, d, K, V, 1, K), PRECISION)
        found += moment * tl.load(speed + place * size + index, mask=index < size, other=0.0)[:, None]
    scores = product(query, read_turned(k + place * size * K, index, size, c, K), PRECISION)
    both = (index < size)[:, None] & (index < size)[None, :]
    scores *= tl.load(reach + place * size * size + index[:, None] * size + index[None, :], mask=both, other=0.0)
    found = normed(found - product(scores, wrong, PRECISION), norm_weight, norm_bias, inside, V, NORM)
    if RESIDUAL:
        found += read_rows(q + place * size * K, index, size, d, K)
    to = o + place * size * V + index[:, None] * V + d[None, :]
    tl.store(to, found, mask=(index < size)[:, None] & inside)
