"""The gradients of queries over lists: a program walks the keys of its tile again (lists_backward.py launches it)."""

import triton
import triton.language as tl

from attnc.codegen.triton.skeletons.lists_parts import block_of, chosen, keep, read_row, visit
from attnc.codegen.triton.skeletons.lists_tiles import apart, solid

LOG2E = tl.constexpr(1.4426950408889634)
HIDDEN = tl.constexpr(-1e30)  # logarithm of the weight of a key that is not seen
EMPTY = tl.constexpr(1e30)  # log-sum-exp of a query without keys: nothing has a weight beside it
NOWHERE = tl.constexpr(2**30)  # position of a slot that holds no key; also "no bound"


@triton.jit
def load_sums(lse, place, live):
    """What the forward pass left of a query: the log-sum-exp of its scores, to base 2; NaN stays."""
    sums = tl.load(lse + place, mask=live, other=float("-inf"))
    return tl.where(sums == float("-inf"), EMPTY, sums * LOG2E)


@triton.jit
def exponent(product, scale, cap, sums):
    """The logit of a query and a key less the query's log-sum-exp, to base 2."""
    return product * (scale * LOG2E) - sums


@triton.jit
def product_grad(grad, product, scale, cap):
    """The gradient of a query's and a key's product, from that of their logit."""
    return grad * scale


@triton.jit(do_not_specialize=["kv_heads", "tiles", "row_tiles", "many", "list_rows", "width", "of_heads", "row_stride",
                               "k_begin_stride", "v_begin_stride"])  # fmt: skip
def queries_kernel(
    q, k, v, o, lse, o_grad, lse_grad, q_grad, delta, rows, index, counts, row_begin, offsets, past, stored, base, k_begin,
    v_begin, scale, cap, kv_heads, tiles, row_tiles, many, list_rows, width, of_heads, q_token_stride, q_head_stride, k_stride,
    v_stride, row_stride, k_begin_stride, v_begin_stride,
    ROW: tl.constexpr, GROUP: tl.constexpr, MEMBERS: tl.constexpr, UNIT: tl.constexpr, D: tl.constexpr, E: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    SUMS_APART: tl.constexpr = q.dtype.element_ty == tl.float32
    WHOLE_BLOCKS: tl.constexpr = UNIT % BLOCK_K == 0
    QUERIES: tl.constexpr = BLOCK_R // MEMBERS
    SETS: tl.constexpr = GROUP // MEMBERS
    program = tl.program_id(0)
    member = program % SETS
    tile = tiles - 1 - program // SETS % tiles
    group = program // (SETS * tiles) % kv_heads
    sequence = program // (SETS * tiles * kv_heads)

    token_begin = tl.load(offsets + sequence)
    tokens = (tl.load(offsets + sequence + 1) - token_begin).to(tl.int32)
    start = tl.load(past + sequence).to(tl.int32)
    list_row = tile // row_tiles
    row_from = (start // many + list_row) * many
    first = tl.maximum(start, row_from) + tile % row_tiles * QUERIES
    end = tl.minimum(start + tokens, row_from + many)
    if first >= end:
        return
    last = tl.minimum(first + QUERIES, end) - 1
    numbers = read_row(rows + sequence * row_stride + group * ROW)
    slots = tl.load(stored + sequence)
    base_here = tl.load(base + sequence)

    line = tl.arange(0, BLOCK_R)
    token = first - start + line // MEMBERS
    head = group * GROUP + member * MEMBERS + line % MEMBERS
    live = (line < QUERIES * MEMBERS) & (start + token < end)
    d = tl.arange(0, BLOCK_D)[None, :]
    e = tl.arange(0, BLOCK_E)[None, :]
    i = (start + token)[:, None]
    row = token_begin + token
    place = row * (kv_heads * GROUP) + head
    in_q = live[:, None] & (d < D)
    in_o = live[:, None] & (e < E)
    query = tl.load(q + (row * q_token_stride + head * q_head_stride)[:, None] + d, mask=in_q, other=0.0)
    grad = tl.load(o_grad + place[:, None] * E + e, mask=in_o, other=0.0)
    result = tl.load(o + place[:, None] * E + e, mask=in_o, other=0.0)
    shared = tl.sum(result.to(tl.float32) * grad.to(tl.float32), 1) - tl.load(lse_grad + place, mask=live, other=0.0)
    tl.store(delta + place, shared, mask=live)
    sums = load_sums(lse, place[:, None], live[:, None])
    scale_here = tl.load(scale + head)[:, None]
    k_first = tl.multiple_of(tl.load(k_begin + sequence * k_begin_stride + group), D & -D)
    v_first = tl.multiple_of(tl.load(v_begin + sequence * v_begin_stride + group), E & -E)

    chooser = (group * SETS + member) * of_heads  # of_heads 0: one list for all
    list_place = chooser.to(tl.int64) * list_rows + tl.load(row_begin + sequence) + list_row
    count = tl.maximum(tl.load(counts + list_place), 0)
    index_here = index + list_place * width
    visits = visit(numbers, first, last, base_here, slots, False, BLOCK_K)
    near_steps = visits[-1]
    steps = near_steps + tl.cdiv(count * UNIT, BLOCK_K)
    acc = tl.zeros([BLOCK_R, BLOCK_D], tl.float32)
    ahead = chosen(index_here, count, -near_steps, base_here, UNIT, BLOCK_K)
    for step in tl.range(0, steps):
        listed = step >= near_steps
        near = block_of(visits, step, base_here, slots, BLOCK_K) * BLOCK_K
        if WHOLE_BLOCKS:
            begin = tl.where(listed, ahead, near)
            slot = begin + tl.arange(0, BLOCK_K)
            begins = base_here + begin
            solid_near = solid(numbers, first, last, begins, begins + BLOCK_K)
            solid_listed = (begins + BLOCK_K <= first + 1) & apart(numbers, first, begins, begins + BLOCK_K)
            whole = (begin >= 0) & (begin + BLOCK_K <= slots) & tl.where(listed, solid_listed, solid_near)
        else:
            slot = tl.where(listed, ahead, near + tl.arange(0, BLOCK_K))
            whole = False
        ahead = chosen(index_here, count, step + 1 - near_steps, base_here, UNIT, BLOCK_K)
        here = (slot >= 0) & (slot < slots)
        at = slot.to(tl.int64)[:, None]
        key = tl.load(k + k_first + at * k_stride + d, mask=here[:, None] & (d < D), other=0.0)
        value = tl.load(v + v_first + at * v_stride + e, mask=here[:, None] & (e < E), other=0.0)
        product = tl.dot(query, tl.trans(key), input_precision="ieee")
        weight_grad = tl.dot(grad, tl.trans(value), input_precision="ieee")
        power = exponent(product, scale_here, cap, sums)
        if not whole:
            j = tl.where(here, base_here + slot, NOWHERE)[None, :]
            near_seen = keep(numbers, i, j)
            power = tl.where(tl.where(listed, (j <= i) & (near_seen == 0), near_seen), power, HIDDEN)
        change = tl.exp2(power) * (weight_grad - shared[:, None])
        change = product_grad(change, product, scale_here, cap)
        if SUMS_APART:  # an accumulator of tl.dot would take one product after the other
            acc = tl.fma(tl.dot(change, key, input_precision="ieee"), 1.0, acc)
        else:
            acc = tl.dot(change.to(key.dtype), key, acc)
    q_there = q_grad + (place * D)[:, None] + d
    tl.store(q_there, acc.to(q_grad.dtype.element_ty), mask=in_q)
