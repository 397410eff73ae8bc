"""Fast weights of two maps with GELU between them, chunk by chunk: programs for a sequence, a head and a block of hidden units.

Hidden units meet only in what the net makes of a key, a sum over all of them. So each chunk takes two launches. In the first,
`meet_kernel`, each block of hidden units says what it makes of the keys; in the second, `write_kernel`, every block adds that
up, finds the error d, and changes its own part of weights W and momentum S:

    z = K W1^T;  raw = gelu(z) W2^T;  d = gradient of |M(k) - v|^2 by raw;  e = (d W2) gelu'(z)
    W2 <- stays W2 + speed S2 - (writes d)^T gelu(z);  S2 <- slows S2 - (pushes d)^T gelu(z)
    W1 <- stays W1 + speed S1 - (writes e)^T K;        S1 <- slows S1 - (pushes e)^T K

The way back carries gradients of W and S from the last chunk to the first, in two launches again: in `blame_kernel` each block
says how d is to blame, in `back_kernel` it goes through raw. It leaves gradients of what was known after each chunk: all others
are of single chunks.

Legend: R rows, the chunks of `size` tokens of several sequences, first ones before second ones; sequences with more chunks
stand first. heads; M = HIDDEN (K + V) numbers of a net: W1 [HIDDEN, K], then W2 [V, HIDDEN]; blocks of hidden units.
"""

import torch
import triton
import triton.language as tl

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
    ("any", 2): (16, 16, 4, 1),
    ("any", 4): (16, 16, 4, 1),
}

KNOWN = {}  # device -> its row of BLOCKS
READY = {}  # key of `run` -> what was compiled, and its compile-time arguments


@triton.jit
def added(parts, index, size, channel, V: tl.constexpr, PARTS: tl.constexpr):
    """What all blocks of hidden units said of tokens, in their order."""
    total = read_rows(parts, index, size, channel, V)
    for part in range(1, PARTS):
        total += read_rows(parts + (size * V).to(tl.int64) * part, index, size, channel, V)
    return total


@triton.jit(do_not_specialize=["first", "heads", "size", "tiles"])
def meet_kernel(
    k, kept, parts, first, heads, size, tiles,
    K: tl.constexpr, V: tl.constexpr, HIDDEN: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr,
    BLOCK_H: tl.constexpr, TILE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    blocks: tl.constexpr = (HIDDEN + BLOCK_H - 1) // BLOCK_H
    program = tl.program_id(0)
    begin = program % tiles * TILE
    block = program // tiles % blocks
    pair = (program // (tiles * blocks)).to(tl.int64)  # rank and head
    place = first.to(tl.int64) * heads + pair
    c = tl.arange(0, BLOCK_K)
    d = tl.arange(0, BLOCK_V)
    unit = block * BLOCK_H + tl.arange(0, BLOCK_H)
    index = begin + tl.arange(0, TILE)
    net = kept + place * (HIDDEN * (K + V))
    key = read_rows(k + place * size * K, index, size, c, K)
    hidden, _, _ = gelu(product(key, read_map(net, c, unit, K, HIDDEN, 1, K), PRECISION))
    raw = product(hidden, read_map(net + HIDDEN * K, unit, d, HIDDEN, V, 1, HIDDEN), PRECISION)
    to = parts + (pair * blocks + block) * size * V
    tl.store(to + index[:, None] * V + d[None, :], raw, mask=(index < size)[:, None] & (d < V)[None, :])


@triton.jit(do_not_specialize=["first", "then", "remain", "heads", "size"])
def write_kernel(
    k, v, writes, pushes, stays, speed, slows, weight, bias, kept, kept_moment, after, after_moment, raws, parts,
    first, then, remain, heads, size,
    K: tl.constexpr, V: tl.constexpr, HIDDEN: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr,
    BLOCK_H: tl.constexpr, TILE: tl.constexpr,
    MOMENTUM: tl.constexpr, NORM: tl.constexpr, RESIDUAL: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    blocks: tl.constexpr = (HIDDEN + BLOCK_H - 1) // BLOCK_H
    numbers: tl.constexpr = HIDDEN * (K + V)
    program = tl.program_id(0)
    block = program % blocks
    head = program // blocks % heads
    pair = (program // blocks).to(tl.int64)
    place = first.to(tl.int64) * heads + pair
    c = tl.arange(0, BLOCK_K)
    d = tl.arange(0, BLOCK_V)
    unit = block * BLOCK_H + tl.arange(0, BLOCK_H)
    inside = (d < V)[None, :]
    w1 = read_map(kept + place * numbers, c, unit, K, HIDDEN, 1, K)
    w2 = read_map(kept + place * numbers + HIDDEN * K, d, unit, V, HIDDEN, HIDDEN, 1)
    then1 = w1 * tl.load(stays + place)
    then2 = w2 * tl.load(stays + place)
    moment1 = then1
    moment2 = then2
    if MOMENTUM:
        moment1 = read_map(kept_moment + place * numbers, c, unit, K, HIDDEN, 1, K)
        moment2 = read_map(kept_moment + place * numbers + HIDDEN * K, d, unit, V, HIDDEN, HIDDEN, 1)
        then1 += moment1 * tl.load(speed + place)
        then2 += moment2 * tl.load(speed + place)
        moment1 = moment1 * tl.load(slows + place)
        moment2 = moment2 * tl.load(slows + place)
    of_weight, of_bias = read_norm(weight, bias, head, d, V, NORM)
    for begin in range(0, size, TILE):
        index = begin + tl.arange(0, TILE)
        key = read_rows(k + place * size * K, index, size, c, K)
        value = read_rows(v + place * size * V, index, size, d, V)
        x = value
        if RESIDUAL:
            x = read_rows(k + place * size * K, index, size, d, K)
        raw = added(parts + pair * blocks * size * V, index, size, d, V, blocks)
        if block == 0:
            to = raws + place * size * V
            tl.store(to + index[:, None] * V + d[None, :], raw, mask=(index < size)[:, None] & inside)
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
    goes_on = pair // heads < remain
    to = (then.to(tl.int64) * heads + pair) * numbers
    write_map(kept + to, c, unit, then1, goes_on, K, HIDDEN, 1, K)
    write_map(kept + to + HIDDEN * K, d, unit, then2, goes_on, V, HIDDEN, HIDDEN, 1)
    write_map(after + pair * numbers, c, unit, then1, not goes_on, K, HIDDEN, 1, K)
    write_map(after + pair * numbers + HIDDEN * K, d, unit, then2, not goes_on, V, HIDDEN, HIDDEN, 1)
    if MOMENTUM:
        write_map(kept_moment + to, c, unit, moment1, goes_on, K, HIDDEN, 1, K)
        write_map(kept_moment + to + HIDDEN * K, d, unit, moment2, goes_on, V, HIDDEN, HIDDEN, 1)
        write_map(after_moment + pair * numbers, c, unit, moment1, not goes_on, K, HIDDEN, 1, K)
        write_map(after_moment + pair * numbers + HIDDEN * K, d, unit, moment2, not goes_on, V, HIDDEN, HIDDEN, 1)


@triton.jit(do_not_specialize=["first", "heads", "size", "tiles"])
def blame_kernel(
    k, v, writes, pushes, weight, bias, kept, raws, by, by_moment, parts, within, first, heads, size, tiles,
    K: tl.constexpr, V: tl.constexpr, HIDDEN: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr,
    BLOCK_H: tl.constexpr, TILE: tl.constexpr,
    MOMENTUM: tl.constexpr, NORM: tl.constexpr, RESIDUAL: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    blocks: tl.constexpr = (HIDDEN + BLOCK_H - 1) // BLOCK_H
    numbers: tl.constexpr = HIDDEN * (K + V)
    program = tl.program_id(0)
    begin = program % tiles * TILE
    block = program // tiles % blocks
    pair = (program // (tiles * blocks)).to(tl.int64)
    place = first.to(tl.int64) * heads + pair
    head = (pair % heads).to(tl.int32)
    c = tl.arange(0, BLOCK_K)
    d = tl.arange(0, BLOCK_V)
    unit = block * BLOCK_H + tl.arange(0, BLOCK_H)
    index = begin + tl.arange(0, TILE)
    net = kept + place * numbers
    inside = (d < V)[None, :]
    of_weight, of_bias = read_norm(weight, bias, head, d, V, NORM)
    key = read_rows(k + place * size * K, index, size, c, K)
    value = read_rows(v + place * size * V, index, size, d, V)
    x = value
    if RESIDUAL:
        x = read_rows(k + place * size * K, index, size, d, K)
    raw = read_rows(raws + place * size * V, index, size, d, V)
    wrong = error(raw, x, value, of_weight, of_bias, inside, V, NORM, RESIDUAL)
    z = product(key, read_map(net, c, unit, K, HIDDEN, 1, K), PRECISION)
    hidden, slope, _ = gelu(z)
    outer = product(wrong, read_map(net + HIDDEN * K, d, unit, V, HIDDEN, HIDDEN, 1), PRECISION)
    amount = tl.load(writes + place * size + index, mask=index < size, other=0.0)[:, None]
    by_inner = -amount * product(key, read_map(by + pair * numbers, c, unit, K, HIDDEN, 1, K), PRECISION)
    of_map = read_map(by + pair * numbers + HIDDEN * K, unit, d, HIDDEN, V, 1, HIDDEN)
    by_wrong = -amount * product(hidden, of_map, PRECISION)
    if MOMENTUM:
        amount = tl.load(pushes + place * size + index, mask=index < size, other=0.0)[:, None]
        by_inner -= amount * product(key, read_map(by_moment + pair * numbers, c, unit, K, HIDDEN, 1, K), PRECISION)
        of_map = read_map(by_moment + pair * numbers + HIDDEN * K, unit, d, HIDDEN, V, 1, HIDDEN)
        by_wrong -= amount * product(hidden, of_map, PRECISION)
    of_map = read_map(net + HIDDEN * K, unit, d, HIDDEN, V, 1, HIDDEN)
    by_wrong += product(by_inner * slope, of_map, PRECISION)
    to = parts + (pair * blocks + block) * size * V
    tl.store(to + index[:, None] * V + d[None, :], by_wrong, mask=(index < size)[:, None] & inside)
    to = within + pair * (3 * size * HIDDEN) + index[:, None] * HIDDEN + unit[None, :]
    mask = (index < size)[:, None] & (unit < HIDDEN)[None, :]
    apart = (size * HIDDEN).to(tl.int64)
    tl.store(to, z, mask=mask)
    tl.store(to + apart, outer, mask=mask)
    tl.store(to + 2 * apart, by_inner, mask=mask)


@triton.jit(do_not_specialize=["first", "heads", "size"])
def back_kernel(
    k, v, writes, pushes, stays, speed, slows, weight, bias, kept, raws, kept_grad, kept_moment_grad, by, by_moment,
    rows_grad, rows_moment_grad, parts, within, first, heads, size,
    K: tl.constexpr, V: tl.constexpr, HIDDEN: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr,
    BLOCK_H: tl.constexpr, TILE: tl.constexpr,
    MOMENTUM: tl.constexpr, NORM: tl.constexpr, RESIDUAL: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    blocks: tl.constexpr = (HIDDEN + BLOCK_H - 1) // BLOCK_H
    numbers: tl.constexpr = HIDDEN * (K + V)
    second: tl.constexpr = HIDDEN * K
    program = tl.program_id(0)
    block = program % blocks
    head = program // blocks % heads
    pair = (program // blocks).to(tl.int64)
    place = first.to(tl.int64) * heads + pair
    c = tl.arange(0, BLOCK_K)
    d = tl.arange(0, BLOCK_V)
    unit = block * BLOCK_H + tl.arange(0, BLOCK_H)
    inside = (d < V)[None, :]
    own = pair * numbers
    row = place * numbers
    by1 = read_map(by + own, c, unit, K, HIDDEN, 1, K)
    by2 = read_map(by + own + second, d, unit, V, HIDDEN, HIDDEN, 1)
    write_map(rows_grad + row, c, unit, by1, True, K, HIDDEN, 1, K)
    write_map(rows_grad + row + second, d, unit, by2, True, V, HIDDEN, HIDDEN, 1)
    then1 = by1 * tl.load(stays + place) + read_map(kept_grad + row, c, unit, K, HIDDEN, 1, K)
    then2 = by2 * tl.load(stays + place) + read_map(kept_grad + row + second, d, unit, V, HIDDEN, HIDDEN, 1)
    moment2 = by2
    if MOMENTUM:
        moment1 = read_map(by_moment + own, c, unit, K, HIDDEN, 1, K)
        moment2 = read_map(by_moment + own + second, d, unit, V, HIDDEN, HIDDEN, 1)
        write_map(rows_moment_grad + row, c, unit, moment1, True, K, HIDDEN, 1, K)
        write_map(rows_moment_grad + row + second, d, unit, moment2, True, V, HIDDEN, HIDDEN, 1)
        early1 = by1 * tl.load(speed + place) + moment1 * tl.load(slows + place)
        early2 = by2 * tl.load(speed + place) + moment2 * tl.load(slows + place)
        early1 += read_map(kept_moment_grad + row, c, unit, K, HIDDEN, 1, K)
        early2 += read_map(kept_moment_grad + row + second, d, unit, V, HIDDEN, HIDDEN, 1)
        write_map(by_moment + own, c, unit, early1, True, K, HIDDEN, 1, K)
        write_map(by_moment + own + second, d, unit, early2, True, V, HIDDEN, HIDDEN, 1)
    w2 = read_map(kept + row + second, d, unit, V, HIDDEN, HIDDEN, 1)
    of_weight, of_bias = read_norm(weight, bias, head, d, V, NORM)
    for begin in range(0, size, TILE):
        index = begin + tl.arange(0, TILE)
        value = read_rows(v + place * size * V, index, size, d, V)
        x = value
        if RESIDUAL:
            x = read_rows(k + place * size * K, index, size, d, K)
        raw = read_rows(raws + place * size * V, index, size, d, V)
        wrong = error(raw, x, value, of_weight, of_bias, inside, V, NORM, RESIDUAL)
        by_wrong = added(parts + pair * blocks * size * V, index, size, d, V, blocks)
        by_raw = error_back(by_wrong, raw, x, value, of_weight, of_bias, inside, V, NORM, RESIDUAL)
        inner = within + pair * (3 * size * HIDDEN)
        hidden, slope, bend = gelu(read_rows(inner, index, size, unit, HIDDEN))
        apart = (size * HIDDEN).to(tl.int64)
        outer = read_rows(inner + apart, index, size, unit, HIDDEN)
        by_inner = read_rows(inner + 2 * apart, index, size, unit, HIDDEN)
        amount = tl.load(writes + place * size + index, mask=index < size, other=0.0)[:, None]
        by_hidden = product(by_raw, w2, PRECISION) - product(amount * wrong, by2, PRECISION)
        if MOMENTUM:
            amount = tl.load(pushes + place * size + index, mask=index < size, other=0.0)[:, None]
            by_hidden -= product(amount * wrong, moment2, PRECISION)
        by_z = by_hidden * slope + by_inner * outer * bend
        then1 += product(read_turned(k + place * size * K, index, size, c, K), by_z, PRECISION)
        then2 += product(tl.trans(wrong), by_inner * slope, PRECISION)
        then2 += product(tl.trans(by_raw), hidden, PRECISION)
    write_map(by + own, c, unit, then1, True, K, HIDDEN, 1, K)
    write_map(by + own + second, d, unit, then2, True, V, HIDDEN, HIDDEN, 1)


def settings(size, row, element_size, kernel):
    """A kernel's compile-time arguments for chunks of `size` tokens."""
    tokens, block, warps, stages = row
    found = {
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
    unknown = {"MOMENTUM", "NORM", "RESIDUAL"} if kernel is meet_kernel else set()
    return {name: value for name, value in found.items() if name not in unknown}


def variants(architecture, element_size):
    """Every kernel that `sweep` and `go_back` may launch, with its compile-time arguments."""
    row = BLOCKS[architecture, element_size]
    tiles = dict.fromkeys(tile_of(size, row[0]) for size in (16, 32, 64))
    kernels = meet_kernel, write_kernel, blame_kernel, back_kernel
    return tuple((kernel, settings(size, row, element_size, kernel)) for kernel in kernels for size in tiles)


class Launches:
    """The launches of a group: its tensors, numbers and compile-time arguments."""

    def __init__(self, given, blocks):
        row = blocks or BLOCKS[architecture(given.k.device), given.element_size]
        self.heads, self.size = given.k.shape[1:3]
        self.compiled = {
            kernel: settings(self.size, row, given.element_size, kernel)
            for kernel in (meet_kernel, write_kernel, blame_kernel, back_kernel)
        }
        first = self.compiled[meet_kernel]
        self.blocks, self.tiles = triton.cdiv(HIDDEN, first["BLOCK_H"]), triton.cdiv(self.size, first["TILE"])
        self.tensors = tuple(given.k if x is None else x for x in given.tensors)
        counts, self.rows, begin = given.counts, [], 0
        for count, remain in zip(counts, (*counts[1:], 0), strict=True):
            self.rows.append((begin, count, remain))
            begin += count
        self.parts = given.k.new_empty(counts[0], self.heads, self.blocks, self.size, VALUE_WIDTH, dtype=torch.float32)
        place = given.k.device, first["TILE"], first["BLOCK_H"], first["PRECISION"], first["num_warps"], first["num_stages"]
        self.keys = {kernel: (kernel, *place) for kernel in self.compiled}

    def run(self, kernel, programs, tensors, *numbers):
        """One launch."""
        run(kernel, programs, tensors, numbers, 0, self.keys[kernel], lambda: self.compiled[kernel])


def sweep(given, known, known_moment, *, blocks=None):
    """What sequences know before each chunk [R, heads, M] and after the last [S, heads, M], each with momentum, or None; and
    what the maps made of keys [R, heads, size, V].

    given: the chunks (runtime/fast_kernels.py); known, known_moment [S, heads, M], the latter None without momentum;
    blocks = (tokens, hidden units, warps, stages) instead of the table's.
    """
    launches, count = Launches(given, blocks), given.counts[0]
    heads, size = launches.heads, launches.size
    kept, after = known.new_empty(len(given.k), *known.shape[1:]), known.clone()
    kept[:count] = known[:count]
    kept_moment, after_moment = (torch.empty_like(kept), known_moment.clone()) if MOMENTUM else (kept, after)
    if MOMENTUM:
        kept_moment[:count] = known_moment[:count]
    raws = known.new_empty(*given.k.shape[:3], VALUE_WIDTH)
    k, written = launches.tensors[0], (*launches.tensors, kept, kept_moment, after, after_moment, raws, launches.parts)
    for first, count, remain in launches.rows:
        programs = count * heads * launches.blocks
        launches.run(meet_kernel, programs * launches.tiles, (k, kept, launches.parts), first, heads, size, launches.tiles)
        numbers = (first, first + count, remain, heads, size)
        launches.run(write_kernel, programs, written, *numbers)
    return kept, kept_moment if MOMENTUM else None, after, after_moment if MOMENTUM else None, raws


def go_back(given, kept, raw, kept_grad, kept_moment_grad, after_grad, after_moment_grad, *, blocks=None):
    """Gradients of what is known after each chunk [R, heads, M] and of what was known before the first [S, heads, M].

    kept, raw: what sequences knew before each chunk, and what maps made of keys; the others: gradients of `sweep`'s results.
    """
    launches = Launches(given, blocks)
    heads, size = launches.heads, launches.size
    rows, by = torch.empty_like(kept), after_grad.clone()
    rows_moment, by_moment = (torch.empty_like(kept), after_moment_grad.clone()) if MOMENTUM else (rows, by)
    within = launches.parts.new_empty(given.counts[0], heads, 3, size, HIDDEN)
    k, v, writes, pushes, _, _, _, *norm = launches.tensors
    asked = (k, v, writes, pushes, *norm, kept, raw, by, by_moment, launches.parts, within)
    held = (kept, raw, kept_grad, kept_moment_grad if MOMENTUM else kept_grad, by, by_moment, rows, rows_moment)
    held = (*launches.tensors, *held, launches.parts, within)
    for first, count, _ in reversed(launches.rows):
        programs = count * heads * launches.blocks
        launches.run(blame_kernel, programs * launches.tiles, asked, first, heads, size, launches.tiles)
        launches.run(back_kernel, programs, held, first, heads, size)
    return rows, rows_moment if MOMENTUM else None, by, by_moment if MOMENTUM else None
