"""Gradients of what tokens of single chunks brought to fast weights: one program for a chunk and a head, all side by side.

Known are a chunk's weights W and momentum S as it began, and gradients G and P of what it left:

    W' = stays W + speed S - sum_j writes_j u_j;  S' = slows S - sum_j pushes_j u_j

with u_j what token j is to blame for: d k^T of one map; d gelu(z)^T and e k^T of two (fast_maps.py). What reaches W and S of
the chunk before is found by the way back from chunk to chunk; here are those of keys, values, amounts and the layer norm.

Legend: a chunk's numbers stand at `place`, its row and head; a net of two maps has W1 [HIDDEN, K], then W2 [V, HIDDEN].
"""

import torch
import triton
import triton.language as tl

from attnc.codegen.triton.skeletons.fast_parts import (
    error,
    error_back,
    gelu,
    product,
    read_map,
    read_norm,
    read_rows,
)
from attnc.codegen.triton.skeletons.scan_parts import run


@triton.jit
def goal_back(by, raw, x, value, weight, bias, inside, V: tl.constexpr, NORM: tl.constexpr, RESIDUAL: tl.constexpr):
    """From the gradient of tokens' errors, those of what was wanted, and each token's share of those of weight and bias."""
    if NORM:
        goal = value
        if RESIDUAL:
            goal = value - x
        less = tl.where(inside, raw - tl.sum(raw, 1)[:, None] / V, 0.0)
        rstd = tl.rsqrt(tl.sum(less * less, 1) / V + 1e-6)[:, None]
        hat = less * rstd
        by_share = tl.sum(by * hat, 1)[:, None] / V
        by_slope = tl.where(inside, 2.0 * rstd * (by - tl.sum(by, 1)[:, None] / V - hat * by_share), 0.0)
        return -weight * by_slope, by_slope * (2.0 * hat * weight + (bias - goal)), weight * by_slope
    return -2.0 * by, by, by


@triton.jit
def alike(a, b, NUMBERS: tl.constexpr, SPAN: tl.constexpr):
    """The sum of the products of the numbers of two nets."""
    total = 0.0
    for first in range(0, NUMBERS, SPAN):
        spot = first + tl.arange(0, SPAN)
        one = tl.load(a + spot, mask=spot < NUMBERS, other=0.0)
        total += tl.sum(one * tl.load(b + spot, mask=spot < NUMBERS, other=0.0))
    return total


@triton.jit
def leave_rates(
    kept, kept_moment, rows, rows_moment, stays_grad, speed_grad, slows_grad, place,
    NUMBERS: tl.constexpr, MOMENTUM: tl.constexpr,
):  # fmt: skip
    """Gradients of what is multiplied by a chunk's numbers."""
    row = place * NUMBERS
    tl.store(stays_grad + place, alike(rows + row, kept + row, NUMBERS, 1024))
    if MOMENTUM:
        tl.store(speed_grad + place, alike(rows + row, kept_moment + row, NUMBERS, 1024))
        tl.store(slows_grad + place, alike(rows_moment + row, kept_moment + row, NUMBERS, 1024))


@triton.jit
def leave_tokens(
    by_key, by_wrong, of_write, of_push, raw, x, value, k_grad, v_grad, writes_grad, pushes_grad, of_weight, of_bias,
    weight, bias, index, size, place, c, d,
    K: tl.constexpr, V: tl.constexpr, MOMENTUM: tl.constexpr, NORM: tl.constexpr, RESIDUAL: tl.constexpr,
):  # fmt: skip
    """Stores gradients of tokens; returns those of the norm's weight and bias, with theirs added."""
    there = index < size
    inside = (d < V)[None, :]
    by_goal, by_weight, by_bias = goal_back(by_wrong, raw, x, value, weight, bias, inside, V, NORM, RESIDUAL)
    if NORM:
        of_weight += tl.sum(tl.where(there[:, None], by_weight, 0.0), 0)
        of_bias += tl.sum(tl.where(there[:, None], by_bias, 0.0), 0)
    if RESIDUAL:
        by_key -= by_goal
    spot = place * size + index
    tl.store(v_grad + spot[:, None] * V + d[None, :], by_goal, mask=there[:, None] & inside)
    tl.store(k_grad + spot[:, None] * K + c[None, :], by_key, mask=there[:, None] & (c < K)[None, :])
    tl.store(writes_grad + spot, of_write, mask=there)
    if MOMENTUM:
        tl.store(pushes_grad + spot, of_push, mask=there)
    return of_weight, of_bias


@triton.jit
def leave_norm(weight_grad, bias_grad, of_weight, of_bias, place, d, V: tl.constexpr, NORM: tl.constexpr):
    """A chunk's gradients of the norm's weight and bias."""
    if NORM:
        tl.store(weight_grad + place * V + d, of_weight, mask=d < V)
        tl.store(bias_grad + place * V + d, of_bias, mask=d < V)


@triton.jit(do_not_specialize=["heads", "size"])
def map_kernel(
    k, v, writes, pushes, stays, speed, slows, weight, bias, kept, kept_moment, rows_grad, rows_moment_grad,
    k_grad, v_grad, writes_grad, pushes_grad, stays_grad, speed_grad, slows_grad, weight_grad, bias_grad, heads, size,
    K: tl.constexpr, V: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr, TILE: tl.constexpr,
    MOMENTUM: tl.constexpr, NORM: tl.constexpr, RESIDUAL: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Of a net of one map."""
    place = tl.program_id(0).to(tl.int64)
    row = place * (V * K)
    c = tl.arange(0, BLOCK_K)
    d = tl.arange(0, BLOCK_V)
    norm_weight, norm_bias = read_norm(weight, bias, place % heads, d, V, NORM)
    of_weight = tl.zeros([BLOCK_V], tl.float32)
    of_bias = of_weight
    leave_rates(kept, kept_moment, rows_grad, rows_moment_grad, stays_grad, speed_grad, slows_grad, place, V * K, MOMENTUM)
    for begin in range(0, size, TILE):
        index = begin + tl.arange(0, TILE)
        key = read_rows(k + place * size * K, index, size, c, K)
        value = read_rows(v + place * size * V, index, size, d, V)
        x = value
        if RESIDUAL:
            x = read_rows(k + place * size * K, index, size, d, K)
        raw = product(key, read_map(kept + row, c, d, K, V, 1, K), PRECISION)
        wrong = error(raw, x, value, norm_weight, norm_bias, (d < V)[None, :], V, NORM, RESIDUAL)
        amount = tl.load(writes + place * size + index, mask=index < size, other=0.0)[:, None]
        of_key = product(key, read_map(rows_grad + row, c, d, K, V, 1, K), PRECISION)
        of_write = -tl.sum(of_key * wrong, 1)
        of_push = of_write
        by_wrong = -amount * of_key
        by_key = -product(amount * wrong, read_map(rows_grad + row, d, c, V, K, K, 1), PRECISION)
        if MOMENTUM:
            amount = tl.load(pushes + place * size + index, mask=index < size, other=0.0)[:, None]
            of_key = product(key, read_map(rows_moment_grad + row, c, d, K, V, 1, K), PRECISION)
            of_push = -tl.sum(of_key * wrong, 1)
            by_wrong -= amount * of_key
            by_key -= product(amount * wrong, read_map(rows_moment_grad + row, d, c, V, K, K, 1), PRECISION)
        by_raw = error_back(by_wrong, raw, x, value, norm_weight, norm_bias, (d < V)[None, :], V, NORM, RESIDUAL)
        by_key += product(by_raw, read_map(kept + row, d, c, V, K, K, 1), PRECISION)
        of_weight, of_bias = leave_tokens(
            by_key, by_wrong, of_write, of_push, raw, x, value, k_grad, v_grad, writes_grad, pushes_grad, of_weight, of_bias,
            norm_weight, norm_bias, index, size, place, c, d, K, V, MOMENTUM, NORM, RESIDUAL,
        )  # fmt: skip
    leave_norm(weight_grad, bias_grad, of_weight, of_bias, place, d, V, NORM)


@triton.jit
def blame(
    key, wrong, amount, by_inner, by_wrong, by_key, hidden, inner, rows_grad, c, d, unit,
    K: tl.constexpr, V: tl.constexpr, HIDDEN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """What a block of hidden units adds to gradients of e, d and keys, and that of each token's amount."""
    of_inner = product(key, read_map(rows_grad, c, unit, K, HIDDEN, 1, K), PRECISION)
    of_hidden = product(hidden, read_map(rows_grad + HIDDEN * K, unit, d, HIDDEN, V, 1, HIDDEN), PRECISION)
    of_amount = -(tl.sum(of_inner * inner, 1) + tl.sum(of_hidden * wrong, 1))
    by_key -= product(amount * inner, read_map(rows_grad, unit, c, HIDDEN, K, K, 1), PRECISION)
    return by_inner - amount * of_inner, by_wrong - amount * of_hidden, by_key, of_amount


@triton.jit(do_not_specialize=["heads", "size"])
def maps_kernel(
    k, v, writes, pushes, stays, speed, slows, weight, bias, kept, kept_moment, rows_grad, rows_moment_grad,
    k_grad, v_grad, writes_grad, pushes_grad, stays_grad, speed_grad, slows_grad, weight_grad, bias_grad, raws, heads, size,
    K: tl.constexpr, V: tl.constexpr, HIDDEN: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr,
    BLOCK_H: tl.constexpr, TILE: tl.constexpr,
    MOMENTUM: tl.constexpr, NORM: tl.constexpr, RESIDUAL: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Of a net of two maps, some hidden units after the others: first for gradients of errors, then of what makes them."""
    place = tl.program_id(0).to(tl.int64)
    row = place * (HIDDEN * (K + V))
    second: tl.constexpr = HIDDEN * K
    c = tl.arange(0, BLOCK_K)
    d = tl.arange(0, BLOCK_V)
    norm_weight, norm_bias = read_norm(weight, bias, place % heads, d, V, NORM)
    of_weight = tl.zeros([BLOCK_V], tl.float32)
    of_bias = of_weight
    leave_rates(
        kept, kept_moment, rows_grad, rows_moment_grad, stays_grad, speed_grad, slows_grad, place, HIDDEN * (K + V), MOMENTUM
    )
    for begin in range(0, size, TILE):
        index = begin + tl.arange(0, TILE)
        key = read_rows(k + place * size * K, index, size, c, K)
        value = read_rows(v + place * size * V, index, size, d, V)
        x = value
        if RESIDUAL:
            x = read_rows(k + place * size * K, index, size, d, K)
        raw = read_rows(raws + place * size * V, index, size, d, V)
        wrong = error(raw, x, value, norm_weight, norm_bias, (d < V)[None, :], V, NORM, RESIDUAL)
        write = tl.load(writes + place * size + index, mask=index < size, other=0.0)[:, None]
        push = write
        if MOMENTUM:
            push = tl.load(pushes + place * size + index, mask=index < size, other=0.0)[:, None]
        by_wrong = tl.zeros([TILE, BLOCK_V], tl.float32)
        by_key = tl.zeros([TILE, BLOCK_K], tl.float32)
        of_write = tl.zeros([TILE], tl.float32)
        of_push = of_write
        for first in range(0, HIDDEN, BLOCK_H):
            unit = first + tl.arange(0, BLOCK_H)
            hidden, slope, _ = gelu(product(key, read_map(kept + row, c, unit, K, HIDDEN, 1, K), PRECISION))
            inner = product(wrong, read_map(kept + row + second, d, unit, V, HIDDEN, HIDDEN, 1), PRECISION) * slope
            by_inner, by_wrong, by_key, more = blame(
                key, wrong, write, tl.zeros_like(inner), by_wrong, by_key, hidden, inner, rows_grad + row, c, d, unit,
                K, V, HIDDEN, PRECISION,
            )  # fmt: skip
            of_write += more
            if MOMENTUM:
                by_inner, by_wrong, by_key, more = blame(
                    key, wrong, push, by_inner, by_wrong, by_key, hidden, inner, rows_moment_grad + row, c, d, unit,
                    K, V, HIDDEN, PRECISION,
                )  # fmt: skip
                of_push += more
            of_map = read_map(kept + row + second, unit, d, HIDDEN, V, 1, HIDDEN)
            by_wrong += product(by_inner * slope, of_map, PRECISION)
        by_raw = error_back(by_wrong, raw, x, value, norm_weight, norm_bias, (d < V)[None, :], V, NORM, RESIDUAL)
        for first in range(0, HIDDEN, BLOCK_H):
            unit = first + tl.arange(0, BLOCK_H)
            of_map = read_map(kept + row + second, d, unit, V, HIDDEN, HIDDEN, 1)
            _, slope, bend = gelu(product(key, read_map(kept + row, c, unit, K, HIDDEN, 1, K), PRECISION))
            outer = product(wrong, of_map, PRECISION)
            by_hidden = product(by_raw, of_map, PRECISION)
            by_inner = -write * product(key, read_map(rows_grad + row, c, unit, K, HIDDEN, 1, K), PRECISION)
            of_map = read_map(rows_grad + row + second, d, unit, V, HIDDEN, HIDDEN, 1)
            by_hidden -= product(write * wrong, of_map, PRECISION)
            if MOMENTUM:
                by_inner -= push * product(key, read_map(rows_moment_grad + row, c, unit, K, HIDDEN, 1, K), PRECISION)
                of_map = read_map(rows_moment_grad + row + second, d, unit, V, HIDDEN, HIDDEN, 1)
                by_hidden -= product(push * wrong, of_map, PRECISION)
            by_z = by_hidden * slope + by_inner * outer * bend
            by_key += product(by_z, read_map(kept + row, unit, c, HIDDEN, K, K, 1), PRECISION)
        of_weight, of_bias = leave_tokens(
            by_key, by_wrong, of_write, of_push, raw, x, value, k_grad, v_grad, writes_grad, pushes_grad, of_weight, of_bias,
            norm_weight, norm_bias, index, size, place, c, d, K, V, MOMENTUM, NORM, RESIDUAL,
        )  # fmt: skip
    leave_norm(weight_grad, bias_grad, of_weight, of_bias, place, d, V, NORM)


def gradients_of(kernel, given, known, more, key, compiled):
    """Gradients of `given.tensors`, or None where there are none; known: four sets of nets [R, heads, M]; more: tensors."""
    k = given.k
    found = [None if x is None else torch.empty_like(x) for x in given.tensors]
    if found[-1] is not None:
        found[-2:] = (k.new_empty(*k.shape[:2], found[-1].shape[-1]) for _ in range(2))
    tensors = (*given.tensors, *known, *found, *more)
    tensors = tuple(k if x is None else x for x in tensors)
    run(kernel, k.shape[0] * k.shape[1], tensors, k.shape[1:3], 0, key, lambda: compiled)
    return found if found[-1] is None else [*found[:-2], *(x.sum(0) for x in found[-2:])]
