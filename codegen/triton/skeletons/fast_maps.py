"""Fast weights of two maps with GELU between them, chunk by chunk: programs for a sequence, a head and a block of hidden units.

A program carries its part of weights W and momentum S in fp32 through the chunks of a group. Hidden units meet only in what the
net makes of a key, a sum over all of them. So in each chunk every block says what it makes of the keys, waits for the others,
adds all that up, finds the error d, and changes its own part:

    z = K W1^T;  raw = gelu(z) W2^T;  d = gradient of |M(k) - v|^2 by raw;  e = (d W2) gelu'(z)
    W2 <- stays W2 + speed S2 - (writes d)^T gelu(z);  S2 <- slows S2 - (pushes d)^T gelu(z)
    W1 <- stays W1 + speed S1 - (writes e)^T K;        S1 <- slows S1 - (pushes e)^T K

The way back carries gradients of W and S from the last chunk to the first: each block says how d is to blame, waits, and goes
through raw. It leaves gradients of what was known after each chunk; from these come all others, of single chunks
(fast_lessons.py).

Programs that wait for each other must all be running. So a launch has at most as many as a GPU has multiprocessors, and is
cooperative; sequences and heads beyond that take their turn in the next. In Triton's interpreter, which runs one program after
the other, a head is one block.

Legend: R rows, the chunks of `size` tokens of several sequences, first ones before second ones; sequences with more chunks
stand first. heads; pairs of a sequence and a head; M = HIDDEN (K + V) numbers of a net: W1 [HIDDEN, K], then W2 [V, HIDDEN].
"""

import torch
import triton
import triton.language as tl

from attnc.codegen.triton.skeletons.fast_lessons import gradients_of, maps_kernel
from attnc.codegen.triton.skeletons.fast_parts import (
    architecture,
    error,
    error_back,
    gelu,
    product,
    read_map,
    read_norm,
    read_rows,
    read_turned,
    tile_of,
    write_map,
)
from attnc.codegen.triton.skeletons.scan_parts import run

KEY_WIDTH = 64
VALUE_WIDTH = 64
HIDDEN = 256
MOMENTUM = False
NORM = False  # a layer norm of each head
RESIDUAL = False  # the net's input is added
PRODUCTS = {2: "tf32", 4: "ieee"}  # bytes of an element of q, k and v: how products round
BLOCKS = {  # (architecture, bytes of an element): tokens of a tile, hidden units of a block, warps, pipeline stages
    ("any", 2): (16, 16384, 4, 1),
    ("any", 4): (16, 16384, 4, 1),
}

KNOWN = {}  # device -> its row of BLOCKS
READY = {}  # key of `run` -> what was compiled, and its compile-time arguments


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


@triton.jit(do_not_specialize=["first", "heads", "size"])
def sweep_kernel(
    k, v, writes, pushes, stays, speed, slows, weight, bias, known, known_moment, kept, kept_moment, after, after_moment,
    raws, parts, counters, begins, chunks, first, heads, size,
    K: tl.constexpr, V: tl.constexpr, HIDDEN: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr,
    BLOCK_H: tl.constexpr, TILE: tl.constexpr,
    MOMENTUM: tl.constexpr, NORM: tl.constexpr, RESIDUAL: tl.constexpr, PRECISION: tl.constexpr,
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
    inside = (d < V)[None, :]
    own = pair.to(tl.int64) * numbers
    w1 = read_map(known + own, c, unit, K, HIDDEN, 1, K)
    w2 = read_map(known + own + second, d, unit, V, HIDDEN, HIDDEN, 1)
    moment1 = w1
    moment2 = w2
    if MOMENTUM:
        moment1 = read_map(known_moment + own, c, unit, K, HIDDEN, 1, K)
        moment2 = read_map(known_moment + own + second, d, unit, V, HIDDEN, HIDDEN, 1)
    of_weight, of_bias = read_norm(weight, bias, head, d, V, NORM)
    said = parts + pair.to(tl.int64) * (2 * blocks * size * V)
    for chunk in range(tl.load(chunks + rank)):
        place = (tl.load(begins + chunk) + rank) * heads + head  # int64
        row = place * numbers
        write_map(kept + row, c, unit, w1, True, K, HIDDEN, 1, K)
        write_map(kept + row + second, d, unit, w2, True, V, HIDDEN, HIDDEN, 1)
        if MOMENTUM:
            write_map(kept_moment + row, c, unit, moment1, True, K, HIDDEN, 1, K)
            write_map(kept_moment + row + second, d, unit, moment2, True, V, HIDDEN, HIDDEN, 1)
        tl.debug_barrier()
        turned2 = read_map(kept + row + second, unit, d, HIDDEN, V, 1, HIDDEN)
        here = said + chunk % 2 * (blocks * size * V)
        for begin in range(0, size, TILE):
            index = begin + tl.arange(0, TILE)
            key = read_rows(k + place * size * K, index, size, c, K)
            hidden, _, _ = gelu(product(key, w1, PRECISION))
            to = here + (block * size + index[:, None]) * V + d[None, :]
            tl.store(to, product(hidden, turned2, PRECISION), mask=(index < size)[:, None] & inside)
        wait(counters + pair, blocks * (chunk + 1))
        then1 = w1 * tl.load(stays + place)
        then2 = w2 * tl.load(stays + place)
        if MOMENTUM:
            then1 += moment1 * tl.load(speed + place)
            then2 += moment2 * tl.load(speed + place)
            moment1 *= tl.load(slows + place)
            moment2 *= tl.load(slows + place)
        for begin in range(0, size, TILE):
            index = begin + tl.arange(0, TILE)
            key = read_rows(k + place * size * K, index, size, c, K)
            value = read_rows(v + place * size * V, index, size, d, V)
            x = value
            if RESIDUAL:
                x = read_rows(k + place * size * K, index, size, d, K)
            raw = added(here, index, size, d, V, blocks)
            if block == 0:
                to = raws + place * size * V + index[:, None] * V + d[None, :]
                tl.store(to, raw, mask=(index < size)[:, None] & inside)
            wrong = error(raw, x, value, of_weight, of_bias, inside, V, NORM, RESIDUAL)
            hidden, slope, _ = gelu(product(key, w1, PRECISION))
            inner = product(wrong, w2, PRECISION) * slope
            turned = read_turned(k + place * size * K, index, size, c, K)
            amount = tl.load(writes + place * size + index, mask=index < size, other=0.0)[:, None]
            then1 -= product(turned, amount * inner, PRECISION)
            then2 -= product(tl.trans(amount * wrong), hidden, PRECISION)
            if MOMENTUM:
                amount = tl.load(pushes + place * size + index, mask=index < size, other=0.0)[:, None]
                moment1 -= product(turned, amount * inner, PRECISION)
                moment2 -= product(tl.trans(amount * wrong), hidden, PRECISION)
        w1 = then1
        w2 = then2
    write_map(after + own, c, unit, w1, True, K, HIDDEN, 1, K)
    write_map(after + own + second, d, unit, w2, True, V, HIDDEN, HIDDEN, 1)
    if MOMENTUM:
        write_map(after_moment + own, c, unit, moment1, True, K, HIDDEN, 1, K)
        write_map(after_moment + own + second, d, unit, moment2, True, V, HIDDEN, HIDDEN, 1)


@triton.jit(do_not_specialize=["first", "heads", "size"])
def back_kernel(
    k, v, writes, pushes, stays, speed, slows, weight, bias, kept, raws, kept_grad, kept_moment_grad, after_grad,
    after_moment_grad, rows_grad, rows_moment_grad, known_grad, known_moment_grad, parts, within, counters, begins, chunks,
    first, heads, size,
    K: tl.constexpr, V: tl.constexpr, HIDDEN: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr,
    BLOCK_H: tl.constexpr, TILE: tl.constexpr,
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
    inside = (d < V)[None, :]
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
        write_map(rows_grad + row, c, unit, by1, True, K, HIDDEN, 1, K)
        write_map(rows_grad + row + second, d, unit, by2, True, V, HIDDEN, HIDDEN, 1)
        if MOMENTUM:
            write_map(rows_moment_grad + row, c, unit, moment1, True, K, HIDDEN, 1, K)
            write_map(rows_moment_grad + row + second, d, unit, moment2, True, V, HIDDEN, HIDDEN, 1)
        tl.debug_barrier()
        here = said + step % 2 * (blocks * size * V)
        for begin in range(0, size, TILE):
            index = begin + tl.arange(0, TILE)
            key = read_rows(k + place * size * K, index, size, c, K)
            value = read_rows(v + place * size * V, index, size, d, V)
            x = value
            if RESIDUAL:
                x = read_rows(k + place * size * K, index, size, d, K)
            raw = read_rows(raws + place * size * V, index, size, d, V)
            wrong = error(raw, x, value, of_weight, of_bias, inside, V, NORM, RESIDUAL)
            z = product(key, read_map(kept + row, c, unit, K, HIDDEN, 1, K), PRECISION)
            hidden, slope, _ = gelu(z)
            outer = product(wrong, read_map(kept + row + second, d, unit, V, HIDDEN, HIDDEN, 1), PRECISION)
            amount = tl.load(writes + place * size + index, mask=index < size, other=0.0)[:, None]
            by_inner = -amount * product(key, read_map(rows_grad + row, c, unit, K, HIDDEN, 1, K), PRECISION)
            of_map = read_map(rows_grad + row + second, unit, d, HIDDEN, V, 1, HIDDEN)
            by_wrong = -amount * product(hidden, of_map, PRECISION)
            if MOMENTUM:
                amount = tl.load(pushes + place * size + index, mask=index < size, other=0.0)[:, None]
                by_inner -= amount * product(key, read_map(rows_moment_grad + row, c, unit, K, HIDDEN, 1, K), PRECISION)
                of_map = read_map(rows_moment_grad + row + second, unit, d, HIDDEN, V, 1, HIDDEN)
                by_wrong -= amount * product(hidden, of_map, PRECISION)
            of_map = read_map(kept + row + second, unit, d, HIDDEN, V, 1, HIDDEN)
            by_wrong += product(by_inner * slope, of_map, PRECISION)
            to = here + (block * size + index[:, None]) * V + d[None, :]
            tl.store(to, by_wrong, mask=(index < size)[:, None] & inside)
            to = inner + index[:, None] * HIDDEN + unit[None, :]
            mask = (index < size)[:, None] & (unit < HIDDEN)[None, :]
            tl.store(to, z, mask=mask)
            tl.store(to + apart, outer, mask=mask)
            tl.store(to + 2 * apart, by_inner, mask=mask)
        wait(counters + pair, blocks * (step + 1))
        gained1 = tl.zeros(
            [BLOCK_K, BLOCK_H], tl.float32
        )  # a product summed into what is larger would round there token by token
        gained2 = tl.zeros([BLOCK_V, BLOCK_H], tl.float32)
        for begin in range(0, size, TILE):
            index = begin + tl.arange(0, TILE)
            value = read_rows(v + place * size * V, index, size, d, V)
            x = value
            if RESIDUAL:
                x = read_rows(k + place * size * K, index, size, d, K)
            raw = read_rows(raws + place * size * V, index, size, d, V)
            wrong = error(raw, x, value, of_weight, of_bias, inside, V, NORM, RESIDUAL)
            by_wrong = added(here, index, size, d, V, blocks)
            by_raw = error_back(by_wrong, raw, x, value, of_weight, of_bias, inside, V, NORM, RESIDUAL)
            hidden, slope, bend = gelu(read_rows(inner, index, size, unit, HIDDEN))
            outer = read_rows(inner + apart, index, size, unit, HIDDEN)
            by_inner = read_rows(inner + 2 * apart, index, size, unit, HIDDEN)
            amount = tl.load(writes + place * size + index, mask=index < size, other=0.0)[:, None]
            by_hidden = product(by_raw, read_map(kept + row + second, d, unit, V, HIDDEN, HIDDEN, 1), PRECISION)
            of_map = read_map(rows_grad + row + second, d, unit, V, HIDDEN, HIDDEN, 1)
            by_hidden -= product(amount * wrong, of_map, PRECISION)
            if MOMENTUM:
                amount = tl.load(pushes + place * size + index, mask=index < size, other=0.0)[:, None]
                of_map = read_map(rows_moment_grad + row + second, d, unit, V, HIDDEN, HIDDEN, 1)
                by_hidden -= product(amount * wrong, of_map, PRECISION)
            by_z = by_hidden * slope + by_inner * outer * bend
            gained1 += product(read_turned(k + place * size * K, index, size, c, K), by_z, PRECISION)
            gained2 += product(tl.trans(wrong), by_inner * slope, PRECISION)
            gained2 += product(tl.trans(by_raw), hidden, PRECISION)
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
        by1 = by1 * tl.load(stays + place) + read_map(kept_grad + row, c, unit, K, HIDDEN, 1, K) + gained1
        by2 = by2 * tl.load(stays + place) + read_map(kept_grad + row + second, d, unit, V, HIDDEN, HIDDEN, 1) + gained2
    write_map(known_grad + own, c, unit, by1, True, K, HIDDEN, 1, K)
    write_map(known_grad + own + second, d, unit, by2, True, V, HIDDEN, HIDDEN, 1)
    if MOMENTUM:
        write_map(known_moment_grad + own, c, unit, moment1, True, K, HIDDEN, 1, K)
        write_map(known_moment_grad + own + second, d, unit, moment2, True, V, HIDDEN, HIDDEN, 1)


def settings(size, row, element_size, kernel):
    """A kernel's compile-time arguments for chunks of `size` tokens. The way back needs twice the registers: half a block."""
    tokens, block, warps, stages = row
    if kernel is back_kernel:
        tokens, block = tokens // 2, block // 2
    return ({"READ": False} if kernel is back_kernel else {}) | {
        "K": KEY_WIDTH,
        "V": VALUE_WIDTH,
        "HIDDEN": HIDDEN,
        "BLOCK_K": max(16, triton.next_power_of_2(KEY_WIDTH)),
        "BLOCK_V": max(16, triton.next_power_of_2(VALUE_WIDTH)),
        "BLOCK_H": max(16, min(block, triton.next_power_of_2(HIDDEN))),
        "TILE": tile_of(size, tokens),
        "MOMENTUM": MOMENTUM,
        "NORM": NORM,
        "RESIDUAL": RESIDUAL,
        "PRECISION": PRODUCTS[element_size],
        "num_warps": warps,
        "num_stages": stages,
        "enable_fp_fusion": True,
    }


def variants(architecture, element_size):
    """Every kernel that `sweep`, `go_back` and `lessons` may launch, with its compile-time arguments."""
    row = BLOCKS[architecture, element_size]
    tiles = dict.fromkeys(tile_of(size, row[0]) for size in (16, 32, 64))
    kernels = sweep_kernel, back_kernel, maps_kernel
    return tuple((kernel, settings(size, row, element_size, kernel)) for kernel in kernels for size in tiles)


class Launches:
    """The launches of a kernel: a group's tensors, compile-time arguments, and room where blocks of hidden units meet."""

    def __init__(self, kernel, given, pairs, blocks, **chosen):
        k = given.k
        self.heads, self.size = k.shape[1:3]
        row = blocks or BLOCKS[architecture(k.device), given.element_size]
        self.pairs, self.compiled = pairs, settings(self.size, row, given.element_size, kernel) | chosen
        self.blocks = triton.cdiv(HIDDEN, self.compiled["BLOCK_H"])
        self.tensors = tuple(k if x is None else x for x in given.tensors)
        self.parts = k.new_empty(pairs, 2, self.blocks, self.size, VALUE_WIDTH, dtype=torch.float32)
        self.counters = torch.zeros(pairs, dtype=torch.int32, device=k.device)
        self.places = given.begins, given.chunks
        names = "TILE", "PRECISION", "READ"
        self.kernel, self.key = kernel, (kernel, k.device, row, *(self.compiled.get(name) for name in names))

    def run(self, tensors):
        """As many pairs at once as can run together."""
        device, compiled, most = self.parts.device, self.compiled, self.pairs
        if device.type == "cuda":
            most = torch.cuda.get_device_properties(device).multi_processor_count // self.blocks
            compiled = {**compiled, "launch_cooperative_grid": True}
        assert most, "a GPU runs the blocks of one head at once"
        for first in range(0, self.pairs, most):
            programs = min(most, self.pairs - first) * self.blocks
            numbers = first, self.heads, self.size
            run(self.kernel, programs, (*tensors, self.counters, *self.places), numbers, 0, self.key, lambda: compiled)


def sweep(given, known, known_moment, *, blocks=None):
    """What sequences know before each chunk [R, heads, M] and after the last [S, heads, M], each with momentum, or None; and
    what the maps made of keys [R, heads, size, V].

    given: the chunks (runtime/fast_kernels.py); known, known_moment [S, heads, M], the latter None without momentum;
    blocks = (tokens, hidden units, warps, stages) instead of the table's.
    """
    launches = Launches(sweep_kernel, given, len(known) * given.k.shape[1], blocks)
    kept, after = known.new_empty(len(given.k), *known.shape[1:]), torch.empty_like(known)
    kept_moment, after_moment = (torch.empty_like(x) if MOMENTUM else x for x in (kept, after))
    raws = known.new_empty(*given.k.shape[:3], VALUE_WIDTH)
    moment = known_moment if MOMENTUM else known
    written = (known, moment, kept, kept_moment, after, after_moment, raws, launches.parts)
    launches.run((*launches.tensors, *written))
    return kept, kept_moment if MOMENTUM else None, after, after_moment if MOMENTUM else None, raws


def go_back(given, kept, raw, kept_grad, kept_moment_grad, after_grad, after_moment_grad, *, blocks=None):
    """Gradients of what is known after each chunk [R, heads, M] and of what was known before the first [S, heads, M].

    kept, raw: what sequences knew before each chunk, and what maps made of keys; the others: gradients of `sweep`'s results, of
    which kept_moment_grad may be None.
    """
    pairs, is_read = len(after_grad) * given.k.shape[1], kept_moment_grad is not None
    launches = Launches(back_kernel, given, pairs, blocks, READ=is_read)
    rows, known = torch.empty_like(kept), torch.empty_like(after_grad)
    rows_moment, known_moment = (torch.empty_like(x) if MOMENTUM else x for x in (rows, known))
    within = launches.parts.new_empty(launches.pairs, 3, launches.size, HIDDEN)
    of_moment = tuple(kept if x is None else x for x in (kept_moment_grad, after_moment_grad))
    held = (kept, raw, kept_grad, of_moment[0], after_grad, of_moment[1], rows, rows_moment, known, known_moment)
    launches.run((*launches.tensors, *held, launches.parts, within))
    return rows, rows_moment if MOMENTUM else None, known, known_moment if MOMENTUM else None


def lessons(given, kept, kept_moment, raw, rows, rows_moment, *, blocks=None):
    """Gradients of `given.tensors`, or None where there are none.

    kept, kept_moment, raw: what `sweep` has left; rows, rows_moment: gradients of what was known after each chunk.
    """
    row = blocks or BLOCKS[architecture(given.k.device), given.element_size]
    compiled = settings(given.k.shape[2], row, given.element_size, maps_kernel)
    known = (kept, kept_moment, rows, rows_moment) if MOMENTUM else (kept, kept, rows, rows)
    key = maps_kernel, given.k.device, row, compiled["TILE"], compiled["PRECISION"]
    return gradients_of(maps_kernel, given, known, (raw,), key, compiled)
