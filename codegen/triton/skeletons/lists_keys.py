"""The gradients of keys and values over lists: a program has a block of keys of one unit (lists_backward.py launches it)."""

import triton
import triton.language as tl

from attnc.codegen.triton.skeletons.lists_parts import keep, read_row
from attnc.codegen.triton.skeletons.lists_queries import exponent, load_sums, product_grad

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
    k_acc, v_acc, key, value, j, row, place, i, head, live, listed, numbers, q, o_grad, lse, delta, scale, cap,
    q_token_stride, q_head_stride,
    D: tl.constexpr, E: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """The gradients of some keys with what a tile of queries adds: lines at positions i, of tokens `row` and heads."""
    SUMS_APART: tl.constexpr = q.dtype.element_ty == tl.float32
    d = tl.arange(0, BLOCK_D)[None, :]
    e = tl.arange(0, BLOCK_E)[None, :]
    query = tl.load(q + (row * q_token_stride + head * q_head_stride)[:, None] + d, mask=live[:, None] & (d < D), other=0.0)
    grad = tl.load(o_grad + place[:, None] * E + e, mask=live[:, None] & (e < E), other=0.0)
    sums = load_sums(lse, place[None, :], live[None, :])
    shared = tl.load(delta + place, mask=live, other=0.0)[None, :]
    scale_here = tl.load(scale + head, mask=live, other=0.0)[None, :]
    product = tl.dot(key, tl.trans(query), input_precision="ieee")
    weight_grad = tl.dot(value, tl.trans(grad), input_precision="ieee")
    power = exponent(product, scale_here, cap, sums)
    near_seen = keep(numbers, i[None, :], j)
    seen = tl.where(listed, (j <= i[None, :]) & (near_seen == 0), near_seen) & live[None, :]
    weight = tl.exp2(tl.where(seen, power, HIDDEN))
    change = product_grad(weight * (weight_grad - shared), product, scale_here, cap)
    if SUMS_APART:  # an accumulator of tl.dot would take one product after the other
        v_acc = tl.fma(tl.dot(weight, grad, input_precision="ieee"), 1.0, v_acc)
        k_acc = tl.fma(tl.dot(change, query, input_precision="ieee"), 1.0, k_acc)
    else:
        v_acc = tl.dot(weight.to(grad.dtype), grad, v_acc)
        k_acc = tl.dot(change.to(query.dtype), query, k_acc)
    return k_acc, v_acc


@triton.jit(do_not_specialize=["sequences", "kv_heads", "many", "at_once", "choosers", "units", "row_stride", "k_begin_stride",
                               "v_begin_stride"])  # fmt: skip
def keys_kernel(
    q, k, v, lse, delta, o_grad, k_grad, v_grad, rows, readers, reader_begin, offsets, past, stored, base, k_begin, v_begin,
    k_grad_begin, v_grad_begin, scale, cap, sequences, kv_heads, many, at_once, choosers, units, q_token_stride, q_head_stride,
    k_stride, v_stride, row_stride, k_begin_stride, v_begin_stride,
    ROW: tl.constexpr, GROUP: tl.constexpr, MEMBERS: tl.constexpr, UNIT: tl.constexpr, D: tl.constexpr, E: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    PIECES: tl.constexpr = (UNIT + BLOCK_K - 1) // BLOCK_K  # of a unit
    SETS: tl.constexpr = GROUP // MEMBERS
    program = tl.program_id(0)
    group = program % kv_heads
    sequence = program // kv_heads % sequences
    block = program // (kv_heads * sequences)
    base_here = tl.load(base + sequence)
    slots = tl.load(stored + sequence)
    unit = base_here // UNIT + block // PIECES
    inside = block % PIECES * BLOCK_K + tl.arange(0, BLOCK_K)
    slot = unit * UNIT + inside - base_here
    if unit * UNIT + block % PIECES * BLOCK_K - base_here >= slots:
        return
    token_begin = tl.load(offsets + sequence)
    count = (tl.load(offsets + sequence + 1) - token_begin).to(tl.int32)
    numbers = read_row(rows + sequence * row_stride + group * ROW)
    start = tl.load(past + sequence).to(tl.int32)

    d = tl.arange(0, BLOCK_D)[None, :]
    e = tl.arange(0, BLOCK_E)[None, :]
    there = ((slot >= 0) & (slot < slots) & (inside < UNIT))[:, None]
    at = slot.to(tl.int64)[:, None]
    k_first = tl.load(k_begin + sequence * k_begin_stride + group)
    v_first = tl.load(v_begin + sequence * v_begin_stride + group)
    key = tl.load(k + k_first + at * k_stride + d, mask=there & (d < D), other=0.0)
    value = tl.load(v + v_first + at * v_stride + e, mask=there & (e < E), other=0.0)
    j = tl.where(there, (base_here + slot)[:, None], NOWHERE)
    k_acc = tl.zeros([BLOCK_K, BLOCK_D], tl.float32)
    v_acc = tl.zeros([BLOCK_K, BLOCK_E], tl.float32)

    first = tl.maximum(unit * UNIT + block % PIECES * BLOCK_K, base_here)
    last = tl.minimum(base_here + slots, tl.minimum(unit * UNIT + block % PIECES * BLOCK_K + BLOCK_K, (unit + 1) * UNIT)) - 1
    visits = visit_queries(numbers, first, last, start, count, BLOCK_R)
    line = tl.arange(0, BLOCK_R)
    for turn in tl.range(0, visits[-1] * GROUP):
        head = group * GROUP + turn % GROUP + line * 0
        token = query_block_of(visits, turn // GROUP, count, BLOCK_R) * BLOCK_R + line
        row = token_begin + token
        place = row * (kv_heads * GROUP) + head
        k_acc, v_acc = add_keys(
            k_acc, v_acc, key, value, j, row, place, start + token, head, token < count, False, numbers, q, o_grad, lse, delta,
            scale, cap, q_token_stride, q_head_stride, D, E, BLOCK_D, BLOCK_E,
        )  # fmt: skip
    for member in tl.static_range(0, SETS):
        chooser = tl.where(choosers > 1, group * SETS + member, 0)
        own = reader_begin + ((sequence * choosers + chooser).to(tl.int64) * units + unit)
        begin = tl.load(own)
        lines = (tl.load(own + 1) - begin) * at_once * MEMBERS
        for step in tl.range(0, tl.cdiv(lines, BLOCK_R)):
            one = step * BLOCK_R + line
            list_row = tl.load(readers + begin + one // (at_once * MEMBERS), mask=one < lines, other=0)
            row_from = (start // many + list_row) * many
            i = tl.maximum(start, row_from) + (one // MEMBERS % at_once).to(tl.int32)
            live = (one < lines) & (i < tl.minimum(start + count, row_from + many))
            head = group * GROUP + member * MEMBERS + (one % MEMBERS).to(tl.int32)
            row = token_begin + i - start
            place = row * (kv_heads * GROUP) + head
            k_acc, v_acc = add_keys(
                k_acc, v_acc, key, value, j, row, place, i, head, live, True, numbers, q, o_grad, lse, delta, scale, cap,
                q_token_stride, q_head_stride, D, E, BLOCK_D, BLOCK_E,
            )  # fmt: skip
    k_there = k_grad + tl.load(k_grad_begin + sequence * kv_heads + group) + at * k_stride
    v_there = v_grad + tl.load(v_grad_begin + sequence * kv_heads + group) + at * v_stride
    tl.store(k_there + d, k_acc.to(k_grad.dtype.element_ty), mask=there & (d < D))
    tl.store(v_there + e, v_acc.to(v_grad.dtype.element_ty), mask=there & (e < E))
