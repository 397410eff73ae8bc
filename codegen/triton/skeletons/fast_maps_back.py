"""The way back through chunks of fast weights of two maps, by blocks of hidden units that wait for each other (fast_maps.py).

Legend: as there.
"""

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
    write_map,
)
from attnc.codegen.triton.skeletons.fast_rows import met, shared

WEIGHT_NORM = tl.constexpr(False)  # as there


@triton.jit
def added(parts, index, size, channel, V: tl.constexpr, PARTS: tl.constexpr):
    """What all blocks of hidden units said of tokens, in their order; other programs wrote it."""
    mask = (index < size)[:, None] & (channel < V)[None, :]
    place = index[:, None] * V + channel[None, :]
    total = tl.load(parts + place, mask=mask, other=0.0, cache_modifier=".cg")
    for part in range(1, PARTS):
        total += tl.load(parts + part * size * V + place, mask=mask, other=0.0, cache_modifier=".cg")
    return total


@triton.jit
def wait(counter, goal):
    """Until `goal` programs have come, each with all that it has written."""
    tl.debug_barrier()
    come = tl.atomic_add(counter, 1, sem="acq_rel") + 1
    while come < goal:
        come = tl.atomic_add(counter, 0, sem="acquire")


@triton.jit
def read_lesson(k, v, index, size, c, d, K: tl.constexpr, V: tl.constexpr, RESIDUAL: tl.constexpr):
    """Keys and values of a tile, and what a net adds to its outputs."""
    key = read_rows(k, index, size, c, K)
    value = read_rows(v, index, size, d, V)
    x = value
    if RESIDUAL:
        x = read_rows(k, index, size, d, K)
    return key, value, x


@triton.jit
def say(here, found, block, index, size, d, V: tl.constexpr):
    """A block leaves its part of a tile's sums."""
    to = here + (block * size + index[:, None]) * V + d[None, :]
    tl.store(to, found, mask=(index < size)[:, None] & (d < V)[None, :])


@triton.jit
def say_back(
    here, raws, k, v, kept, rows_grad, rows_moment_grad, writes, pushes, index, size, block, c, d, unit, weight, bias,
    K: tl.constexpr, V: tl.constexpr, HIDDEN: tl.constexpr,
    MOMENTUM: tl.constexpr, NORM: tl.constexpr, RESIDUAL: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Leaves a block's part of the gradient of d; gives what the map inwards makes of keys, d W2, and the gradient of e."""
    second: tl.constexpr = HIDDEN * K
    key, value, x = read_lesson(k, v, index, size, c, d, K, V, RESIDUAL)
    raw = read_rows(raws, index, size, d, V)
    wrong = error(raw, x, value, weight, bias, (d < V)[None, :], V, NORM, RESIDUAL)
    z = product(key, read_map(kept, c, unit, K, HIDDEN, 1, K), PRECISION)
    hidden, slope, _ = gelu(z)
    outer = product(wrong, read_map(kept + second, d, unit, V, HIDDEN, HIDDEN, 1), PRECISION)
    amount = tl.load(writes + index, mask=index < size, other=0.0)[:, None]
    by_inner = -amount * product(key, read_map(rows_grad, c, unit, K, HIDDEN, 1, K), PRECISION)
    by_wrong = -amount * product(hidden, read_map(rows_grad + second, unit, d, HIDDEN, V, 1, HIDDEN), PRECISION)
    if MOMENTUM:
        amount = tl.load(pushes + index, mask=index < size, other=0.0)[:, None]
        by_inner -= amount * product(key, read_map(rows_moment_grad, c, unit, K, HIDDEN, 1, K), PRECISION)
        of_map = read_map(rows_moment_grad + second, unit, d, HIDDEN, V, 1, HIDDEN)
        by_wrong -= amount * product(hidden, of_map, PRECISION)
    by_wrong += product(by_inner * slope, read_map(kept + second, unit, d, HIDDEN, V, 1, HIDDEN), PRECISION)
    say(here, by_wrong, block, index, size, d, V)
    return z, outer, by_inner


@triton.jit
def learn_back(
    gained1, gained2, here, raws, k, v, z, outer, by_inner, kept, rows_grad, rows_moment_grad, writes, pushes, index, size,
    c, d, unit, weight, bias, K: tl.constexpr, V: tl.constexpr, HIDDEN: tl.constexpr, PARTS: tl.constexpr,
    MOMENTUM: tl.constexpr, NORM: tl.constexpr, RESIDUAL: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """What a tile adds to gradients of a block's part of both maps."""
    second: tl.constexpr = HIDDEN * K
    key, value, x = read_lesson(k, v, index, size, c, d, K, V, RESIDUAL)
    raw = read_rows(raws, index, size, d, V)
    wrong = error(raw, x, value, weight, bias, (d < V)[None, :], V, NORM, RESIDUAL)
    by_wrong = added(here, index, size, d, V, PARTS)
    by_raw = error_back(by_wrong, raw, x, value, weight, bias, (d < V)[None, :], V, NORM, RESIDUAL)
    hidden, slope, bend = gelu(z)
    amount = tl.load(writes + index, mask=index < size, other=0.0)[:, None]
    by_hidden = product(by_raw, read_map(kept + second, d, unit, V, HIDDEN, HIDDEN, 1), PRECISION)
    of_map = read_map(rows_grad + second, d, unit, V, HIDDEN, HIDDEN, 1)
    by_hidden -= product(amount * wrong, of_map, PRECISION)
    if MOMENTUM:
        amount = tl.load(pushes + index, mask=index < size, other=0.0)[:, None]
        of_map = read_map(rows_moment_grad + second, d, unit, V, HIDDEN, HIDDEN, 1)
        by_hidden -= product(amount * wrong, of_map, PRECISION)
    gained1 += product(tl.trans(key), by_hidden * slope + by_inner * outer * bend, PRECISION)
    gained2 += product(tl.trans(wrong), by_inner * slope, PRECISION)
    gained2 += product(tl.trans(by_raw), hidden, PRECISION)
    return gained1, gained2


@triton.jit(do_not_specialize=["first", "heads", "size"])
def back_kernel(
    row_shares, pulls, dots, squares, meets,  # WEIGHT_NORM
    k, v, writes, pushes, stays, speed, slows, weight, bias, kept, raws, kept_grad, kept_moment_grad, after_grad,
    after_moment_grad, rows_grad, rows_moment_grad, known_grad, known_moment_grad, parts, within, counters, begins, chunks,
    first, heads, size,
    K: tl.constexpr, V: tl.constexpr, HIDDEN: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr,
    BLOCK_H: tl.constexpr, TILE: tl.constexpr, ONE: tl.constexpr,
    READ: tl.constexpr, MOMENTUM: tl.constexpr, NORM: tl.constexpr, RESIDUAL: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    blocks: tl.constexpr = (HIDDEN + BLOCK_H - 1) // BLOCK_H
    numbers: tl.constexpr = HIDDEN * (K + V)
    second: tl.constexpr = HIDDEN * K
    block = tl.program_id(0) % blocks
    pair = first + tl.program_id(0) // blocks
    head = pair % heads
    rank = pair // heads
    c = tl.arange(0, BLOCK_K)
    d = tl.arange(0, BLOCK_V)
    unit = block * BLOCK_H + tl.arange(0, BLOCK_H)
    own = pair.to(tl.int64) * numbers
    by1 = read_map(after_grad + own, c, unit, K, HIDDEN, 1, K)
    by2 = read_map(after_grad + own + second, d, unit, V, HIDDEN, HIDDEN, 1)
    moment1 = by1
    moment2 = by2
    if MOMENTUM:
        moment1 = read_map(after_moment_grad + own, c, unit, K, HIDDEN, 1, K)
        moment2 = read_map(after_moment_grad + own + second, d, unit, V, HIDDEN, HIDDEN, 1)
    of_weight, of_bias = read_norm(weight, bias, head, d, V, NORM)
    said = parts + pair.to(tl.int64) * (2 * blocks * size * V)
    apart = (size * HIDDEN).to(tl.int64)
    inner = within + pair.to(tl.int64) * (3 * apart)
    own_chunks = tl.load(chunks + rank)
    for step in range(own_chunks):
        place = (tl.load(begins + (own_chunks - 1 - step)) + rank) * heads + head  # int64
        row = place * numbers
        index = tl.arange(0, TILE)
        keys = k + place * size * K
        values = v + place * size * V
        write = writes + place * size
        push = pushes + place * size
        raw = raws + place * size * V
        write_map(rows_grad + row, c, unit, by1, True, K, HIDDEN, 1, K)
        write_map(rows_grad + row + second, d, unit, by2, True, V, HIDDEN, HIDDEN, 1)
        if MOMENTUM:
            write_map(rows_moment_grad + row, c, unit, moment1, True, K, HIDDEN, 1, K)
            write_map(rows_moment_grad + row + second, d, unit, moment2, True, V, HIDDEN, HIDDEN, 1)
        tl.debug_barrier()
        here = said + step % 2 * (blocks * size * V)
        if ONE:  # what a block finds is kept while the others are awaited
            z, outer, by_inner = say_back(
                here, raw, keys, values, kept + row, rows_grad + row, rows_moment_grad + row, write, push, index, size, block,
                c, d, unit, of_weight, of_bias, K, V, HIDDEN, MOMENTUM, NORM, RESIDUAL, PRECISION,
            )  # fmt: skip
        else:
            for begin in range(0, size, TILE):
                spots = begin + index
                found, outwards, by_inwards = say_back(
                    here, raw, keys, values, kept + row, rows_grad + row, rows_moment_grad + row, write, push, spots, size,
                    block, c, d, unit, of_weight, of_bias, K, V, HIDDEN, MOMENTUM, NORM, RESIDUAL, PRECISION,
                )  # fmt: skip
                to = inner + spots[:, None] * HIDDEN + unit[None, :]
                mask = (spots < size)[:, None] & (unit < HIDDEN)[None, :]
                tl.store(to, found, mask=mask)
                tl.store(to + apart, outwards, mask=mask)
                tl.store(to + 2 * apart, by_inwards, mask=mask)
        wait(counters + pair, blocks * (step + 1))
        gained1 = tl.zeros(
            [BLOCK_K, BLOCK_H], tl.float32
        )  # a product summed into what is larger would round there token by token
        gained2 = tl.zeros([BLOCK_V, BLOCK_H], tl.float32)
        if ONE:
            gained1, gained2 = learn_back(
                gained1, gained2, here, raw, keys, values, z, outer, by_inner, kept + row, rows_grad + row,
                rows_moment_grad + row, write, push, index, size, c, d, unit, of_weight, of_bias, K, V, HIDDEN, blocks,
                MOMENTUM, NORM, RESIDUAL, PRECISION,
            )  # fmt: skip
        else:
            for begin in range(0, size, TILE):
                spots = begin + index
                found = read_rows(inner, spots, size, unit, HIDDEN)
                outwards = read_rows(inner + apart, spots, size, unit, HIDDEN)
                by_inwards = read_rows(inner + 2 * apart, spots, size, unit, HIDDEN)
                gained1, gained2 = learn_back(
                    gained1, gained2, here, raw, keys, values, found, outwards, by_inwards, kept + row, rows_grad + row,
                    rows_moment_grad + row, write, push, spots, size, c, d, unit, of_weight, of_bias, K, V, HIDDEN, blocks,
                    MOMENTUM, NORM, RESIDUAL, PRECISION,
                )  # fmt: skip
        by1 = read_map(rows_grad + row, c, unit, K, HIDDEN, 1, K)
        by2 = read_map(rows_grad + row + second, d, unit, V, HIDDEN, HIDDEN, 1)
        if MOMENTUM:
            moment1 = read_map(rows_moment_grad + row, c, unit, K, HIDDEN, 1, K) * tl.load(slows + place)
            moment2 = read_map(rows_moment_grad + row + second, d, unit, V, HIDDEN, HIDDEN, 1) * tl.load(slows + place)
            moment1 += by1 * tl.load(speed + place)
            moment2 += by2 * tl.load(speed + place)
            if READ:
                moment1 += read_map(kept_moment_grad + row, c, unit, K, HIDDEN, 1, K)
                moment2 += read_map(kept_moment_grad + row + second, d, unit, V, HIDDEN, HIDDEN, 1)
        if WEIGHT_NORM:
            by1 = by1 * tl.load(stays + place) + gained1
            by2 = by2 * tl.load(stays + place) + gained2
            rows = place * (HIDDEN + V)
            w1 = read_map(kept + row, c, unit, K, HIDDEN, 1, K)
            w2 = read_map(kept + row + second, d, unit, V, HIDDEN, HIDDEN, 1)
            tl.store(squares + (pair * blocks + block) * V + d, tl.sum(by2 * w2, 1), mask=d < V)
            dot = tl.sum(by1 * w1, 0)
            of_row, pull = shared(row_shares + rows, pulls + rows, dots + rows, dot, unit, True, HIDDEN)
            by1 = of_row[None, :] * (by1 - w1 * pull[None, :]) + read_map(kept_grad + row, c, unit, K, HIDDEN, 1, K)
            wait(meets + pair, blocks * (step + 1))
            dot = met(squares + pair * blocks * V, d, V, blocks)
            rows += HIDDEN
            of_row, pull = shared(row_shares + rows, pulls + rows, dots + rows, dot, d, block == 0, V)
            by2 = of_row[:, None] * (by2 - w2 * pull[:, None])
            by2 += read_map(kept_grad + row + second, d, unit, V, HIDDEN, HIDDEN, 1)
        else:
            by1 = by1 * tl.load(stays + place) + read_map(kept_grad + row, c, unit, K, HIDDEN, 1, K) + gained1
            by2 = by2 * tl.load(stays + place) + read_map(kept_grad + row + second, d, unit, V, HIDDEN, HIDDEN, 1) + gained2
    write_map(known_grad + own, c, unit, by1, True, K, HIDDEN, 1, K)
    write_map(known_grad + own + second, d, unit, by2, True, V, HIDDEN, HIDDEN, 1)
    if MOMENTUM:
        write_map(known_moment_grad + own, c, unit, moment1, True, K, HIDDEN, 1, K)
        write_map(known_moment_grad + own + second, d, unit, moment2, True, V, HIDDEN, HIDDEN, 1)
