"""Lists of single queries, unit by unit: a program has the keys of a unit, and gathers the queries that list it.

Read by queries, a list's keys serve one query's heads alone: for a few heads a tile is mostly empty, and the keys of every list
pass through a multiprocessor. Here they are read once, and lines of a tile are queries from anywhere. What a unit gives a query
is a part of its softmax: a normalised result and a log-sum-exp, left at the query's place of the unit in its list;
`join_kernel` adds up the parts of a query (lists_attend.py launches these).
"""

import torch
import triton
import triton.language as tl

from attnc.codegen.triton.skeletons.lists_parts import adjust_score, keep, read_row

HIDDEN = tl.constexpr(-1e30)  # score of a key that is not seen
FLOOR = tl.constexpr(-1e29)  # least maximum: HIDDEN has no weight beside it
NOWHERE = tl.constexpr(2**30)  # position of a slot that holds no key
LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit(do_not_specialize=["kv_heads", "units", "shares", "of_heads", "choosers", "chunk", "most", "row_from", "row_stride",
                               "k_begin_stride", "v_begin_stride"])  # fmt: skip
def units_kernel(
    q, k, v, values, sums, rows, readers, reader_begin, offsets, past, stored, base, k_begin, v_begin, scale, cap, kv_heads,
    units, shares, of_heads, choosers, chunk, most, row_from, q_token_stride, q_head_stride, k_stride, v_stride, row_stride,
    k_begin_stride, v_begin_stride,
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
    d = tl.arange(0, BLOCK_D)
    e = tl.arange(0, BLOCK_E)
    inside = tl.arange(0, BLOCK_K)
    slot = unit * UNIT + inside - base_here
    here = (slot >= 0) & (slot < slots) & (inside < UNIT)
    at = slot.to(tl.int64)
    k_first = tl.load(k_begin + sequence * k_begin_stride + group)
    v_first = tl.load(v_begin + sequence * v_begin_stride + group)
    in_k = here[None, :] & (d < D)[:, None]
    key = tl.load(k + k_first + at[None, :] * k_stride + d[:, None], mask=in_k, other=0.0)
    in_v = here[:, None] & (e < E)[None, :]
    value = tl.load(v + v_first + at[:, None] * v_stride + e[None, :], mask=in_v, other=0.0)
    j = tl.where(here, base_here + slot, NOWHERE)[None, :]
    line = tl.arange(0, BLOCK_R)
    for step in tl.range(share, tl.cdiv(lines, BLOCK_R), shares):
        one = step * BLOCK_R + line
        live = one < lines
        pair = tl.load(readers + begin + one // MEMBERS, mask=live, other=0)
        token = pair // most % chunk + row_from
        head = set_ * MEMBERS + one % MEMBERS
        i = (start + (token - token_begin).to(tl.int32))[:, None]
        q_there = q + (token.to(tl.int64) * q_token_stride + head * q_head_stride)[:, None] + d[None, :]
        query = tl.load(q_there, mask=live[:, None] & (d < D)[None, :], other=0.0)
        product = tl.dot(query, key, input_precision="ieee")
        score = adjust_score(product, tl.load(scale + head, mask=live, other=0.0)[:, None], cap)
        score = tl.where((j <= i) & (keep(numbers, i, j) == 0), score, HIDDEN)
        best = tl.maximum(tl.max(score, 1), FLOOR)
        weight = tl.exp2(score - best[:, None])
        norm = tl.sum(weight, 1)
        acc = tl.dot(weight.to(value.dtype), value, input_precision="ieee")
        acc = acc * (1.0 / tl.where(norm != 0.0, norm, 1.0))[:, None]
        place = ((set_ * chunk + pair // most % chunk).to(tl.int64) * most + pair % most) * MEMBERS + one % MEMBERS
        there = live[:, None] & (e < E)[None, :]
        tl.store(values + place[:, None] * E + e[None, :], acc.to(values.dtype.element_ty), mask=there)
        total = tl.where(norm != 0.0, best + tl.log2(tl.where(norm != 0.0, norm, 1.0)), float("-inf"))
        tl.store(sums + place, total, mask=live)


@triton.jit(do_not_specialize=["sets", "of_heads", "chunk", "most", "row_from", "list_rows"])
def join_kernel(
    values, sums, near, o, lse, counts, sets, of_heads, chunk, most, row_from, list_rows,
    MEMBERS: tl.constexpr, E: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """One query with the heads that share its list: what intervals gave, in `near` and `lse`, and the parts of its units."""
    set_ = tl.program_id(0) % sets
    token = tl.program_id(0) // sets
    listed = tl.load(counts + (set_ * of_heads).to(tl.int64) * list_rows + row_from + token)
    member = tl.arange(0, BLOCK_M)
    e = tl.arange(0, BLOCK_E)
    live = member < MEMBERS
    there = live[:, None] & (e < E)[None, :]
    place = (row_from + token).to(tl.int64) * (sets * MEMBERS) + set_ * MEMBERS + member
    best = tl.load(lse + place, mask=live, other=0.0) * LOG2E
    acc = tl.load(near + place[:, None] * E + e[None, :], mask=there, other=0.0)
    norm = tl.where(best == float("-inf"), 0.0, 1.0)
    best = tl.where(best == float("-inf"), FLOOR, best)
    first = ((set_ * chunk + token).to(tl.int64) * most) * MEMBERS + member
    for at in tl.range(0, tl.maximum(listed, 0)):
        total = tl.load(sums + first + at * MEMBERS, mask=live, other=float("-inf"))
        part = tl.load(values + (first + at * MEMBERS)[:, None] * E + e[None, :], mask=there, other=0.0)
        peak = tl.maximum(best, total)
        fade, weight = tl.exp2(best - peak), tl.exp2(total - peak)
        norm = norm * fade + weight
        acc = acc * fade[:, None] + part.to(tl.float32) * weight[:, None]
        best = peak
    norm = tl.where(listed < 0, float("nan"), norm)
    some = tl.where(norm != 0.0, norm, 1.0)
    result = tl.where(norm != 0.0, (best + tl.log2(some)) * LN2, float("-inf"))
    tl.store(o + place[:, None] * E + e[None, :], (acc / some[:, None]).to(o.dtype.element_ty), mask=there)
    tl.store(lse + place, result, mask=live)


def gathered(index, counts, row_begin, row_from, sequences, units, by_chooser=True):
    """Who lists each unit, of some rows: (chooser, row, place in its list) as a number, by sequence, chooser and unit, or by
    sequence, unit and chooser; and where those of each begin.
    """
    choosers, rows, most = index.shape
    device = index.device
    chooser_apart, unit_apart = (units, 1) if by_chooser else (1, choosers)
    row = torch.arange(row_from, row_from + rows, device=device)
    sequence = torch.searchsorted(row_begin, row, right=True) - 1
    owner = sequence * (choosers * units) + torch.arange(choosers, device=device)[:, None] * chooser_apart
    there = torch.arange(most, device=device) < counts.unsqueeze(-1)
    own = owner.to(torch.int32).unsqueeze(-1) + index.clamp(0, units - 1) * unit_apart
    ordered, order = torch.sort(torch.where(there, own, sequences * choosers * units).flatten(), stable=True)
    begins = torch.searchsorted(ordered, torch.arange(sequences * choosers * units + 1, dtype=torch.int32, device=device))
    return order.to(torch.int32), begins.to(torch.int32)


def unlisted(lists, sequences):
    """One row for all queries of each sequence, which lists nothing."""
    row = torch.arange(sequences, device=lists.count.device)
    nothing = torch.zeros(1, sequences, 1, dtype=torch.int32, device=lists.count.device)
    return type(lists)(nothing, nothing[..., 0], row, 2**30, 1)
