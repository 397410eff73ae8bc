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


@triton.jit(do_not_specialize=["kv_heads", "tiles", "splits", "many", "row_from", "k_begin_stride"])
def sums_kernel(
    q, k, sums, wanted, offsets, past, row_begin, k_begin, scale, cap, kv_heads, tiles, splits, many, row_from, q_token_stride,
    q_head_stride, k_stride, k_begin_stride,
    GROUP: tl.constexpr, MEMBERS: tl.constexpr, SPAN: tl.constexpr, STEP: tl.constexpr, ONLY_BEFORE: tl.constexpr,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Leaves the logarithm, to base 2, of the sum of exponentials of the logits of runs that have been read whole, in parts."""
    ROWS: tl.constexpr = BLOCK_R // MEMBERS
    split = tl.program_id(0) % splits
    tile = tl.program_id(0) // splits % tiles
    group = tl.program_id(0) // (splits * tiles) % kv_heads
    sequence = tl.program_id(0) // (splits * tiles * kv_heads)
    count = rows_of(sequence, offsets, past, many)
    first = row_from + tile * ROWS
    if (first >= count) | (tl.load(wanted + sequence) < 0):
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
    share = tl.cdiv(tl.cdiv(runs, BLOCK_K), splits) * BLOCK_K
    for begin in tl.range(split * share, tl.minimum((split + 1) * share, runs), BLOCK_K):
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
    tl.store(sums + (place * (kv_heads * GROUP) + head) * splits + split, result, mask=live)


@triton.jit
def slot_of(run, units, UNIT: tl.constexpr, STEP: tl.constexpr):
    """Where the score of a run lies in its row: runs that begin at the same place of their units side by side."""
    PHASES: tl.constexpr = UNIT // STEP if UNIT % STEP == 0 else 1
    return run % PHASES * units + run // PHASES


@triton.jit
def mass_of(sums, line, live, SPLITS: tl.constexpr):
    """The logarithm of the whole mass of each line, to base 2, from its parts."""
    split = tl.arange(0, SPLITS)[None, :]
    part = tl.load(sums + line[:, None] * SPLITS + split, mask=live[:, None], other=0.0)
    best = tl.max(part, 1)
    best = tl.where(best == float("-inf"), 0.0, best)
    total = tl.sum(tl.exp2(part - best[:, None]), 1)
    return best + tl.log2(tl.where(total == 0.0, 1.0, total))


@triton.jit
def score_tile(
    query, k, upper, sums, scale, cap, at, head, place, live, inside, whole, heads,
    BOUNDS: tl.constexpr, SHARES: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    """Scores [lines, runs] of lines of rows `place` and heads by the runs that lie at `at`: products, or shares of the mass."""
    score = products(query, k + at, upper + at, inside, BOUNDS)
    if SHARES:
        mass = mass_of(sums, place * heads + head, live, SPLITS)[:, None]
        score = tl.where(whole, tl.exp2(adjust_score(score, tl.load(scale + head)[:, None], cap) - mass), 0.0)
    return score


@triton.jit
def pool_heads(total, score, ROWS: tl.constexpr, MEMBERS: tl.constexpr, BLOCK_K: tl.constexpr, POOL: tl.constexpr):
    """[ROWS, runs], `total` joined with the scores of the heads of each row."""
    parts = tl.reshape(score, [ROWS, MEMBERS, BLOCK_K])
    if POOL == "max" or POOL == "min":  # a reduction forgets what is no number
        broken = tl.max((parts != parts).to(tl.int32), 1) > 0
        pooled = tl.max(parts, 1) if POOL == "max" else tl.min(parts, 1)
        both = tl.maximum(total, pooled) if POOL == "max" else tl.minimum(total, pooled)
        total = tl.where(broken | (total != total), float("nan"), both)
    else:
        total += tl.sum(parts, 1)
    return total


@triton.jit(do_not_specialize=["kv_heads", "sets", "tiles", "run_tiles", "turns", "many", "row_from", "at_once", "width",
                               "units", "k_begin_stride"])  # fmt: skip
def scores_kernel(
    q, k, upper, sums, scores, wanted, offsets, past, row_begin, k_begin, scale, cap, kv_heads, sets, tiles, run_tiles, turns,
    many, row_from, at_once, width, units, q_token_stride, q_head_stride, k_stride, k_begin_stride,
    GROUP: tl.constexpr, MEMBERS: tl.constexpr, UNIT: tl.constexpr, SPAN: tl.constexpr, STEP: tl.constexpr,
    BOUNDS: tl.constexpr, SHARES: tl.constexpr, SPLITS: tl.constexpr, SHARED: tl.constexpr, POOL: tl.constexpr,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """A tile of rows by `turns` tiles of runs, `run_tiles` programs side by side; all heads that share a choice."""
    ROWS: tl.constexpr = BLOCK_R // MEMBERS
    EMPTY: tl.constexpr = float("-inf") if POOL == "max" else (float("inf") if POOL == "min" else 0.0)
    program = tl.program_id(0)
    own = program // (run_tiles * tiles) % sets
    sequence = program // (run_tiles * tiles * sets)
    sequences = tl.num_programs(0) // (run_tiles * tiles * sets)
    count = tl.minimum(rows_of(sequence, offsets, past, many), row_from + at_once)
    first = row_from + program // run_tiles % tiles * ROWS
    if (first >= count) | (tl.load(wanted + sequence) < 0):
        return
    furthest = last_of(sequence, tl.minimum(first + ROWS, count) - 1, offsets, past, many)
    line = tl.arange(0, BLOCK_R)
    row = first + line // MEMBERS
    there = line % MEMBERS < GROUP
    live = (row < count) & there
    member = tl.minimum(line % MEMBERS, GROUP - 1)
    last = last_of(sequence, row, offsets, past, many)
    place = tl.load(row_begin + sequence) + row
    d = tl.arange(0, BLOCK_D)
    in_q = live[:, None] & (d < D)[None, :]
    runs = tl.where(furthest + 1 >= SPAN, (furthest + 1 - SPAN) // STEP + 1, 0)
    from_tile = program % run_tiles * turns
    heads = kv_heads * GROUP
    head = own * GROUP + member
    target = scores + (own.to(tl.int64) * sequences + sequence) * at_once * width
    if SHARED != "layer":
        query = tl.load(q + (place * q_token_stride + head * q_head_stride)[:, None] + d[None, :], mask=in_q, other=0.0)
        k_from = tl.load(k_begin + sequence * k_begin_stride + own)
    for run_tile in tl.range(from_tile, tl.minimum(from_tile + turns, tl.cdiv(runs, BLOCK_K))):
        one = run_tile * BLOCK_K + tl.arange(0, BLOCK_K)
        inside = (one < runs)[None, :] & (d < D)[:, None]
        whole = one[None, :] * STEP + SPAN <= last[:, None] + 1
        slot = slot_of(one, units, UNIT, STEP)
        total = tl.full([ROWS, BLOCK_K], EMPTY, tl.float32)
        if SHARED == "layer":
            for group in tl.range(0, kv_heads):
                head = group * GROUP + member
                q_there = q + (place * q_token_stride + head * q_head_stride)[:, None] + d[None, :]
                query = tl.load(q_there, mask=in_q, other=0.0)
                k_from = tl.load(k_begin + sequence * k_begin_stride + group)
                at = (k_from + one.to(tl.int64) * k_stride)[None, :] + d[:, None]
                score = score_tile(
                    query, k, upper, sums, scale, cap, at, head, place, live, inside, whole, heads, BOUNDS, SHARES, SPLITS
                )
                total = pool_heads(total, tl.where(there[:, None], score, EMPTY), ROWS, MEMBERS, BLOCK_K, POOL)
        else:
            at = (k_from + one.to(tl.int64) * k_stride)[None, :] + d[:, None]
            score = score_tile(
                query, k, upper, sums, scale, cap, at, head, place, live, inside, whole, heads, BOUNDS, SHARES, SPLITS
            )
            if SHARED == "head":
                own_scores = scores + ((head.to(tl.int64) * sequences + sequence) * at_once + row - row_from) * width
                tl.store(own_scores[:, None] + slot[None, :], score, mask=live[:, None] & (one < runs)[None, :])
            else:
                total = pool_heads(total, tl.where(there[:, None], score, EMPTY), ROWS, MEMBERS, BLOCK_K, POOL)
        if SHARED != "head":
            if POOL == "mean":
                total = total / (GROUP * (kv_heads // sets))
            own_row = first + tl.arange(0, ROWS)
            there_row = target + (own_row - row_from).to(tl.int64) * width
            tl.store(there_row[:, None] + slot[None, :], total, mask=(own_row < count)[:, None] & (one < runs)[None, :])
