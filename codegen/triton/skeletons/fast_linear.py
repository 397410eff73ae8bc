"""Fast weights of one map, chunk by chunk: one program for a sequence, a head and, without a norm, a block of value channels.

A program carries its part of weights W and momentum S, turned, in fp32 through the chunks of a group:

    d = gradient of |M(k) - v|^2 by W k at the W that the chunk began with
    W <- stays W + speed S - K^T (writes d);  S <- slows S - K^T (pushes d)

and leaves both as they were before each chunk. The way back carries their gradients from the last chunk to the first, and
leaves those of what was known after each chunk; from these come all others, of single chunks (fast_lessons.py).

Legend: R rows, the chunks of `size` tokens of several sequences, first ones before second ones; sequences with more chunks
stand first. heads; M = V K numbers of a map.
"""

import torch
import triton
import triton.language as tl

from attnc.codegen.triton.skeletons.fast_lessons import gradients_of, map_kernel
from attnc.codegen.triton.skeletons.fast_parts import (
    architecture,
    error,
    error_back,
    product,
    read_norm,
    read_rows,
    read_turned,
    tile_of,
)
from attnc.codegen.triton.skeletons.fast_reading import read_kernel
from attnc.codegen.triton.skeletons.fast_rows import share, shared
from attnc.codegen.triton.skeletons.scan_parts import run

KEY_WIDTH = 64
VALUE_WIDTH = 64
MOMENTUM = False
NORM = False  # a layer norm of each head
RESIDUAL = False  # the net's input is added
WEIGHT_NORM = tl.constexpr(False)  # before a chunk writes, rows get the norms that they began with
PRODUCTS = {2: "tf32", 4: "ieee"}  # bytes of an element of q, k and v: how products round
BLOCKS = {  # (architecture, bytes of an element): tokens of a tile, value channels of a block, warps, pipeline stages
    ("any", 2): (16, 16, 4, 1),
    ("any", 4): (16, 16, 4, 1),
}

LONGEST = 64  # tokens of the chunks that `read` takes

KNOWN = {}  # device -> its row of BLOCKS
READY = {}  # key of `run` -> what was compiled, and its compile-time arguments


@triton.jit
def lesson(
    state, learned, pushed, key, value, x, writes, pushes, index, size, weight, bias, inside,
    V: tl.constexpr, MOMENTUM: tl.constexpr, NORM: tl.constexpr, RESIDUAL: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """With the tokens of a tile: what weights and momentum lose by them, whose gradients are taken at `state`."""
    wrong = error(product(key, state, PRECISION), x, value, weight, bias, inside, V, NORM, RESIDUAL)
    amount = tl.load(writes + index, mask=index < size, other=0.0)[:, None]
    learned += product(tl.trans(key), amount * wrong, PRECISION)
    if MOMENTUM:
        amount = tl.load(pushes + index, mask=index < size, other=0.0)[:, None]
        pushed += product(tl.trans(key), amount * wrong, PRECISION)
    return learned, pushed


@triton.jit(do_not_specialize=["heads", "size"])
def sweep_kernel(
    goals,  # WEIGHT_NORM
    k, v, writes, pushes, stays, speed, slows, weight, bias, known, known_moment, kept, kept_moment, after, after_moment,
    begins, chunks, heads, size,
    K: tl.constexpr, V: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr, TILE: tl.constexpr, ONE: tl.constexpr,
    MOMENTUM: tl.constexpr, NORM: tl.constexpr, RESIDUAL: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    blocks: tl.constexpr = (V + BLOCK_V - 1) // BLOCK_V
    program = tl.program_id(0)
    block = program % blocks
    head = program // blocks % heads
    rank = program // (blocks * heads)
    c = tl.arange(0, BLOCK_K)
    d = block * BLOCK_V + tl.arange(0, BLOCK_V)
    inside = (d < V)[None, :]
    tile = d[None, :] * K + c[:, None]
    there = (c < K)[:, None] & inside
    own = (rank * heads + head).to(tl.int64) * (V * K) + tile
    state = tl.load(known + own, mask=there, other=0.0)
    moment = state
    if MOMENTUM:
        moment = tl.load(known_moment + own, mask=there, other=0.0)
    of_weight, of_bias = read_norm(weight, bias, head, d, V, NORM)
    count = tl.load(chunks + rank)
    place = (tl.load(begins) + rank) * heads + head  # int64
    following = tl.load(begins + tl.minimum(1, count - 1), mask=count > 0, other=0)
    index = tl.arange(0, TILE)
    if ONE:  # a tile is read while the one before it is learned
        known_k = read_rows(k + place * size * K, index, tl.where(count > 0, size, 0), c, K)
        known_v = read_rows(v + place * size * V, index, tl.where(count > 0, size, 0), d, V)
        known_x = known_v
        if RESIDUAL:
            known_x = read_rows(k + place * size * K, index, tl.where(count > 0, size, 0), d, K)
    for chunk in range(count):
        here = place
        place = (following + rank) * heads + head
        following = tl.load(begins + tl.minimum(chunk + 2, count - 1))
        to = here * (V * K) + tile
        tl.store(kept + to, state, mask=there)
        if MOMENTUM:
            tl.store(kept_moment + to, moment, mask=there)
        if WEIGHT_NORM:
            state *= share(tl.sum(state * state, 0), goals + here * V, d, V)[None, :]
        learned = tl.zeros_like(state)  # summed by itself: tiles subtracted from what is larger would round there one by one
        pushed = learned
        if ONE:
            key = known_k
            value = known_v
            x = known_x
            known_k = read_rows(k + place * size * K, index, size, c, K)
            known_v = read_rows(v + place * size * V, index, size, d, V)
            known_x = known_v
            if RESIDUAL:
                known_x = read_rows(k + place * size * K, index, size, d, K)
            learned, pushed = lesson(
                state, learned, pushed, key, value, x, writes + here * size, pushes + here * size, index, size,
                of_weight, of_bias, inside, V, MOMENTUM, NORM, RESIDUAL, PRECISION,
            )  # fmt: skip
        else:
            for begin in range(0, size, TILE):
                spots = begin + index
                key = read_rows(k + here * size * K, spots, size, c, K)
                value = read_rows(v + here * size * V, spots, size, d, V)
                x = value
                if RESIDUAL:
                    x = read_rows(k + here * size * K, spots, size, d, K)
                learned, pushed = lesson(
                    state, learned, pushed, key, value, x, writes + here * size, pushes + here * size, spots, size,
                    of_weight, of_bias, inside, V, MOMENTUM, NORM, RESIDUAL, PRECISION,
                )  # fmt: skip
        state *= tl.load(stays + here)
        if MOMENTUM:
            state += moment * tl.load(speed + here)
            moment = moment * tl.load(slows + here) - pushed
        state -= learned
    tl.store(after + own, state, mask=there)
    if MOMENTUM:
        tl.store(after_moment + own, moment, mask=there)


@triton.jit(do_not_specialize=["heads", "size"])
def back_kernel(
    row_shares, pulls, dots,  # WEIGHT_NORM
    k, v, writes, pushes, stays, speed, slows, weight, bias, kept, kept_grad, kept_moment_grad, after_grad, after_moment_grad,
    rows_grad, rows_moment_grad, known_grad, known_moment_grad, begins, chunks, heads, size,
    K: tl.constexpr, V: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr, TILE: tl.constexpr,
    READ: tl.constexpr, MOMENTUM: tl.constexpr, NORM: tl.constexpr, RESIDUAL: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    blocks: tl.constexpr = (V + BLOCK_V - 1) // BLOCK_V
    program = tl.program_id(0)
    block = program % blocks
    head = program // blocks % heads
    rank = program // (blocks * heads)
    c = tl.arange(0, BLOCK_K)
    d = block * BLOCK_V + tl.arange(0, BLOCK_V)
    tile = d[None, :] * K + c[:, None]
    inside = (c < K)[:, None] & (d < V)[None, :]
    own = (rank * heads + head).to(tl.int64) * (V * K) + tile
    by = tl.load(after_grad + own, mask=inside, other=0.0)
    by_moment = by
    if MOMENTUM:
        by_moment = tl.load(after_moment_grad + own, mask=inside, other=0.0)
    of_weight, of_bias = read_norm(weight, bias, head, d, V, NORM)
    own_chunks = tl.load(chunks + rank)
    for step in range(own_chunks):
        place = (tl.load(begins + (own_chunks - 1 - step)) + rank) * heads + head  # int64
        to = place * (V * K) + tile
        tl.store(rows_grad + to, by, mask=inside)
        state = tl.load(kept + to, mask=inside, other=0.0)
        then_moment = by_moment
        if MOMENTUM:
            tl.store(rows_moment_grad + to, by_moment, mask=inside)
            then_moment = by * tl.load(speed + place) + by_moment * tl.load(slows + place)
            if READ:
                then_moment += tl.load(kept_moment_grad + to, mask=inside, other=0.0)
        gained = tl.zeros_like(by)  # a product summed into what is larger would round there token by token
        for begin in range(0, size, TILE):
            index = begin + tl.arange(0, TILE)
            key = read_rows(k + place * size * K, index, size, c, K)
            amount = tl.load(writes + place * size + index, mask=index < size, other=0.0)[:, None]
            by_wrong = -amount * product(key, by, PRECISION)
            if MOMENTUM:
                amount = tl.load(pushes + place * size + index, mask=index < size, other=0.0)[:, None]
                by_wrong -= amount * product(key, by_moment, PRECISION)
            by_raw = 2.0 * by_wrong
            if NORM:
                value = read_rows(v + place * size * V, index, size, d, V)
                x = value
                if RESIDUAL:
                    x = read_rows(k + place * size * K, index, size, d, K)
                raw = product(key, state, PRECISION)
                by_raw = error_back(by_wrong, raw, x, value, of_weight, of_bias, (d < V)[None, :], V, NORM, RESIDUAL)
            gained += product(read_turned(k + place * size * K, index, size, c, K), by_raw, PRECISION)
        if WEIGHT_NORM:
            by = by * tl.load(stays + place) + gained
            row = place * V
            of_row, pull = shared(row_shares + row, pulls + row, dots + row, tl.sum(by * state, 0), d, True, V)
            by = of_row[None, :] * (by - state * pull[None, :]) + tl.load(kept_grad + to, mask=inside, other=0.0)
        else:
            by = by * tl.load(stays + place) + tl.load(kept_grad + to, mask=inside, other=0.0) + gained
        by_moment = then_moment
    tl.store(known_grad + own, by, mask=inside)
    if MOMENTUM:
        tl.store(known_moment_grad + own, by_moment, mask=inside)


def settings(size, row, element_size, kernel):
    """A kernel's compile-time arguments for chunks of `size` tokens."""
    tokens, block, warps, stages = row
    wide = max(16, triton.next_power_of_2(VALUE_WIDTH))
    found = {
        "K": KEY_WIDTH,
        "V": VALUE_WIDTH,
        "BLOCK_K": max(16, triton.next_power_of_2(KEY_WIDTH)),
        "BLOCK_V": wide if NORM or kernel in (map_kernel, read_kernel) else min(block, wide),
        "TILE": tile_of(size, tokens),
        "MOMENTUM": MOMENTUM,
        "NORM": NORM,
        "RESIDUAL": RESIDUAL,
        "PRECISION": PRODUCTS[element_size],
        "num_warps": warps,
        "num_stages": stages,
        "enable_fp_fusion": True,
    }
    if kernel is read_kernel:
        return {**found, "TILE": tile_of(size, LONGEST), "DECAYS": True}
    if kernel is map_kernel:
        return found
    return found | ({"ONE": size <= found["TILE"]} if kernel is sweep_kernel else {"READ": False})


def variants(architecture, element_size):
    """Every kernel that `sweep`, `go_back` and `lessons` may launch, with its compile-time arguments."""
    row = BLOCKS[architecture, element_size]
    tiles = dict.fromkeys(tile_of(size, row[0]) for size in (16, 32, 64))
    kernels = sweep_kernel, back_kernel, map_kernel, read_kernel
    return tuple((kernel, settings(size, row, element_size, kernel)) for kernel in kernels for size in tiles)


def arguments(kernel, given, blocks):
    """(tensors of the chunks, compile-time arguments, programs)."""
    rows = blocks or BLOCKS[architecture(given.k.device), given.element_size]
    compiled = settings(given.k.shape[2], rows, given.element_size, kernel)
    tensors = tuple(given.k if x is None else x for x in given.tensors)
    return tensors, compiled, triton.cdiv(VALUE_WIDTH, compiled["BLOCK_V"]) * given.k.shape[1]


def launch(kernel, programs, tensors, given, compiled):
    """One launch."""
    own = (compiled.get(name) for name in ("TILE", "ONE", "READ", "BLOCK_V", "PRECISION", "num_warps", "num_stages"))
    run(kernel, programs, tensors, given.k.shape[1:3], 0, (kernel, given.k.device, *own), lambda: compiled)


def sweep(given, known, known_moment, *, blocks=None):
    """What sequences know before each chunk [R, heads, M] and after the last [S, heads, M]; each with momentum, or None.

    given: the chunks (runtime/fast_kernels.py); known, known_moment [S, heads, M], the latter None without momentum;
    blocks = (tokens, value channels, warps, stages) instead of the table's. There is nothing else to keep: the last is None.
    """
    tensors, compiled, programs = arguments(sweep_kernel, given, blocks)
    kept = known.new_empty(len(given.k), *known.shape[1:])
    after = torch.empty_like(known)
    kept_moment, after_moment = (torch.empty_like(x) if MOMENTUM else kept for x in (kept, known))
    moment = known_moment if MOMENTUM else known
    tensors = (*tensors, known, moment, kept, kept_moment, after, after_moment, given.begins, given.chunks)
    if WEIGHT_NORM:
        tensors = (*given.rows, *tensors)
    launch(sweep_kernel, programs * len(known), tensors, given, compiled)
    return kept, kept_moment if MOMENTUM else None, after, after_moment if MOMENTUM else None, None


def go_back(given, kept, raw, kept_grad, kept_moment_grad, after_grad, after_moment_grad, *, blocks=None):
    """Gradients of what is known after each chunk [R, heads, M] and of what was known before the first [S, heads, M].

    kept: what sequences knew before each chunk; raw is None here; the others: gradients of the results of `sweep`, of which
    kept_moment_grad may be None.
    """
    tensors, compiled, programs = arguments(back_kernel, given, blocks)
    rows, known = torch.empty_like(kept), torch.empty_like(after_grad)
    rows_moment, known_moment = (torch.empty_like(x) if MOMENTUM else kept for x in (rows, known))
    compiled |= {"READ": kept_moment_grad is not None}
    held = tuple(kept if x is None else x for x in (kept_moment_grad, after_grad, after_moment_grad))
    tensors = (*tensors, kept, kept_grad, *held, rows, rows_moment, known, known_moment, given.begins, given.chunks)
    if WEIGHT_NORM:
        tensors = (*given.rows, *tensors)
    launch(back_kernel, programs * len(known), tensors, given, compiled)
    return rows, rows_moment if MOMENTUM else None, known, known_moment if MOMENTUM else None


def lessons(given, kept, kept_moment, raw, rows, rows_moment, *, blocks=None):
    """Gradients of `given.tensors`, or None where there are none.

    kept, kept_moment: what sequences knew before each chunk; raw is None here; rows, rows_moment: gradients of what was known
    after each.
    """
    row = blocks or BLOCKS[architecture(given.k.device), given.element_size]
    compiled = settings(given.k.shape[2], row, given.element_size, map_kernel)
    known = (kept, kept_moment, rows, rows_moment) if MOMENTUM else (kept, kept, rows, rows)
    key = map_kernel, given.k.device, row, compiled["TILE"], compiled["PRECISION"]
    return gradients_of(map_kernel, given, known, (), key, compiled)


def read(q, k, v, reach, left, speed, norm, kept, kept_moment, element_size, *, blocks=None):
    """What tokens read after their own writes, o [R, heads, size, V]; chunks have at most LONGEST tokens.

    q, k [R, heads, size, K], v [R, heads, size, V]; reach [R, heads, size, size], left and speed [R, heads, size] or None;
    norm: weight and bias [heads, V], or None each; kept, kept_moment [R, heads, M]: what is known before each chunk.
    """
    row = blocks or BLOCKS[architecture(k.device), element_size]
    compiled = {**settings(k.shape[2], row, element_size, read_kernel), "DECAYS": left is not None}
    o = torch.empty_like(v)
    tensors = (q, k, v, reach, left, speed, *norm, kept, kept_moment, o)
    tensors = tuple(k if x is None else x for x in tensors)
    key = read_kernel, k.device, row, compiled["TILE"], compiled["DECAYS"], compiled["PRECISION"]
    run(read_kernel, k.shape[0] * k.shape[1], tensors, k.shape[1:3], 0, key, lambda: compiled)
    return o
