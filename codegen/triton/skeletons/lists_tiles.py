"""Attention over lists by tiles: queries of one row with the heads that share its list (lists_attend.py launches these)."""

import triton
import triton.language as tl

from attnc.codegen.triton.skeletons.lists_parts import (
    adjust_score,
    block_of,
    chosen,
    horizon,
    keep,
    lower,
    read_row,
    upper,
    visit,
)

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
HIDDEN = tl.constexpr(-1e30)  # score of a key that is not seen
FLOOR = tl.constexpr(-1e29)  # least running maximum: HIDDEN has no weight beside it, so a row without keys stays empty
NOWHERE = tl.constexpr(2**30)  # position of a slot that holds no key; also "no bound"
PIECE = tl.constexpr(16)  # products of fp32 numbers are summed this many at a time, then the sums: errors add up less


@triton.jit
def read_scale(scale, head, place, live):
    """The factor of a head's logits."""
    return tl.load(scale + head)


@triton.jit
def weigh(score, peak):
    """The weight of a score beside the running maximum."""
    return tl.exp2(score - peak)


@triton.jit
def store_sums(lse, place, peak, norm, live):
    """Leaves the natural log-sum-exp of scores, from their maximum and the sum of their weights; NaN stays."""
    result = tl.where(norm != 0.0, (peak + tl.log2(tl.where(norm != 0.0, norm, 1.0))) * LN2, float("-inf"))
    tl.store(lse + place, result, mask=live)


@triton.jit
def add_sink_logit(best, norm, sink_logit, head):
    """Running maximum and sum with the learned logit that has no value."""
    return best, norm


@triton.jit
def solid(numbers, first, last, begin, end):
    """Whether all queries first..last see all keys from begin up to, not including, end."""
    whole = end <= numbers[0]
    whole |= (begin >= lower(numbers, last)) & (end <= upper(numbers, first))
    return whole & (end <= horizon(first))


@triton.jit
def apart(numbers, first, begin, end):
    """Whether no query from `first` on sees a key from begin up to, not including, end by the intervals."""
    return (begin >= numbers[0]) & (end <= lower(numbers, first))


@triton.jit
def own_keys(
    numbers, i, j, live, distances, taken, taken_first, DISTANCES: tl.constexpr, BESIDE: tl.constexpr
):  # fmt: skip
    """Which keys of its list a query reads: those behind it that no interval shows, nor another list has."""
    seen = (j <= i) & (keep(numbers, i, j) == 0) & live
    if DISTANCES:  # a listed block holds some keys at chosen distances
        seen &= tl.load(distances + (i - j), mask=seen, other=0) != 0
    if BESIDE > 0:
        seen &= tl.load(taken + (taken_first + j // BESIDE), mask=seen, other=1) == 0
    return seen


@triton.jit(do_not_specialize=["kv_heads", "tiles", "row_tiles", "many", "splits", "list_rows", "width", "of_heads",
                               "distance_width", "taken_heads", "taken_rows", "taken_many", "taken_width", "row_stride",
                               "k_begin_stride", "v_begin_stride"])  # fmt: skip
def attend_kernel(
    q, k, v, o, lse, part_o, part_norm, rows, index, counts, row_begin, distances, taken, taken_begin, offsets, past, stored,
    base, k_begin, v_begin, scale, sink_logit, cap, kv_heads, tiles, row_tiles, many, splits, list_rows, width, of_heads,
    distance_width, taken_heads, taken_rows, taken_many, taken_width, q_token_stride, q_head_stride, k_stride, v_stride,
    row_stride, k_begin_stride, v_begin_stride,
    ROW: tl.constexpr, GROUP: tl.constexpr, MEMBERS: tl.constexpr, UNIT: tl.constexpr, DISTANCES: tl.constexpr,
    BESIDE: tl.constexpr, D: tl.constexpr, E: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr,
    DIRECT: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    IN_PIECES: tl.constexpr = q.dtype.element_ty == tl.float32
    WHOLE_BLOCKS: tl.constexpr = UNIT % BLOCK_K == 0
    QUERIES: tl.constexpr = BLOCK_R // MEMBERS
    SETS: tl.constexpr = GROUP // MEMBERS
    # The heads of a group side by side, as they read the same keys; the last rows, which have most to choose from, first.
    program = tl.program_id(0)
    split = program % splits
    member = program // splits % SETS
    tile = tiles - 1 - program // (splits * SETS) % tiles
    group = program // (splits * SETS * tiles) % kv_heads
    sequence = program // (splits * SETS * tiles * kv_heads)

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
    d = tl.arange(0, BLOCK_D)
    e = tl.arange(0, BLOCK_E)
    i = (start + token)[:, None]
    row = token_begin + token
    place = row * (kv_heads * GROUP) + head
    q_here = q + (row * q_token_stride + head * q_head_stride)[:, None]
    if not IN_PIECES:
        query = tl.load(q_here + d[None, :], mask=live[:, None] & (d < D)[None, :], other=0.0)
    k_first = tl.multiple_of(tl.load(k_begin + sequence * k_begin_stride + group), D & -D)
    v_first = tl.multiple_of(tl.load(v_begin + sequence * v_begin_stride + group), E & -E)
    scale_here = read_scale(scale, head[:, None], place[:, None], live[:, None])

    chooser = (group * SETS + member) * of_heads  # of_heads 0: one list for all
    list_place = chooser.to(tl.int64) * list_rows + tl.load(row_begin + sequence) + list_row
    listed_units = tl.load(counts + list_place)
    count = tl.maximum(listed_units, 0)
    index_here = index + list_place * width
    visits = visit(numbers, first, last, base_here, slots, False, BLOCK_K)
    near_steps = visits[-1]
    distances_here = distances
    if DISTANCES:
        sequences = tl.num_programs(0) // (splits * SETS * tiles * kv_heads)
        distances_here += (chooser.to(tl.int64) * sequences + sequence) * distance_width
    taken_first = 0
    if BESIDE > 0:  # another launch reads what intervals show
        near_steps = 0
        taken_row = tl.load(taken_begin + sequence) + i // taken_many - start // taken_many
        taken_first = ((head // taken_heads)[:, None].to(tl.int64) * taken_rows + taken_row) * taken_width
    steps = near_steps + tl.cdiv(count * UNIT, BLOCK_K)
    share = tl.cdiv(steps, splits)
    from_step = tl.minimum(split * share, steps)
    best = tl.full([BLOCK_R], FLOOR, tl.float32)
    norm = tl.zeros([BLOCK_R], tl.float32)
    acc = tl.zeros([BLOCK_R, BLOCK_E], tl.float32)
    ahead = chosen(index_here, count, from_step - near_steps, base_here, UNIT, BLOCK_K)
    for step in tl.range(from_step, tl.minimum(from_step + share, steps)):
        listed = step >= near_steps
        near = block_of(visits, step, base_here, slots, BLOCK_K) * BLOCK_K
        if WHOLE_BLOCKS:
            begin = tl.where(listed, ahead, near)
            slot = begin + tl.arange(0, BLOCK_K)
            whole = (begin >= 0) & (begin + BLOCK_K <= slots)
            begins = base_here + begin
            solid_near = solid(numbers, first, last, begins, begins + BLOCK_K)
            solid_listed = (begins + BLOCK_K <= first + 1) & apart(numbers, first, begins, begins + BLOCK_K)
            whole &= tl.where(listed, solid_listed, solid_near)
            if DISTANCES or BESIDE > 0:
                whole &= listed == 0
            k_here = k + (k_first + begin.to(tl.int64) * k_stride)
            v_here = v + (v_first + begin.to(tl.int64) * v_stride)
            k_inside = tl.arange(0, BLOCK_K)[None, :] * k_stride  # keys transposed: [BLOCK_D, BLOCK_K]
            v_inside = tl.arange(0, BLOCK_K)[:, None] * v_stride
        else:
            slot = tl.where(listed, ahead, near + tl.arange(0, BLOCK_K))
            whole = False
            k_here = k + k_first
            v_here = v + v_first
            k_inside = slot.to(tl.int64)[None, :] * k_stride
            v_inside = slot.to(tl.int64)[:, None] * v_stride
        ahead = chosen(index_here, count, step + 1 - near_steps, base_here, UNIT, BLOCK_K)
        here = (slot >= 0) & (slot < slots)
        if not IN_PIECES:
            key = tl.load(k_here + k_inside + d[:, None], mask=here[None, :] & (d < D)[:, None], other=0.0)
            product = tl.dot(query, key, input_precision="ieee")
        else:
            product = tl.zeros([BLOCK_R, BLOCK_K], tl.float32)
            for piece in tl.static_range(0, BLOCK_D, PIECE):
                c = piece + tl.arange(0, PIECE)
                some = tl.load(q_here + c[None, :], mask=live[:, None] & (c < D)[None, :], other=0.0)
                key = tl.load(k_here + k_inside + c[:, None], mask=here[None, :] & (c < D)[:, None], other=0.0)
                product = tl.fma(tl.dot(some, key, input_precision="ieee"), 1.0, product)
        score = adjust_score(product, scale_here, cap)
        if not whole:
            j = tl.where(here, base_here + slot, NOWHERE)[None, :]
            own = own_keys(numbers, i, j, live[:, None], distances_here, taken, taken_first, DISTANCES, BESIDE)
            score = tl.where(tl.where(listed, own, keep(numbers, i, j)), score, HIDDEN)
        peak = tl.maximum(best, tl.max(score, 1))
        weight = weigh(score, peak[:, None])
        fade = weigh(best, peak)
        best = peak
        norm = norm * fade + tl.sum(weight, 1)
        value = tl.load(v_here + v_inside + e[None, :], mask=here[:, None] & (e < E)[None, :], other=0.0)
        if not IN_PIECES:
            acc = tl.dot(weight.to(value.dtype), value, acc * fade[:, None], input_precision="ieee")
        else:
            acc = tl.fma(acc, fade[:, None], tl.dot(weight, value, input_precision="ieee"))

    norm = tl.where(listed_units < 0, float("nan"), norm)  # a score was NaN: nothing can be chosen
    if DIRECT:
        peak, norm = add_sink_logit(best, norm, sink_logit, head)
        acc = acc * (weigh(best, peak) / tl.where(norm != 0.0, norm, 1.0))[:, None]
        tl.store(o + place[:, None] * E + e[None, :], acc.to(o.dtype.element_ty), mask=live[:, None] & (e < E)[None, :])
        store_sums(lse, place, peak, norm, live)
    else:
        place = place * splits + split
        tl.store(part_o + place[:, None] * E + e[None, :], acc, mask=(live & (norm != 0.0))[:, None] & (e < E)[None, :])
        tl.store(part_norm + 2 * place, best, mask=live)
        tl.store(part_norm + 2 * place + 1, norm, mask=live)


@triton.jit(do_not_specialize=["heads", "splits"])
def combine_kernel(
    part_o, part_norm, o, lse, sink_logit, heads, splits, E: tl.constexpr, BLOCK_E: tl.constexpr, SPLITS: tl.constexpr
):
    """One query of one head: its parts brought to one maximum and added. `part_norm` holds each part's maximum and sum."""
    place = tl.program_id(0).to(tl.int64)
    split = tl.arange(0, SPLITS)
    e = tl.arange(0, BLOCK_E)
    top = tl.load(part_norm + 2 * (place * splits + split), mask=split < splits, other=FLOOR)
    part = tl.load(part_norm + 2 * (place * splits + split) + 1, mask=split < splits, other=0.0)
    best = tl.max(top, 0)
    weight = weigh(top, best)
    there = (part != 0.0)[:, None] & (e < E)[None, :]
    value = tl.load(part_o + (place * splits + split)[:, None] * E + e[None, :], mask=there, other=0.0)
    peak, norm = add_sink_logit(best, tl.sum(weight * part, 0), sink_logit, place % heads)
    acc = tl.sum(weight[:, None] * value, 0) * (weigh(best, peak) / tl.where(norm != 0.0, norm, 1.0))
    tl.store(o + place * E + e, acc.to(o.dtype.element_ty), mask=e < E)
    store_sums(lse, place, peak, norm, True)
