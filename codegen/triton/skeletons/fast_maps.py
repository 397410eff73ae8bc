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
from attnc.codegen.triton.skeletons.fast_maps_back import added, back_kernel, read_lesson, say, wait
from attnc.codegen.triton.skeletons.fast_parts import (
    architecture,
    error,
    gelu,
    product,
    read_map,
    read_norm,
    read_rows,
    tile_of,
    write_map,
)
from attnc.codegen.triton.skeletons.fast_rows import met, share
from attnc.codegen.triton.skeletons.scan_parts import run

KEY_WIDTH = 64
VALUE_WIDTH = 64
HIDDEN = 256
MOMENTUM = False
NORM = False  # a layer norm of each head
RESIDUAL = False  # the net's input is added
WEIGHT_NORM = tl.constexpr(False)  # before a chunk writes, rows get the norms that they began with
PRODUCTS = {2: "tf32", 4: "ieee"}  # bytes of an element of q, k and v: how products round
BLOCKS = {  # (architecture, bytes of an element): tokens of a tile, hidden units of a block, warps, pipeline stages
    ("any", 2): (16, 16384, 4, 1),
    ("any", 4): (16, 16384, 4, 1),
}

KNOWN = {}  # device -> its row of BLOCKS
READY = {}  # key of `run` -> what was compiled, and its compile-time arguments


@triton.jit
def learn(
    learned1, learned2, pushed1, pushed2, hidden, slope, w2, here, raws, k, v, writes, pushes, index, size, block, c, d,
    weight, bias, K: tl.constexpr, V: tl.constexpr, PARTS: tl.constexpr,
    MOMENTUM: tl.constexpr, NORM: tl.constexpr, RESIDUAL: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """With a tile: what a block's part of weights and momentum loses; the first block leaves what the maps make of keys."""
    inside = (d < V)[None, :]
    key, value, x = read_lesson(k, v, index, size, c, d, K, V, RESIDUAL)
    raw = added(here, index, size, d, V, PARTS)
    if block == 0:
        tl.store(raws + index[:, None] * V + d[None, :], raw, mask=(index < size)[:, None] & inside)
    wrong = error(raw, x, value, weight, bias, inside, V, NORM, RESIDUAL)
    inner = product(wrong, w2, PRECISION) * slope
    amount = tl.load(writes + index, mask=index < size, other=0.0)[:, None]
    learned1 += product(tl.trans(key), amount * inner, PRECISION)
    learned2 += product(tl.trans(amount * wrong), hidden, PRECISION)
    if MOMENTUM:
        amount = tl.load(pushes + index, mask=index < size, other=0.0)[:, None]
        pushed1 += product(tl.trans(key), amount * inner, PRECISION)
        pushed2 += product(tl.trans(amount * wrong), hidden, PRECISION)
    return learned1, learned2, pushed1, pushed2


@triton.jit(do_not_specialize=["first", "heads", "size"])
def sweep_kernel(
    goals, squares, meets,  # WEIGHT_NORM
    k, v, writes, pushes, stays, speed, slows, weight, bias, known, known_moment, kept, kept_moment, after, after_moment,
    raws, parts, counters, begins, chunks, first, heads, size,
    K: tl.constexpr, V: tl.constexpr, HIDDEN: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr,
    BLOCK_H: tl.constexpr, TILE: tl.constexpr, ONE: tl.constexpr,
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
        index = tl.arange(0, TILE)
        keys = k + place * size * K
        if ONE:  # a chunk is read while weights are written; its hidden units are kept while the other blocks are awaited
            key = read_rows(keys, index, size, c, K)
        write_map(kept + row, c, unit, w1, True, K, HIDDEN, 1, K)
        write_map(kept + row + second, d, unit, w2, True, V, HIDDEN, HIDDEN, 1)
        if MOMENTUM:
            write_map(kept_moment + row, c, unit, moment1, True, K, HIDDEN, 1, K)
            write_map(kept_moment + row + second, d, unit, moment2, True, V, HIDDEN, HIDDEN, 1)
        tl.debug_barrier()
        turned2 = read_map(kept + row + second, unit, d, HIDDEN, V, 1, HIDDEN)
        if WEIGHT_NORM:  # rows of the map outwards lie across blocks, which wait for each other once more
            rows = goals + place * (HIDDEN + V)
            w1 *= share(tl.sum(w1 * w1, 0), rows, unit, HIDDEN)[None, :]
            tl.store(squares + (pair * blocks + block) * V + d, tl.sum(w2 * w2, 1), mask=d < V)
            wait(meets + pair, blocks * (chunk + 1))
            share2 = share(met(squares + pair * blocks * V, d, V, blocks), rows + HIDDEN, d, V)
            w2 *= share2[:, None]
            turned2 *= share2[None, :]
        here = said + chunk % 2 * (blocks * size * V)
        if ONE:
            hidden, slope, _ = gelu(product(key, w1, PRECISION))
            say(here, product(hidden, turned2, PRECISION), block, index, size, d, V)
        else:
            for begin in range(0, size, TILE):
                spots = begin + index
                units, _, _ = gelu(product(read_rows(keys, spots, size, c, K), w1, PRECISION))
                say(here, product(units, turned2, PRECISION), block, spots, size, d, V)
        wait(counters + pair, blocks * (chunk + 1))
        learned1 = tl.zeros_like(w1)  # summed by itself: tiles subtracted from what is larger would round there one by one
        learned2 = tl.zeros_like(w2)
        pushed1 = learned1
        pushed2 = learned2
        values = v + place * size * V
        write = writes + place * size
        push = pushes + place * size
        to = raws + place * size * V
        if ONE:
            learned1, learned2, pushed1, pushed2 = learn(
                learned1, learned2, pushed1, pushed2, hidden, slope, w2, here, to, keys, values, write, push, index, size,
                block, c, d, of_weight, of_bias, K, V, blocks, MOMENTUM, NORM, RESIDUAL, PRECISION,
            )  # fmt: skip
        else:
            for begin in range(0, size, TILE):
                spots = begin + index
                units, slopes, _ = gelu(product(read_rows(keys, spots, size, c, K), w1, PRECISION))
                learned1, learned2, pushed1, pushed2 = learn(
                    learned1, learned2, pushed1, pushed2, units, slopes, w2, here, to, keys, values, write, push, spots, size,
                    block, c, d, of_weight, of_bias, K, V, blocks, MOMENTUM, NORM, RESIDUAL, PRECISION,
                )  # fmt: skip
        w1 *= tl.load(stays + place)
        w2 *= tl.load(stays + place)
        if MOMENTUM:
            w1 += moment1 * tl.load(speed + place)
            w2 += moment2 * tl.load(speed + place)
            moment1 = moment1 * tl.load(slows + place) - pushed1
            moment2 = moment2 * tl.load(slows + place) - pushed2
        w1 -= learned1
        w2 -= learned2
    write_map(after + own, c, unit, w1, True, K, HIDDEN, 1, K)
    write_map(after + own + second, d, unit, w2, True, V, HIDDEN, HIDDEN, 1)
    if MOMENTUM:
        write_map(after_moment + own, c, unit, moment1, True, K, HIDDEN, 1, K)
        write_map(after_moment + own + second, d, unit, moment2, True, V, HIDDEN, HIDDEN, 1)


def settings(size, row, element_size, kernel):
    """A kernel's compile-time arguments for chunks of `size` tokens. The way back needs twice the registers: half a block."""
    tokens, block, warps, stages = row
    if kernel is back_kernel:
        tokens, block = tokens // 2, block // 2
    tile = tile_of(size, tokens)
    own = {} if kernel is maps_kernel else {"ONE": size <= tile}
    return (own | {"READ": False} if kernel is back_kernel else own) | {
        "K": KEY_WIDTH,
        "V": VALUE_WIDTH,
        "HIDDEN": HIDDEN,
        "BLOCK_K": max(16, triton.next_power_of_2(KEY_WIDTH)),
        "BLOCK_V": max(16, triton.next_power_of_2(VALUE_WIDTH)),
        "BLOCK_H": max(16, min(block, triton.next_power_of_2(HIDDEN))),
        "TILE": tile,
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
        if WEIGHT_NORM:
            squares = k.new_empty(pairs, self.blocks, VALUE_WIDTH, dtype=torch.float32)
            self.tensors = (*given.rows, squares, torch.zeros_like(self.counters), *self.tensors)
        names = "TILE", "ONE", "PRECISION", "READ"
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
    room = () if launches.compiled["ONE"] else (launches.pairs, 3, launches.size, HIDDEN)
    within = launches.parts.new_empty(room)  # what is found of tiles before the wait
    of_moment = tuple(kept if x is None else x for x in (kept_moment_grad, after_moment_grad))
    tensors = (kept, raw, kept_grad, of_moment[0], after_grad, of_moment[1], rows, rows_moment, known, known_moment)
    launches.run((*launches.tensors, *tensors, launches.parts, within))
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
