"""Single steps of fast weights, one program for a sequence and a head. For decoding.

A call takes two launches. The first returns what nets make of queries. The second comes at the call's end: it keeps the token
until its chunk is whole, then changes weights W and momentum S where they lie. Where tokens read after their own write, the
first one reads weights that have learned the chunk so far. Which tokens wait is read on the device, so that a CUDA graph of a
step stays right.

A net is maps into `unit`s and one out of them; of one map, units are the channels of keys. A program takes a block of units
after the other.

Legend: S sequences of at most one new token; heads; chunks of `size` tokens; INTO, UP, OUT the maps [heads, outputs, inputs].
"""

import torch
import triton
import triton.language as tl

from attnc.codegen.triton.skeletons.fast_parts import (
    architecture,
    error,
    gated,
    gelu,
    product,
    read_map,
    read_norm,
    tile_of,
    write_map,
)
from attnc.codegen.triton.skeletons.fast_steps import (
    keep_token,
    leave_amounts,
    leave_answer,
    read_known,
    read_waiting,
    row_norms,
)
from attnc.codegen.triton.skeletons.scan_parts import bits, run

KEY_WIDTH = 64
VALUE_WIDTH = 64
UNITS = 256  # the width inside; of one map that of keys
MAPS = 2  # 1: the one map; 2: with GELU inside; 3: gate, up and down
NORM = False  # a layer norm of each head
RESIDUAL = False  # the net's input is added
AFTER_WRITE = False  # a token reads after its own write
WEIGHT_NORM = False  # before a chunk writes, rows get the norms that they began with
RATES = ("token", "none", "none")  # lr, momentum, decay: a gate of each token, a number of each head, or none
PRODUCTS = {2: "tf32", 4: "ieee"}  # bytes of an element of q, k and v: how products round
BLOCKS = {  # (architecture, bytes of an element): tokens of a tile, units of a block, warps, pipeline stages
    ("any", 2): (16, 16, 4, 1),
    ("any", 4): (16, 16, 4, 1),
}

KNOWN = {}  # device -> its row of BLOCKS
READY = {}  # key of `run` -> what was compiled, and its compile-time arguments


@triton.jit
def begun(state, start, fresh, c, unit, K: tl.constexpr, UNITS: tl.constexpr, WEIGHT_NORM: tl.constexpr):
    """A block [K, UNITS] of a map into units, at which a chunk's gradients are taken."""
    known = read_known(state, start, fresh, c, unit, K, UNITS, 1, K)
    if WEIGHT_NORM:
        first = read_map(start, c, unit, K, UNITS, 1, K).to(tl.float32)
        least = tl.maximum(tl.sqrt_rn(tl.sum(known * known, 0)), 1.1754943508222875e-38)
        known *= tl.div_rn(tl.sqrt_rn(tl.sum(first * first, 0)), least)[None, :]  # rounded once: each chunk multiplies by it
    return known


@triton.jit
def inside_of(key, into, up, PRECISION: tl.constexpr, MAPS: tl.constexpr):
    """Units [TILE, UNITS] and their derivatives by what the maps into them give."""
    found = product(key, into, PRECISION)
    if MAPS == 3:
        hidden, slope, slope_up = gated(found, product(key, up, PRECISION))
    else:
        hidden, slope, slope_up = gelu(found)
        slope_up = slope
    return hidden, slope, slope_up


@triton.jit
def one_inside(x, into, up, MAPS: tl.constexpr):
    """Units of one token."""
    found = tl.sum(x[:, None] * into, 0)
    if MAPS == 3:
        hidden, _, _ = gated(found, tl.sum(x[:, None] * up, 0))
    else:
        hidden, _, _ = gelu(found)
    return hidden


@triton.jit
def ask(
    x, q, into, up, out, into_start, up_start, out_start, fresh,
    K: tl.constexpr, V: tl.constexpr, UNITS: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr,
    BLOCK_U: tl.constexpr, MAPS: tl.constexpr,
):  # fmt: skip
    """What the maps make of one token [V]; x: its channels, q: where they lie."""
    c = tl.arange(0, BLOCK_K)
    d = tl.arange(0, BLOCK_V)
    raw = tl.zeros([BLOCK_V], tl.float32)
    for begin in range(0, UNITS, BLOCK_U):
        unit = begin + tl.arange(0, BLOCK_U)
        if MAPS == 1:
            hidden = tl.load(q + unit, mask=unit < UNITS, other=0.0).to(tl.float32)
        else:
            known = read_known(into, into_start, fresh, c, unit, K, UNITS, 1, K)
            wide = known
            if MAPS == 3:
                wide = read_known(up, up_start, fresh, c, unit, K, UNITS, 1, K)
            hidden = one_inside(x, known, wide, MAPS)
        raw += tl.sum(read_known(out, out_start, fresh, d, unit, V, UNITS, UNITS, 1) * hidden[None, :], 1)
    return raw


@triton.jit
def leave_errors(
    k, v, held_k, held_v, into, up, out, into_start, up_start, out_start, errors, weight, bias, share, waiting, fresh,
    k_stride, v_stride,
    K: tl.constexpr, V: tl.constexpr, UNITS: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr,
    BLOCK_U: tl.constexpr, TILE: tl.constexpr, MAPS: tl.constexpr,
    NORM: tl.constexpr, RESIDUAL: tl.constexpr, WEIGHT_NORM: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Leaves the gradient of each token's error by what the maps make of it."""
    c = tl.arange(0, BLOCK_K)
    d = tl.arange(0, BLOCK_V)
    for begin in range(0, waiting + 1, TILE):
        index = begin + tl.arange(0, TILE)
        key = read_waiting(held_k, k, index, waiting, c, k_stride, K)
        raw = tl.zeros([TILE, BLOCK_V], tl.float32)
        for first in range(0, UNITS, BLOCK_U):
            unit = first + tl.arange(0, BLOCK_U)
            if MAPS == 1:
                hidden = read_waiting(held_k, k, index, waiting, unit, k_stride, K)
            else:
                known = begun(into, into_start, fresh, c, unit, K, UNITS, WEIGHT_NORM)
                wide = known
                if MAPS == 3:
                    wide = begun(up, up_start, fresh, c, unit, K, UNITS, WEIGHT_NORM)
                hidden, _, _ = inside_of(key, known, wide, PRECISION, MAPS)
            raw += product(hidden, read_known(out, out_start, fresh, unit, d, UNITS, V, 1, UNITS) * share[None, :], PRECISION)
        value = read_waiting(held_v, v, index, waiting, d, v_stride, V)
        x = value
        if RESIDUAL:
            x = read_waiting(held_k, k, index, waiting, d, k_stride, K)
        wrong = error(raw, x, value, weight, bias, (d < V)[None, :], V, NORM, RESIDUAL)
        to = errors + index[:, None] * V + d[None, :]
        tl.store(to, wrong, mask=(index <= waiting)[:, None] & (d < V)[None, :])


@triton.jit
def moved(
    known, moment, learned, pushed, rows, columns, fresh, stays, speed, slows,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, ROW: tl.constexpr, COLUMN: tl.constexpr, PUSHES: tl.constexpr,
):  # fmt: skip
    """Part of a map and of its momentum, less what tokens add up to."""
    then = known * stays
    slowed = then
    if PUSHES:
        old = tl.where(fresh, 0.0, read_map(moment, rows, columns, ROWS, COLUMNS, ROW, COLUMN))
        then += old * speed
        slowed = old * slows - pushed
    return then - learned, slowed


@triton.jit
def change(
    x, q, k, held_k, into, up, out, into_moment, up_moment, out_moment, into_start, up_start, out_start, errors, writes, pushes,
    share, waiting, fresh, stays, speed, slows, k_stride,
    K: tl.constexpr, V: tl.constexpr, UNITS: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr,
    BLOCK_U: tl.constexpr, TILE: tl.constexpr, MAPS: tl.constexpr, LEARN: tl.constexpr,
    PUSHES: tl.constexpr, WEIGHT_NORM: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Weights that have learned the tokens so far: stored with LEARN; else what their maps make of one token [V]."""
    c = tl.arange(0, BLOCK_K)
    d = tl.arange(0, BLOCK_V)
    raw = tl.zeros([BLOCK_V], tl.float32)
    for begin in range(0, UNITS, BLOCK_U):
        unit = begin + tl.arange(0, BLOCK_U)
        of_out = read_known(out, out_start, fresh, d, unit, V, UNITS, UNITS, 1) * share[:, None]
        known = of_out
        wide = of_out
        learned = tl.zeros(
            [BLOCK_V, BLOCK_U], tl.float32
        )  # summed by itself: tiles subtracted from what is larger would round there
        pushed = learned
        learned_into = tl.zeros([BLOCK_K, BLOCK_U], tl.float32)
        learned_up = learned_into
        pushed_into = learned_into
        pushed_up = learned_into
        if MAPS != 1:
            known = begun(into, into_start, fresh, c, unit, K, UNITS, WEIGHT_NORM)
            wide = known
            if MAPS == 3:
                wide = begun(up, up_start, fresh, c, unit, K, UNITS, WEIGHT_NORM)
        for first in range(0, waiting + 1, TILE):
            index = first + tl.arange(0, TILE)
            there = (index <= waiting)[:, None]
            wrong = tl.load(errors + index[:, None] * V + d[None, :], mask=there & (d < V)[None, :], other=0.0)
            amount = tl.load(writes + index, mask=index <= waiting, other=0.0)[:, None]
            push = amount
            if PUSHES and LEARN:
                push = tl.load(pushes + index, mask=index <= waiting, other=0.0)[:, None]
            if MAPS == 1:
                hidden = read_waiting(held_k, k, index, waiting, unit, k_stride, K)
            else:
                key = read_waiting(held_k, k, index, waiting, c, k_stride, K)
                hidden, slope, slope_up = inside_of(key, known, wide, PRECISION, MAPS)
                inner = product(wrong, of_out, PRECISION)
                learned_into += product(tl.trans(key), amount * inner * slope, PRECISION)
                if MAPS == 3:
                    learned_up += product(tl.trans(key), amount * inner * slope_up, PRECISION)
                if PUSHES and LEARN:
                    pushed_into += product(tl.trans(key), push * inner * slope, PRECISION)
                    if MAPS == 3:
                        pushed_up += product(tl.trans(key), push * inner * slope_up, PRECISION)
            learned += product(tl.trans(amount * wrong), hidden, PRECISION)
            if PUSHES and LEARN:
                pushed += product(tl.trans(push * wrong), hidden, PRECISION)
        then, moment = moved(
            of_out, out_moment, learned, pushed, d, unit, fresh, stays, speed, slows, V, UNITS, UNITS, 1, PUSHES
        )
        then_into = then
        then_up = then
        moment_into = then
        moment_up = then
        if MAPS != 1:
            then_into, moment_into = moved(
                known, into_moment, learned_into, pushed_into, c, unit, fresh, stays, speed, slows, K, UNITS, 1, K, PUSHES
            )
        if MAPS == 3:
            then_up, moment_up = moved(
                wide, up_moment, learned_up, pushed_up, c, unit, fresh, stays, speed, slows, K, UNITS, 1, K, PUSHES
            )
        if LEARN:
            write_map(out, d, unit, then, True, V, UNITS, UNITS, 1)
            if MAPS != 1:
                write_map(into, c, unit, then_into, True, K, UNITS, 1, K)
            if MAPS == 3:
                write_map(up, c, unit, then_up, True, K, UNITS, 1, K)
            if PUSHES:
                write_map(out_moment, d, unit, moment, True, V, UNITS, UNITS, 1)
                if MAPS != 1:
                    write_map(into_moment, c, unit, moment_into, True, K, UNITS, 1, K)
                if MAPS == 3:
                    write_map(up_moment, c, unit, moment_up, True, K, UNITS, 1, K)
        else:
            if MAPS == 1:
                own = tl.load(q + unit, mask=unit < UNITS, other=0.0).to(tl.float32)
            else:
                own = one_inside(x, then_into, then_up, MAPS)
            raw += tl.sum(then * own[None, :], 1)
    return raw


@triton.jit(do_not_specialize=["size", "heads", "k_share", "v_share"])
def step_kernel(
    q, k, v, lr, momentum, decay, weight, bias, into, up, out, into_moment, up_moment, out_moment,
    into_start, up_start, out_start, held_k, held_v, gates, o, room, places, offsets, past,
    size, heads, k_share, v_share, q_token_stride, q_head_stride, k_token_stride, k_head_stride, v_token_stride, v_head_stride,
    K: tl.constexpr, V: tl.constexpr, UNITS: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr,
    BLOCK_U: tl.constexpr, TILE: tl.constexpr, MAPS: tl.constexpr, LEARN: tl.constexpr, AFTER_WRITE: tl.constexpr,
    NORM: tl.constexpr, RESIDUAL: tl.constexpr, WEIGHT_NORM: tl.constexpr,
    LR: tl.constexpr, MOMENTUM: tl.constexpr, DECAY: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    PUSHES: tl.constexpr = MOMENTUM != "none"
    GATES: tl.constexpr = (1 if LR == "token" else 0) + (1 if MOMENTUM == "token" else 0) + (1 if DECAY == "token" else 0)
    head = tl.program_id(0) % heads
    sequence = tl.program_id(0) // heads
    token = tl.load(offsets + sequence)
    if tl.load(offsets + sequence + 1) > token:
        seen = tl.load(past + sequence)
        fresh = seen < size
        waiting = (seen % size).to(tl.int32)
        row = tl.load(places + sequence)
        c = tl.arange(0, BLOCK_K)
        d = tl.arange(0, BLOCK_V)
        k_head = head // k_share
        v_head = head // v_share
        k_stride = heads // k_share * K
        v_stride = heads // v_share * V
        q += token * q_token_stride + head * q_head_stride
        k += token * k_token_stride + k_head * k_head_stride
        v += token * v_token_stride + v_head * v_head_stride
        held_k += row * (size - 1) * k_stride + k_head * K
        held_v += row * (size - 1) * v_stride + v_head * V
        gates += row * (size - 1) * (GATES * heads)
        inward = UNITS * K
        into += (row * heads + head) * inward
        up += (row * heads + head) * inward
        out += (row * heads + head) * (UNITS * V)
        into_moment += (row * heads + head) * inward
        up_moment += (row * heads + head) * inward
        out_moment += (row * heads + head) * (UNITS * V)
        into_start += head.to(tl.int64) * inward
        up_start += head.to(tl.int64) * inward
        out_start += head.to(tl.int64) * (UNITS * V)
        errors = room + (sequence * heads + head).to(tl.int64) * (size * (V + 2))
        writes = errors + size.to(tl.int64) * V
        pushes = writes + size
        of_weight, of_bias = read_norm(weight, bias, head, d, V, NORM)
        x = tl.load(q + c, mask=c < K, other=0.0).to(tl.float32)
        if LEARN or AFTER_WRITE:
            if waiting == size - 1 or not LEARN:
                stays, speed, slows = leave_amounts(
                    lr, momentum, decay, gates, writes, pushes, waiting, token * heads + head, head, heads, size,
                    TILE, LR, MOMENTUM, DECAY,
                )  # fmt: skip
                share = tl.zeros([BLOCK_V], tl.float32) + 1.0
                if WEIGHT_NORM:
                    least = tl.maximum(row_norms(out, out_start, fresh, V, UNITS, BLOCK_V, BLOCK_U), 1.1754943508222875e-38)
                    share = tl.div_rn(row_norms(out_start, out_start, True, V, UNITS, BLOCK_V, BLOCK_U), least)
                leave_errors(
                    k, v, held_k, held_v, into, up, out, into_start, up_start, out_start, errors, of_weight, of_bias, share,
                    waiting, fresh, k_stride, v_stride,
                    K, V, UNITS, BLOCK_K, BLOCK_V, BLOCK_U, TILE, MAPS, NORM, RESIDUAL, WEIGHT_NORM, PRECISION,
                )  # fmt: skip
                tl.debug_barrier()
                raw = change(
                    x, q, k, held_k, into, up, out, into_moment, up_moment, out_moment, into_start, up_start, out_start,
                    errors, writes, pushes, share, waiting, fresh, stays, speed, slows, k_stride,
                    K, V, UNITS, BLOCK_K, BLOCK_V, BLOCK_U, TILE, MAPS, LEARN, PUSHES, WEIGHT_NORM, PRECISION,
                )  # fmt: skip
                if not LEARN:
                    leave_answer(o, raw, q, weight, bias, token, head, heads, V, BLOCK_V, NORM, RESIDUAL)
            else:
                keep_token(
                    k, v, lr, momentum, decay, held_k, held_v, gates, waiting, token, head, heads, size, k_share, v_share,
                    k_stride, v_stride, K, V, BLOCK_K, BLOCK_V, LR, MOMENTUM, DECAY,
                )  # fmt: skip
        else:
            raw = ask(x, q, into, up, out, into_start, up_start, out_start, fresh, K, V, UNITS, BLOCK_K, BLOCK_V, BLOCK_U, MAPS)
            leave_answer(o, raw, q, weight, bias, token, head, heads, V, BLOCK_V, NORM, RESIDUAL)


def settings(size, row, element_size, learn):
    """The kernel's compile-time arguments for chunks of `size` tokens."""
    tokens, units, warps, stages = row
    lr, momentum, decay = RATES
    return {
        "K": KEY_WIDTH,
        "V": VALUE_WIDTH,
        "UNITS": UNITS,
        "BLOCK_K": max(16, triton.next_power_of_2(KEY_WIDTH)),
        "BLOCK_V": max(16, triton.next_power_of_2(VALUE_WIDTH)),
        "BLOCK_U": max(16, min(units, triton.next_power_of_2(UNITS))),
        "TILE": tile_of(size, tokens),
        "MAPS": MAPS,
        "LEARN": learn,
        "AFTER_WRITE": AFTER_WRITE,
        "NORM": NORM,
        "RESIDUAL": RESIDUAL,
        "WEIGHT_NORM": WEIGHT_NORM,
        "LR": lr,
        "MOMENTUM": momentum,
        "DECAY": decay,
        "PRECISION": PRODUCTS[element_size],
        "num_warps": warps,
        "num_stages": stages,
        "enable_fp_fusion": True,
    }


def variants(architecture, element_size):
    """Every kernel that `step` may launch, with its compile-time arguments."""
    row = BLOCKS[architecture, element_size]
    tiles = dict.fromkeys(tile_of(size, row[0]) for size in (16, 32, 64))
    return tuple((step_kernel, settings(size, row, element_size, learn)) for size in tiles for learn in (False, True))


def step(given, learn, *, blocks=None):
    """What nets return for one query of each sequence [T, heads, V]; with `learn` None, and the cache has learned the tokens.

    given: tokens and the cache (runtime/fast_step.py); blocks = (tokens, units, warps, stages) instead of the table's.
    """
    q, k, v, size = given.q, given.k, given.v, given.size
    heads, sequences, device = q.shape[1], len(given.offsets) - 1, q.device
    row = blocks or BLOCKS[architecture(device), q.element_size()]
    compiled = settings(size, row, q.element_size(), learn)
    o = q if learn else torch.empty(len(q), heads, VALUE_WIDTH, dtype=q.dtype, device=device)
    needed = sequences * heads * size * (VALUE_WIDTH + 2) if learn or AFTER_WRITE else 0
    room = torch.empty(needed, dtype=torch.float32, device=device)
    maps = [tuple(own[at] for at in ((0, 0, 0), (0, 0, 1), (0, 1, 2))[MAPS - 1]) for own in (given.weights, given.starts)]
    moments = tuple(given.moments[at] for at in ((0, 0, 0), (0, 0, 1), (0, 1, 2))[MAPS - 1]) if given.moments else (q, q, q)
    tensors = (q, k, v, *given.rates, *given.norm, *maps[0], *moments, *maps[1], given.held_k, given.held_v, given.gates)
    tensors = (*(q if tensor is None else tensor for tensor in tensors), o, room, given.places, given.offsets, given.past)
    strides = [stride for tensor in (q, k, v) for stride in tensor.stride()[:2]]
    numbers = (size, heads, heads // k.shape[1], heads // v.shape[1], *strides)
    key = (step_kernel, device, learn, compiled["TILE"], row, *(tensor.dtype for tensor in tensors))
    run(step_kernel, heads * sequences, tensors, numbers, bits(strides), key, lambda: compiled)
    return None if learn else o
