"""The gradients of queries over lists of single queries, unit by unit (lists_backward.py launches these; see lists_units.py).

A unit's program reads its keys and values once and gathers the queries that list it. What a unit adds to a query's gradient is
left in fp32 at the query's place of the unit in its list; `add_kernel` adds these to what the intervals gave.
"""

import triton
import triton.language as tl

from attnc.codegen.triton.skeletons.lists_parts import keep, read_row
from attnc.codegen.triton.skeletons.lists_queries import exponent, load_sums, product_grad

HIDDEN = tl.constexpr(-1e30)  # logarithm of the weight of a key that is not seen
NOWHERE = tl.constexpr(2**30)  # position of a slot that holds no key


@triton.jit(do_not_specialize=["kv_heads", "units", "shares", "of_heads", "choosers", "chunk", "most", "row_from", "row_stride",
                               "k_begin_stride", "v_begin_stride"])  # fmt: skip
def unit_queries_kernel(
    q, k, v, lse, delta, o_grad, parts, rows, readers, reader_begin, offsets, past, stored, base, k_begin, v_begin, scale, cap,
    kv_heads, units, shares, of_heads, choosers, chunk, most, row_from, q_token_stride, q_head_stride, k_stride, v_stride,
    row_stride, k_begin_stride, v_begin_stride,
    ROW: tl.constexpr, GROUP: tl.constexpr, MEMBERS: tl.constexpr, UNIT: tl.constexpr, D: tl.constexpr, E: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    SETS: tl.constexpr = GROUP // MEMBERS
    program = tl.program_id(0)
    share = program % shares
    unit = program // shares % units
    set_ = program // (shares * units) % (kv_heads * SETS)
    sequence = program // (shares * units * kv_heads * SETS)
    group = set_ // SETS
    own = reader_begin + ((sequence * choosers + set_ * of_heads).to(tl.int64) * units + unit)
    begin = tl.load(own)
    lines = (tl.load(own + 1) - begin) * MEMBERS
    if share * BLOCK_R >= lines:
        return
    token_begin = tl.load(offsets + sequence)
    start = tl.load(past + sequence).to(tl.int32)
    base_here = tl.load(base + sequence)
    slots = tl.load(stored + sequence)
    numbers = read_row(rows + sequence * row_stride + group * ROW)
    d = tl.arange(0, BLOCK_D)[None, :]
    e = tl.arange(0, BLOCK_E)[None, :]
    inside = tl.arange(0, BLOCK_K)
    slot = unit * UNIT + inside - base_here
    here = (slot >= 0) & (slot < slots) & (inside < UNIT)
    at = slot.to(tl.int64)[:, None]
    k_first = tl.load(k_begin + sequence * k_begin_stride + group)
    v_first = tl.load(v_begin + sequence * v_begin_stride + group)
    key = tl.load(k + k_first + at * k_stride + d, mask=here[:, None] & (d < D), other=0.0)
    value = tl.load(v + v_first + at * v_stride + e, mask=here[:, None] & (e < E), other=0.0)
    j = tl.where(here, base_here + slot, NOWHERE)[None, :]
    line = tl.arange(0, BLOCK_R)
    for step in tl.range(share, tl.cdiv(lines, BLOCK_R), shares):
        one = step * BLOCK_R + line
        live = one < lines
        pair = tl.load(readers + begin + one // MEMBERS, mask=live, other=0)
        token = pair // most % chunk + row_from
        head = set_ * MEMBERS + one % MEMBERS
        i = (start + (token - token_begin).to(tl.int32))[:, None]
        row = token.to(tl.int64)
        place = row * (kv_heads * GROUP) + head
        query = tl.load(q + (row * q_token_stride + head * q_head_stride)[:, None] + d, mask=live[:, None] & (d < D), other=0.0)
        grad = tl.load(o_grad + place[:, None] * E + e, mask=live[:, None] & (e < E), other=0.0)
        sums = load_sums(lse, place[:, None], live[:, None])
        shared = tl.load(delta + place, mask=live, other=0.0)[:, None]
        scale_here = tl.load(scale + head, mask=live, other=0.0)[:, None]
        product = tl.dot(query, tl.trans(key), input_precision="ieee")
        weight_grad = tl.dot(grad, tl.trans(value), input_precision="ieee")
        power = exponent(product, scale_here, cap, sums)
        power = tl.where((j <= i) & (keep(numbers, i, j) == 0), power, HIDDEN)
        change = product_grad(tl.exp2(power) * (weight_grad - shared), product, scale_here, cap)
        part = tl.dot(change.to(key.dtype), key, input_precision="ieee")
        there = ((set_ * chunk + pair // most % chunk).to(tl.int64) * most + pair % most) * MEMBERS + one % MEMBERS
        tl.store(parts + there[:, None] * D + d, part, mask=live[:, None] & (d < D))


@triton.jit(do_not_specialize=["sets", "of_heads", "chunk", "most", "row_from", "list_rows"])
def add_kernel(
    parts, near, q_grad, counts, sets, of_heads, chunk, most, row_from, list_rows,
    MEMBERS: tl.constexpr, D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """One query with the heads that share its list: what intervals gave, in `near`, and the parts of its units."""
    set_ = tl.program_id(0) % sets
    token = tl.program_id(0) // sets
    listed = tl.load(counts + (set_ * of_heads).to(tl.int64) * list_rows + row_from + token)
    member = tl.arange(0, BLOCK_M)[:, None]
    d = tl.arange(0, BLOCK_D)[None, :]
    there = (member < MEMBERS) & (d < D)
    place = (row_from + token).to(tl.int64) * (sets * MEMBERS) + set_ * MEMBERS + member
    acc = tl.load(near + place * D + d, mask=there, other=0.0)
    first = ((set_ * chunk + token).to(tl.int64) * most) * MEMBERS + member
    for at in tl.range(0, tl.maximum(listed, 0)):
        acc += tl.load(parts + (first + at * MEMBERS) * D + d, mask=there, other=0.0)
    tl.store(q_grad + place * D + d, acc.to(q_grad.dtype.element_ty), mask=there)
