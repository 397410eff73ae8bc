"""Which units of keys a query keeps: their scores, and the exact best of them, ties to the lowest number.

Rows ask: queries, or means of blocks of queries, `many` to a row. Runs of keys stand for units: a run is a key, a mean of SPAN
keys, or their bounds in every channel, and one begins every STEP keys. `scores_kernel` multiplies a tile of rows by a tile of
runs, for all heads that share a choice, and pools these heads' scores; `sums_kernel` first finds the logarithm of the sum of
exponentials where a score is a share of the mass. `keep_kernel` folds the runs that touch a unit to one score, and keeps the
best: the bits of the least score that stays are found one by one, by counting. Scores are written for as many rows at once
as fit in ROOM; there is never one for every query and key.
"""

import torch
import triton
import triton.language as tl

FORM = (1, 0, 0, True)  # how many near intervals, strides and powers a row of numbers holds
HEAD_WIDTH = 64  # of queries and keys
GROUP = 1  # query heads for each KV head
UNIT = 64  # keys
RUNS = (64, 64)  # span and step
COARSE = None  # span and step of the runs whose mass is the whole, where these are not the same
BOUNDS = False  # runs are bounds
SHARES = False  # a score is a share of the mass
SHARED = "group"  # who shares a choice: nobody ("head"), the heads of a KV head, or all ("layer")
POOL = "sum"  # of their scores
FOLD = "max"  # of runs that touch a unit
OVERLAP = "ranked"  # what becomes of units that the intervals show
CAP = False
SELECTOR = ()  # the runtime's words for all these
BLOCKS = {  # (architecture, bytes of an element): lines and runs of a tile, warps, pipeline stages
    ("any", 2): (64, 64, 4, 2),
    ("any", 4): (32, 32, 4, 1),
}
MOST_UNITS = 4096  # whose scores a program holds at once
ROOM = 2**26  # scores

KNOWN = {}  # device -> its row of BLOCKS
READY = {}  # key of `run` -> what was compiled, and its compile-time arguments

LOG2E = tl.constexpr(1.4426950408889634)
NOWHERE = tl.constexpr(2**30)  # "no bound"


@triton.jit
def read_row(row):
    """The numbers of one sequence and KV head."""
    return tl.load(row), tl.load(row + 1), tl.load(row + 2), tl.load(row + 3), tl.load(row + 4)


@triton.jit
def lower(numbers, i):
    """The first key near query i that it sees."""
    sink, align, shift, back, ahead = numbers
    return (i + shift) // align * align - shift - back


@triton.jit
def adjust_score(product, scale, cap):
    """The logit of a query and a key, to base 2."""
    return product * (scale * LOG2E)


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


@triton.jit
def unit_keys(
    scores, unit, units, last, numbers,
    UNIT: tl.constexpr, SPAN: tl.constexpr, STEP: tl.constexpr, TOUCHED: tl.constexpr, FOLD: tl.constexpr,
    OVERLAP: tl.constexpr,
):  # fmt: skip
    """Of some units: whole numbers in the order of their scores (0: no candidate), which are shown, which scores are NaN."""
    begin = unit * UNIT
    first = tl.maximum((begin - SPAN + STEP) // STEP, 0)
    end_run = (begin + UNIT - 1) // STEP
    complete = (unit < units) & (begin + UNIT <= last + 1)
    candidate = unit < 0
    total = tl.full(unit.shape, float("-inf") if FOLD == "max" else 0.0, tl.float32)
    broken = unit < 0
    for step in tl.static_range(0, TOUCHED):
        one = first + step
        there = complete & (one <= end_run) & (one * STEP + SPAN <= last + 1)
        score = tl.load(scores + one, mask=there, other=float("-inf") if FOLD == "max" else 0.0)
        total = tl.maximum(total, score) if FOLD == "max" else total + score
        broken |= score != score
        candidate |= there
    shown = unit < 0
    if OVERLAP != "ranked":
        nearest = lower(numbers, last)
        end = tl.minimum(begin + UNIT, last + 1)
        shown = (begin <= last) & ((begin >= nearest) | (end <= numbers[0]) | (nearest <= numbers[0]))
    ranked = candidate & (shown == 0)
    bits = (total + 0.0).to(tl.int32, bitcast=True)  # -0 counts as 0
    ordered = tl.where(bits < 0, ~bits, bits ^ -2147483648).to(tl.uint32, bitcast=True)
    return tl.where(ranked, ordered, 0), shown & (unit < units), broken & candidate


@triton.jit(do_not_specialize=["all_rows", "row_count", "many", "row_from", "room", "width", "units", "most", "row_stride"])
def keep_kernel(
    scores, index, counts, wanted, interval_rows, offsets, past, row_begin, all_rows, row_count, many, row_from, room, width,
    units, most, row_stride,
    ROW: tl.constexpr, GROUP: tl.constexpr, UNIT: tl.constexpr, SPAN: tl.constexpr, STEP: tl.constexpr, TOUCHED: tl.constexpr,
    FOLD: tl.constexpr, OVERLAP: tl.constexpr, SHARED: tl.constexpr, MANY_BLOCKS: tl.constexpr, BLOCK_U: tl.constexpr,
):  # fmt: skip
    own_row = tl.program_id(0) % row_count
    sequence = tl.program_id(0) // row_count
    chooser = tl.program_id(1)
    row = row_from + own_row
    if row >= rows_of(sequence, offsets, past, many):
        return
    last = last_of(sequence, row, offsets, past, many)
    group = chooser // GROUP if SHARED == "head" else chooser
    numbers = read_row(interval_rows + sequence * row_stride + group * ROW)
    sequences = tl.num_programs(0) // row_count
    here = scores + ((chooser * sequences + sequence).to(tl.int64) * room + own_row) * width
    place = chooser.to(tl.int64) * all_rows + tl.load(row_begin + sequence) + row
    want = tl.load(wanted + sequence)
    unit = tl.arange(0, BLOCK_U)
    if not MANY_BLOCKS:
        keys, shown, broken = unit_keys(here, unit, units, last, numbers, UNIT, SPAN, STEP, TOUCHED, FOLD, OVERLAP)
        used = tl.sum(shown.to(tl.int32), 0)
        bad = tl.sum(broken.to(tl.int32), 0)
        ranked = tl.sum((keys > 0).to(tl.int32), 0)
        want = tl.minimum(tl.maximum(want - (used if OVERLAP == "counted" else 0), 0), tl.minimum(ranked, most))
        least = tl.zeros([], tl.int64)
        for turn in tl.range(0, 32):
            trial = least | (tl.full([], 1, tl.int64) << (31 - turn))
            least = tl.where(tl.sum((keys >= trial.to(tl.uint32)).to(tl.int32), 0) >= want, trial, least)
        above = keys > least.to(tl.uint32)
        equal = keys == least.to(tl.uint32)
        spare = want - tl.sum(above.to(tl.int32), 0)
        take = above | (equal & (tl.cumsum(equal.to(tl.int32), 0) <= spare))
        at = tl.cumsum(take.to(tl.int32), 0) - 1
        tl.store(index + place * most + at, unit, mask=take & (at < most))
    else:
        blocks = tl.cdiv(tl.minimum(units, last // UNIT + 1), BLOCK_U)
        used = 0
        bad = 0
        ranked = 0
        for block in tl.range(0, blocks):
            some = block * BLOCK_U + unit
            keys, shown, broken = unit_keys(here, some, units, last, numbers, UNIT, SPAN, STEP, TOUCHED, FOLD, OVERLAP)
            used += tl.sum(shown.to(tl.int32), 0)
            bad += tl.sum(broken.to(tl.int32), 0)
            ranked += tl.sum((keys > 0).to(tl.int32), 0)
        want = tl.minimum(tl.maximum(want - (used if OVERLAP == "counted" else 0), 0), tl.minimum(ranked, most))
        least = tl.zeros([], tl.int64)
        for turn in tl.range(0, 32):
            trial = least | (tl.full([], 1, tl.int64) << (31 - turn))
            reached = 0
            for block in tl.range(0, blocks):
                some = block * BLOCK_U + unit
                keys, _, _ = unit_keys(here, some, units, last, numbers, UNIT, SPAN, STEP, TOUCHED, FOLD, OVERLAP)
                reached += tl.sum((keys >= trial.to(tl.uint32)).to(tl.int32), 0)
            least = tl.where(reached >= want, trial, least)
        spare = want
        for block in tl.range(0, blocks):
            some = block * BLOCK_U + unit
            keys, _, _ = unit_keys(here, some, units, last, numbers, UNIT, SPAN, STEP, TOUCHED, FOLD, OVERLAP)
            spare -= tl.sum((keys > least.to(tl.uint32)).to(tl.int32), 0)
        begin = 0
        for block in tl.range(0, blocks):
            some = block * BLOCK_U + unit
            keys, _, _ = unit_keys(here, some, units, last, numbers, UNIT, SPAN, STEP, TOUCHED, FOLD, OVERLAP)
            equal = keys == least.to(tl.uint32)
            take = (keys > least.to(tl.uint32)) | (equal & (tl.cumsum(equal.to(tl.int32), 0) <= spare))
            at = begin + tl.cumsum(take.to(tl.int32), 0) - 1
            tl.store(index + place * most + at, some, mask=take & (at < most))
            begin += tl.sum(take.to(tl.int32), 0)
            spare -= tl.sum(equal.to(tl.int32), 0)
    tl.store(counts + place, tl.where(bad > 0, -1, want))


def architecture(device):
    """The row of BLOCKS that serves a device."""
    if device not in KNOWN:
        if device.type != "cuda":
            KNOWN[device] = "any"
        elif torch.version.hip:
            KNOWN[device] = "gfx942"
        else:
            KNOWN[device] = {8: "sm_80", 9: "sm_90"}.get(torch.cuda.get_device_capability(device)[0], "sm_100")
    return KNOWN[device]


def run(kernel, programs, tensors, numbers, strides, key, constants):
    """kernel[(programs,)](*tensors, *numbers, **constants()), without Triton's long look at every argument.

    It compiles for types, and for which numbers are multiples of 16, or 1. Where all pointers and `strides` (the bits of all
    that are compiled for, together) are multiples of 16, `key` says the rest, and what was compiled for it runs at once.
    """
    if programs == 0:
        return
    pointers = [tensor.data_ptr() for tensor in tensors]
    bits = strides
    for pointer in pointers:
        bits |= pointer
    plain = bits % 16 == 0 and strides < 2**31
    if plain and key in READY:
        compiled, rest = READY[key]
        compiled[programs, 1, 1](*pointers, *numbers, *rest)
        return
    settings = constants()
    compiled = kernel[(programs,)](*tensors, *numbers, **settings)
    if plain and compiled is not None:  # Triton's interpreter compiles nothing
        READY[key] = compiled, [settings[name] for name in kernel.arg_names[len(tensors) + len(numbers) :]]


def settings(lines, block_k, warps, stages):
    """The compile-time arguments of the kernels that score: of `sums_kernel` over coarse and over own runs, `scores_kernel`."""
    common = {
        "GROUP": GROUP,
        "MEMBERS": triton.next_power_of_2(GROUP),
        "D": HEAD_WIDTH,
        "BLOCK_D": max(16, triton.next_power_of_2(HEAD_WIDTH)),
        "BLOCK_R": max(lines, triton.next_power_of_2(GROUP)),
        "BLOCK_K": block_k,
        "num_warps": warps,
        "num_stages": stages,
        "enable_fp_fusion": True,
    }
    span, step = RUNS
    coarse = {**common, "SPAN": (COARSE or RUNS)[0], "STEP": (COARSE or RUNS)[1], "ONLY_BEFORE": 0}
    own = {**common, "SPAN": span, "STEP": step, "ONLY_BEFORE": COARSE[0] if COARSE else 0}
    more = {"SPAN": span, "STEP": step, "BOUNDS": BOUNDS, "SHARES": SHARES, "SHARED": SHARED, "POOL": POOL}
    return coarse, own, {**common, **more}


def keep_settings(units):
    """The compile-time arguments of `keep_kernel` for so many units."""
    nears, strides, powers, _ = FORM
    span, step = RUNS
    block = min(MOST_UNITS, max(64, triton.next_power_of_2(units)))
    return {
        "ROW": 1 + 4 * nears + strides + powers,
        "GROUP": GROUP,
        "UNIT": UNIT,
        "SPAN": span,
        "STEP": step,
        "TOUCHED": (UNIT + span - 2) // step + 1,
        "FOLD": FOLD,
        "OVERLAP": OVERLAP,
        "SHARED": SHARED,
        "MANY_BLOCKS": units > MOST_UNITS,
        "BLOCK_U": block,
        "num_warps": 8 if block > 1024 else 4,
        "num_stages": 1,
        "enable_fp_fusion": True,
    }


def variants(architecture, element_size):
    """Kernels that `choose` may launch, with their compile-time arguments."""
    coarse, own, scored = settings(*BLOCKS[architecture, element_size])
    sums = ((sums_kernel, coarse), *(((sums_kernel, own),) if COARSE else ())) if SHARES else ()
    return (*sums, (scores_kernel, scored), (keep_kernel, keep_settings(MOST_UNITS)), (keep_kernel, keep_settings(2**17)))


def choose(q, runs, upper, coarse, interval_rows, batch, scale, cap, wanted, asked, units, most, *, blocks=None, room=ROOM):
    """The units that rows keep: index [C, r, most] and count [C, r] int32; index is in rising order up to count.

    q [r, H, D], who asks, rows of the sequences one after another; runs, upper, coarse: (flat keys, begin [S, G] int64, stride)
    of runs, of their upper bounds and of coarser runs, or None; interval_rows [S, G, R] int32; batch: offsets [S + 1] and past
    [S] int64; scale [H] fp32; cap or None; wanted [S] int32; asked: row_begin [S] int64, `many` positions to a row, the most
    rows of a sequence; units: at least the most units of a text; most: of a list. count is -1 where a candidate's score is NaN.
    """
    all_rows, heads, width = q.shape
    sequences, kv_heads, _ = interval_rows.shape
    row_begin, many, rows = asked
    assert (width, heads) == (HEAD_WIDTH, kv_heads * GROUP)
    assert q.stride(2) == 1
    assert (cap is not None) == CAP
    assert (upper is not None, coarse is not None) == (BOUNDS, COARSE is not None)
    lines, block_k, *rest = blocks or BLOCKS[architecture(q.device), q.element_size()]
    of_coarse, of_own, scored = settings(lines, block_k, *rest)
    choosers = {"head": heads, "group": kv_heads, "layer": 1}[SHARED]
    index = torch.empty(choosers, all_rows, most, dtype=torch.int32, device=q.device)
    counts = torch.empty(choosers, all_rows, dtype=torch.int32, device=q.device)
    span, step = RUNS
    width = max(1, (units * UNIT - span) // step + 1)  # runs
    at_once = max(1, min(rows, room // max(1, choosers * sequences * width)))
    scores = torch.empty(choosers * sequences * at_once * width, dtype=torch.float32, device=q.device)
    sums = torch.empty(all_rows, heads, dtype=torch.float32, device=q.device) if SHARES else scores
    k, k_begin, k_stride = runs
    bound = 0.0 if cap is None else cap
    token_stride, head_stride, _ = q.stride()
    places = batch.offsets, batch.past, row_begin
    strides = token_stride | head_stride | k_stride
    key = (q.device, q.dtype, k.dtype, lines, block_k, *rest)
    tall = scored["BLOCK_R"] // scored["MEMBERS"]
    for row_from in range(0, rows, at_once):
        tiles = -(-min(at_once, rows - row_from) // tall)
        ways = ([("coarse", coarse or runs, of_coarse)] + ([("own", runs, of_own)] if COARSE else [])) if SHARES else []
        for name, (flat, begin, stride), constants in ways:
            numbers = bound, kv_heads, tiles, many, row_from, token_stride, head_stride, stride, begin.stride(0)
            tensors = (q, flat, sums, *places, begin, scale)
            programs = sequences * kv_heads * tiles
            run(sums_kernel, programs, tensors, numbers, strides | stride, (*key, name), lambda given=constants: given)
        sets, run_tiles = 1 if SHARED == "layer" else kv_heads, -(-width // block_k)
        tensors = (q, k, k if upper is None else upper[0], sums, scores, *places, k_begin, scale)
        numbers = (
            bound, kv_heads, sets, tiles, run_tiles, many, row_from, at_once, width, token_stride, head_stride, k_stride,
            k_begin.stride(0),
        )  # fmt: skip
        programs = sequences * sets * tiles * run_tiles
        run(scores_kernel, programs, tensors, numbers, strides, (*key, "scores"), lambda: scored)
        here = min(at_once, rows - row_from)
        constants = keep_settings(units)
        keep_kernel[(sequences * here, choosers)](
            scores, index, counts, wanted, interval_rows, *places, all_rows, here, many, row_from, at_once, width, units, most,
            interval_rows.stride(0), **constants,
        )  # fmt: skip
    return index, counts
