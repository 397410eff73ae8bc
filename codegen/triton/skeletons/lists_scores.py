"""Scores of runs of keys by rows that ask, pooled over the heads that share a choice (lists_choose.py launches this)."""

import triton
import triton.language as tl

from attnc.codegen.triton.skeletons.lists_parts import adjust_score


@triton.jit
def products(query, k_there, upper_there, mask, BOUNDS: tl.constexpr):
    """[lines, runs], of queries [lines, D] and runs that lie at [D, runs]; of bounds the most that a key within them has."""
    key = tl.load(k_there, mask=mask, other=0.0)
    if BOUNDS:
        above = tl.load(upper_there, mask=mask, other=0.0)
        product = tl.dot(tl.where(query > 0.0, query, 0.0).to(query.dtype), above.to(query.dtype), input_precision="ieee")
        product += tl.dot(tl.where(query > 0.0, 0.0, query).to(query.dtype), key.to(query.dtype), input_precision="ieee")
    else:
        product = tl.dot(query, key.to(query.dtype), input_precision="ieee")
    return product


@triton.jit
def last_of(sequence, row, offsets, past, many):
    """The position at which a row of a sequence chooses."""
    start = tl.load(past + sequence).to(tl.int32)
    end = start + (tl.load(offsets + sequence + 1) - tl.load(offsets + sequence)).to(tl.int32)
    return tl.minimum((start // many + row + 1) * many, end) - 1


@triton.jit
def rows_of(sequence, offsets, past, many):
    """How many rows a sequence has."""
    start = tl.load(past + sequence).to(tl.int32)
    count = (tl.load(offsets + sequence + 1) - tl.load(offsets + sequence)).to(tl.int32)
    return tl.where(count > 0, (start + count + many - 1) // many - start // many, 0)


@triton.jit(do_not_specialize=["kv_heads", "tiles", "many", "row_from", "k_begin_stride"])
def sums_kernel(
    q, k, sums, offsets, past, row_begin, k_begin, scale, cap, kv_heads, tiles, many, row_from, q_token_stride, q_head_stride,
    k_stride, k_begin_stride,
    GROUP: tl.constexpr, MEMBERS: tl.constexpr, SPAN: tl.constexpr, STEP: tl.constexpr, ONLY_BEFORE: tl.constexpr,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Leaves the logarithm, to base 2, of the sum of exponentials of the logits of runs that have been read whole."""
    ROWS: tl.constexpr = BLOCK_R // MEMBERS
    tile = tl.program_id(0) % tiles
    group = tl.program_id(0) // tiles % kv_heads
    sequence = tl.program_id(0) // (tiles * kv_heads)
    count = rows_of(sequence, offsets, past, many)
    first = row_from + tile * ROWS
    if first >= count:
        return
    line = tl.arange(0, BLOCK_R)
    row = first + line // MEMBERS
    live = (row < count) & (line % MEMBERS < GROUP)
    head = group * GROUP + tl.minimum(line % MEMBERS, GROUP - 1)
    last = last_of(sequence, row, offsets, past, many)
    furthest = last_of(sequence, tl.minimum(first + ROWS, count) - 1, offsets, past, many)
    nearest = last_of(sequence, first, offsets, past, many)
    place = tl.load(row_begin + sequence) + row
    d = tl.arange(0, BLOCK_D)
    q_there = q + (place * q_token_stride + head * q_head_stride)[:, None] + d[None, :]
    query = tl.load(q_there, mask=live[:, None] & (d < D)[None, :], other=0.0)
    factor = tl.load(scale + head)[:, None]
    k_first = tl.load(k_begin + sequence * k_begin_stride + group)
    best = tl.full([BLOCK_R], float("-inf"), tl.float32)
    norm = tl.zeros([BLOCK_R], tl.float32)
    runs = tl.where(furthest + 1 >= SPAN, (furthest + 1 - SPAN) // STEP + 1, 0)
    if ONLY_BEFORE > 0:  # rows that have read one coarse run have what they need
        runs = tl.where(nearest + 1 >= ONLY_BEFORE, 0, runs)
    for begin in tl.range(0, runs, BLOCK_K):
        one = begin + tl.arange(0, BLOCK_K)
        k_there = k + (k_first + one.to(tl.int64) * k_stride)[None, :] + d[:, None]
        product = products(query, k_there, k_there, (one < runs)[None, :] & (d < D)[:, None], False)
        whole = one[None, :] * STEP + SPAN <= last[:, None] + 1
        logit = tl.where(whole, adjust_score(product, factor, cap), float("-inf"))
        peak = tl.maximum(best, tl.max(logit, 1))
        finite = tl.where(peak == float("-inf"), 0.0, peak)
        norm = norm * tl.exp2(best - finite) + tl.sum(tl.exp2(logit - finite[:, None]), 1)
        best = peak
    result = tl.where(norm == 0.0, float("-inf"), best + tl.log2(tl.where(norm == 0.0, 1.0, norm)))
    if ONLY_BEFORE > 0:
        live &= last + 1 < ONLY_BEFORE
    tl.store(sums + place * (kv_heads * GROUP) + head, result, mask=live)


@triton.jit(do_not_specialize=["kv_heads", "sets", "tiles", "run_tiles", "many", "row_from", "room", "width", "k_begin_stride"])
def scores_kernel(
    q, k, upper, sums, scores, offsets, past, row_begin, k_begin, scale, cap, kv_heads, sets, tiles, run_tiles, many, row_from,
    room, width, q_token_stride, q_head_stride, k_stride, k_begin_stride,
    GROUP: tl.constexpr, MEMBERS: tl.constexpr, SPAN: tl.constexpr, STEP: tl.constexpr, BOUNDS: tl.constexpr,
    SHARES: tl.constexpr, SHARED: tl.constexpr, POOL: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    ROWS: tl.constexpr = BLOCK_R // MEMBERS
    run_tile = tl.program_id(0) % run_tiles
    tile = tl.program_id(0) // run_tiles % tiles
    own = tl.program_id(0) // (run_tiles * tiles) % sets
    sequence = tl.program_id(0) // (run_tiles * tiles * sets)
    count = tl.minimum(rows_of(sequence, offsets, past, many), row_from + room)
    first = row_from + tile * ROWS
    if first >= count:
        return
    furthest = last_of(sequence, tl.minimum(first + ROWS, count) - 1, offsets, past, many)
    if run_tile * BLOCK_K * STEP + SPAN > furthest + 1:
        return
    line = tl.arange(0, BLOCK_R)
    row = first + line // MEMBERS
    there = line % MEMBERS < GROUP
    live = (row < count) & there
    last = last_of(sequence, row, offsets, past, many)
    place = tl.load(row_begin + sequence) + row
    d = tl.arange(0, BLOCK_D)
    one = run_tile * BLOCK_K + tl.arange(0, BLOCK_K)
    inside = (one * STEP + SPAN <= furthest + 1)[None, :] & (d < D)[:, None]
    whole = one[None, :] * STEP + SPAN <= last[:, None] + 1
    EMPTY: tl.constexpr = float("-inf") if POOL == "max" else (float("inf") if POOL == "min" else 0.0)
    total = tl.full([ROWS, BLOCK_K], EMPTY, tl.float32)
    slot = sequence * room + row - row_from
    for step in tl.range(0, kv_heads // sets):
        group = own + step  # sets are the KV heads, or one for all of them
        head = group * GROUP + tl.minimum(line % MEMBERS, GROUP - 1)
        q_there = q + (place * q_token_stride + head * q_head_stride)[:, None] + d[None, :]
        query = tl.load(q_there, mask=live[:, None] & (d < D)[None, :], other=0.0)
        k_from = tl.load(k_begin + sequence * k_begin_stride + group)
        at = (k_from + one.to(tl.int64) * k_stride)[None, :] + d[:, None]
        score = products(query, k + at, upper + at, inside, BOUNDS)
        if SHARES:
            mass = tl.load(sums + place * (kv_heads * GROUP) + head, mask=live, other=0.0)
            mass = tl.where(mass == float("-inf"), 0.0, mass)[:, None]
            logit = adjust_score(score, tl.load(scale + head)[:, None], cap)
            score = tl.where(whole, tl.exp2(logit - mass), 0.0)
        if SHARED == "head":
            target = (head.to(tl.int64) * (tl.num_programs(0) // (run_tiles * tiles * sets) * room) + slot) * width
            tl.store(scores + target[:, None] + one[None, :], score, mask=live[:, None] & (one < width)[None, :])
        else:
            score = tl.where(there[:, None], score, EMPTY)
            if POOL == "max" or POOL == "min":  # a reduction forgets what is no number
                broken = tl.max(tl.reshape((score != score).to(tl.int32), [ROWS, MEMBERS, BLOCK_K]), 1) > 0
                parts = tl.reshape(score, [ROWS, MEMBERS, BLOCK_K])
                pooled = tl.max(parts, 1) if POOL == "max" else tl.min(parts, 1)
                both = tl.maximum(total, pooled) if POOL == "max" else tl.minimum(total, pooled)
                total = tl.where(broken | (total != total), float("nan"), both)
            else:
                total += tl.sum(tl.reshape(score, [ROWS, MEMBERS, BLOCK_K]), 1)
    if SHARED != "head":
        if POOL == "mean":
            total = total / (GROUP * (kv_heads // sets))
        row = first + tl.arange(0, ROWS)
        slot = sequence * room + row - row_from
        target = (own.to(tl.int64) * (tl.num_programs(0) // (run_tiles * tiles * sets) * room) + slot) * width
        tl.store(scores + target[:, None] + one[None, :], total, mask=(row < count)[:, None] & (one < width)[None, :])
