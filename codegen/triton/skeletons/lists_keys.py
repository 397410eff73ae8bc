"""The gradients of keys and values over lists: a program has a block of keys of one unit (lists_backward.py launches it)."""

import triton
import triton.language as tl

from attnc.codegen.triton.skeletons.lists_parts import keep, read_row
from attnc.codegen.triton.skeletons.lists_queries import exponent, load_sums, product_grad
from attnc.codegen.triton.skeletons.lists_tiles import apart, solid

HIDDEN = tl.constexpr(-1e30)  # logarithm of the weight of a key that is not seen
NOWHERE = tl.constexpr(2**30)  # position of a slot that holds no key; also "no bound"


@triton.jit
def seen_from(numbers, j):
    """The first query that sees key j, and no later one than for the next key."""
    return j


@triton.jit
def seen_until(numbers, j):
    """One past the last query near key j that sees it."""
    sink, align, shift, back, ahead = numbers
    return ((j + shift + back) // align + 1) * align - shift


@triton.jit
def visit_queries(numbers, first, last, start, count, BLOCK_Q: tl.constexpr):
    """Which query blocks see the keys at first..last: the first one, how many in all."""
    begin = tl.minimum(tl.maximum(seen_from(numbers, first) - start, 0), count)
    until = tl.where(first < numbers[0], NOWHERE, seen_until(numbers, last))
    end = tl.minimum(tl.maximum(until - start, 0), count)
    return begin // BLOCK_Q, tl.where(begin < end, tl.cdiv(end, BLOCK_Q) - begin // BLOCK_Q, 0)


@triton.jit
def query_block_of(visits, step, count, BLOCK_Q: tl.constexpr):
    """The query block of a step."""
    first_block, steps = visits
    return first_block + step


@triton.jit
def add_keys(
    k_acc, v_acc, key, value, j, whole, row, place, i, head, live, scale_here, numbers, q, o_grad, lse, delta, cap,
    q_token_stride, q_head_stride,
    LISTED: tl.constexpr, D: tl.constexpr, E: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """The gradients of some keys with what a tile of queries adds: lines at positions i, of tokens `row` and heads.

    `whole`: every line sees every key. Lines that are no queries have no weight, whatever they see.
    """
    SUMS_APART: tl.constexpr = q.dtype.element_ty == tl.float32
    d = tl.arange(0, BLOCK_D)[None, :]
    e = tl.arange(0, BLOCK_E)[None, :]
    query = tl.load(q + (row * q_token_stride + head * q_head_stride)[:, None] + d, mask=live[:, None] & (d < D), other=0.0)
    grad = tl.load(o_grad + place[:, None] * E + e, mask=live[:, None] & (e < E), other=0.0)
    sums = load_sums(lse, place[None, :], live[None, :])
    shared = tl.load(delta + place, mask=live, other=0.0)[None, :]
    product = tl.dot(key, tl.trans(query), input_precision="ieee")
    weight_grad = tl.dot(value, tl.trans(grad), input_precision="ieee")
    power = exponent(product, scale_here, cap, sums)
    if not whole:
        seen = keep(numbers, i[None, :], j)
        if LISTED:
            seen = (j <= i[None, :]) & (seen == 0)
        power = tl.where(seen, power, HIDDEN)
    weight = tl.exp2(power)
    change = product_grad(weight * (weight_grad - shared), product, scale_here, cap)
    if SUMS_APART:  # an accumulator of tl.dot would take one product after the other
        v_acc = tl.fma(tl.dot(weight, grad, input_precision="ieee"), 1.0, v_acc)
        k_acc = tl.fma(tl.dot(change, query, input_precision="ieee"), 1.0, k_acc)
    else:
        v_acc = tl.dot(weight.to(grad.dtype), grad, v_acc)
        k_acc = tl.dot(change.to(query.dtype), query, k_acc)
    return k_acc, v_acc


@triton.jit
def reader_of(readers, begin, line, lines, each, TILES: tl.constexpr):
    """Who reads the unit at some lines of those that do, `each` of them for a reader; one number where a tile has one."""
    if TILES:
        reader = tl.load(readers + begin + line // each, mask=line < lines, other=0)
    else:
        reader = tl.load(readers + (begin + line // each), mask=line < lines, other=0)
    return reader


@triton.jit(do_not_specialize=["sequences", "kv_heads", "many", "at_once", "row_tiles", "choosers", "units", "row_stride",
                               "k_begin_stride", "v_begin_stride"])  # fmt: skip
def keys_kernel(
    q, k, v, lse, delta, o_grad, k_grad, v_grad, rows, readers, reader_begin, offsets, past, stored, base, k_begin, v_begin,
    k_grad_begin, v_grad_begin, scale, cap, sequences, kv_heads, many, at_once, row_tiles, choosers, units, q_token_stride,
    q_head_stride, k_stride, v_stride, k_grad_stride, v_grad_stride, row_stride, k_begin_stride, v_begin_stride,
    ROW: tl.constexpr, GROUP: tl.constexpr, MEMBERS: tl.constexpr, UNIT: tl.constexpr, D: tl.constexpr, E: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr, TILES: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    PIECES: tl.constexpr = (UNIT + BLOCK_K - 1) // BLOCK_K  # of a unit
    SETS: tl.constexpr = GROUP // MEMBERS
    QUERIES: tl.constexpr = BLOCK_R // MEMBERS
    program = tl.program_id(0)
    group = program % kv_heads
    sequence = program // kv_heads % sequences
    block = program // (kv_heads * sequences)
    base_here = tl.load(base + sequence)
    slots = tl.load(stored + sequence)
    unit = base_here // UNIT + block // PIECES
    begin = unit * UNIT + block % PIECES * BLOCK_K
    if begin - base_here >= slots:
        return
    token_begin = tl.load(offsets + sequence)
    count = (tl.load(offsets + sequence + 1) - token_begin).to(tl.int32)
    numbers = read_row(rows + sequence * row_stride + group * ROW)
    start = tl.load(past + sequence).to(tl.int32)

    own = tl.arange(0, BLOCK_K)[:, None]
    d = tl.arange(0, BLOCK_D)[None, :]
    e = tl.arange(0, BLOCK_E)[None, :]
    first = tl.maximum(begin, base_here)
    last = tl.minimum(base_here + slots, tl.minimum(begin + BLOCK_K, (unit + 1) * UNIT)) - 1
    full = last - first + 1 == BLOCK_K
    there = (begin + own >= first) & (begin + own <= last)
    zero = (begin - base_here).to(tl.int64)  # the slot of the first key, before 0 where the text begins within a unit
    k_there = k + (tl.load(k_begin + sequence * k_begin_stride + group) + zero * k_stride)
    v_there = v + (tl.load(v_begin + sequence * v_begin_stride + group) + zero * v_stride)
    key = tl.load(k_there + (own * k_stride + d), mask=there & (d < D), other=0.0)
    value = tl.load(v_there + (own * v_stride + e), mask=there & (e < E), other=0.0)
    j = tl.where(there, begin + own, NOWHERE)
    k_acc = tl.zeros([BLOCK_K, BLOCK_D], tl.float32)
    v_acc = tl.zeros([BLOCK_K, BLOCK_E], tl.float32)

    visits = visit_queries(numbers, first, last, start, count, BLOCK_R)
    line = tl.arange(0, BLOCK_R)
    for turn in tl.range(0, visits[-1] * GROUP):
        head = group * GROUP + turn % GROUP
        tile = query_block_of(visits, turn // GROUP, count, BLOCK_R) * BLOCK_R
        token = tile + line
        row = token_begin + token
        whole = full & solid(numbers, start + tile, start + tile + BLOCK_R - 1, first, last + 1)
        k_acc, v_acc = add_keys(
            k_acc, v_acc, key, value, j, whole, row, row * (kv_heads * GROUP) + head, start + token, head, token < count,
            tl.load(scale + head), numbers, q, o_grad, lse, delta, cap, q_token_stride, q_head_stride, False, D, E, BLOCK_D,
            BLOCK_E,
        )  # fmt: skip

    # The readers of a unit lie side by side: by KV head, then by heads with a list of their own, then by rows.
    of_unit = reader_begin + ((sequence.to(tl.int64) * units + unit) * choosers + tl.where(choosers > 1, group * SETS, 0))
    first_line = tl.load(of_unit)
    last_line = tl.load(of_unit + tl.where(choosers > 1, SETS, 1))
    each = row_tiles if TILES else at_once * MEMBERS
    lines = (last_line - first_line) * each
    step_lines: tl.constexpr = 1 if TILES else BLOCK_R
    ahead = reader_of(readers, first_line, 0 if TILES else line, lines, each, TILES)
    for step in tl.range(0, tl.cdiv(lines, step_lines)):
        reader = ahead
        one = step if TILES else step * BLOCK_R + line
        ahead = reader_of(readers, first_line, one + step_lines, lines, each, TILES)
        row_from = (start // many + reader // SETS) * many
        end = tl.minimum(start + count, row_from + many)
        if TILES:  # no query before the first key sees any
            i = tl.maximum(tl.maximum(start, row_from), first) + one % row_tiles * QUERIES + line // MEMBERS
            live = (line < QUERIES * MEMBERS) & (i < end)
            member = line % MEMBERS if MEMBERS > 1 else 0
        else:
            i = tl.maximum(start, row_from) + one // MEMBERS % at_once
            live = (one < lines) & (i < end)
            member = one % MEMBERS
        head = group * GROUP + reader % SETS * MEMBERS + member
        scale_here = tl.load(scale + head)
        if not TILES or MEMBERS > 1:
            scale_here = scale_here[None, :]
        row = token_begin + i - start
        earliest = tl.min(tl.where(live, i, NOWHERE), 0)
        whole = full & (last <= earliest) & apart(numbers, earliest, first, last + 1)
        k_acc, v_acc = add_keys(
            k_acc, v_acc, key, value, j, whole, row, row * (kv_heads * GROUP) + head, i, head, live, scale_here, numbers, q,
            o_grad, lse, delta, cap, q_token_stride, q_head_stride, True, D, E, BLOCK_D, BLOCK_E,
        )  # fmt: skip
    # Strides and a mask of their own, so that no address of above stays in a register all the while.
    stays = (own >= tl.maximum(base_here - begin, 0)) & (own < last + 1 - begin)
    k_there = k_grad + (tl.load(k_grad_begin + sequence * kv_heads + group) + zero * k_grad_stride)
    v_there = v_grad + (tl.load(v_grad_begin + sequence * kv_heads + group) + zero * v_grad_stride)
    tl.store(k_there + (own * k_grad_stride + d), k_acc.to(k_grad.dtype.element_ty), mask=stays & (d < D))
    tl.store(v_there + (own * v_grad_stride + e), v_acc.to(v_grad.dtype.element_ty), mask=stays & (e < E))
