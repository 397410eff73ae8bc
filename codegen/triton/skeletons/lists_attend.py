"""Softmax attention over keys that content chose, beside key intervals, each key once.

What was chosen are lists: for every row of queries and every chooser (a query head, a KV head, or one for all) the numbers of
units of UNIT keys, in rising order. A row is `many` neighbouring queries; it may be one query, or all of a call. A program
serves queries of one row with the heads that share its list, so all its lines read the same keys. It walks the key blocks of
the intervals and then those of the list; keys of the list that an interval shows are left out there. The next unit's number is
loaded a step ahead, so that loads of keys overlap with products.

The steps of a tile may be split among programs, whose partial results `combine_kernel` joins: the grid follows bounds, not
lengths, so a captured graph stays right while a cache grows.
"""

import torch
import triton
import triton.language as tl

from attnc.codegen.triton.skeletons.lists_parts import (
    adjust_score,
    block_of,
    chosen,
    horizon,
    keep,
    lines_of,
    lower,
    read_row,
    upper,
    visit,
)
from attnc.codegen.triton.skeletons.scan_parts import architecture, run

FORM = (1, 0, 0, True)  # how many near intervals, strides and powers a row holds, and whether the future is hidden
HEAD_WIDTH = 64  # of queries and keys
VALUE_WIDTH = 64
GROUP = 1  # query heads for each KV head
MEMBERS = 1  # query heads that share a list: those of a KV head, or one
UNIT = 64  # keys
CAP = False
SINK_LOGIT = False
BLOCKS = {  # (architecture, bytes of an element): lines and keys of a block, warps, pipeline stages
    ("any", 2): (64, 64, 4, 2),
    ("any", 4): (32, 32, 4, 1),
}
MOST_SPLITS = 64
DECODE_TOKENS = 16  # new tokens of a sequence up to which a tile's keys are split

PROCESSORS = {}  # device -> how many it has
KNOWN = {}  # device -> its row of BLOCKS
READY = {}  # key of `run` -> what was compiled, and its compile-time arguments

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


@triton.jit(do_not_specialize=["kv_heads", "tiles", "row_tiles", "many", "splits", "list_rows", "width", "of_heads",
                               "row_stride", "k_begin_stride", "v_begin_stride"])  # fmt: skip
def attend_kernel(
    q, k, v, o, lse, part_o, part_norm, rows, index, counts, row_begin, offsets, past, stored, base, k_begin, v_begin, scale,
    sink_logit, cap, kv_heads, tiles, row_tiles, many, splits, list_rows, width, of_heads, q_token_stride, q_head_stride,
    k_stride, v_stride, row_stride, k_begin_stride, v_begin_stride,
    ROW: tl.constexpr, GROUP: tl.constexpr, MEMBERS: tl.constexpr, UNIT: tl.constexpr, D: tl.constexpr, E: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr, DIRECT: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_K: tl.constexpr,
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
            near_seen = keep(numbers, i, j)
            score = tl.where(tl.where(listed, (j <= i) & (near_seen == 0), near_seen), score, HIDDEN)
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


def settings(lines, block_k, warps, stages, direct):
    """The compile-time arguments of `attend_kernel`."""
    nears, strides, powers, _ = FORM
    return {
        "ROW": 1 + 4 * nears + strides + powers,
        "GROUP": GROUP,
        "MEMBERS": MEMBERS,
        "UNIT": UNIT,
        "D": HEAD_WIDTH,
        "E": VALUE_WIDTH,
        "BLOCK_D": max(16, triton.next_power_of_2(HEAD_WIDTH)),
        "BLOCK_E": max(16, triton.next_power_of_2(VALUE_WIDTH)),
        "DIRECT": direct,
        "BLOCK_R": lines,
        "BLOCK_K": block_k,
        "num_warps": warps if lines > 64 else 4,
        "num_stages": stages,
        "enable_fp_fusion": True,
    }


def combine_settings(splits):
    """The compile-time arguments of `combine_kernel`."""
    return {
        "E": VALUE_WIDTH,
        "BLOCK_E": max(16, triton.next_power_of_2(VALUE_WIDTH)),
        "SPLITS": triton.next_power_of_2(splits),
        "num_warps": 4,
        "num_stages": 1,
        "enable_fp_fusion": True,
    }


def variants(architecture, element_size):
    """Kernels that `attend` may launch, with their compile-time arguments: the smallest and the largest tile, either way."""
    lines, *rest = BLOCKS[architecture, element_size]
    sizes = sorted({lines_of(1, lines), lines_of(lines, lines)})
    tiles = tuple((attend_kernel, settings(size, *rest, direct)) for size in sizes for direct in (True, False))
    return (*tiles, (combine_kernel, combine_settings(MOST_SPLITS)))


def count_splits(programs, most, device):
    """How many programs share the keys of a tile: enough for two on every processor, each with a block to read."""
    if device not in PROCESSORS:
        cuda = device.type == "cuda"
        PROCESSORS[device] = torch.cuda.get_device_properties(device).multi_processor_count if cuda else 4
    return max(1, min(MOST_SPLITS, most, -(-2 * PROCESSORS[device] // max(1, programs))))


def power_of_2(number):
    """The least power of two that is not below a number."""
    return 1 << max(0, number - 1).bit_length()


def attend(q, part, rows, form, batch, scale, cap, sink_logit, lists, *, blocks=None, splits=None):
    """Attention of new queries to one part of the keys: to those that intervals show, and those that lists name.

    q [T, H, D], the sequences of `batch` one after another, the last axis dense; part: a KeyPart without rings, whose begins
    and strides are multiples of their width; rows [S, G, R] int32, made for `form`; batch: offsets [S + 1] and past [S] int64,
    and max_new, at least the most new tokens of a sequence; scale [H] fp32; cap: soft cap of the scores; sink_logit [H] fp32;
    lists: index [C, r, m] and count [C, r] int32 (-1: the output is NaN), row_begin [S] int64, many and rows: a row for every
    `many` positions, at most `rows` of a sequence; C is H, G or 1; blocks = (lines, keys, warps, stages) in the table's place;
    splits: programs for each tile. Returns o [T, H, E] in q's dtype and the scores' natural log-sum-exp [T, H] fp32; a query
    without keys has 0 and -inf.
    """
    tokens, heads, width = q.shape
    sequences, kv_heads, _ = rows.shape
    choosers, list_rows, most = lists.index.shape
    assert (form.nears, form.strides, form.powers, form.causal) == FORM
    assert (width, part.v_width, heads) == (HEAD_WIDTH, VALUE_WIDTH, kv_heads * GROUP)
    assert choosers in (1, heads // MEMBERS)
    assert q.stride(2) == 1
    assert rows.stride(1) == rows.shape[2]
    assert (cap is not None, sink_logit is not None) == (CAP, SINK_LOGIT)
    assert q.dtype == part.k.dtype == part.v.dtype
    assert not part.rings
    o = torch.empty(tokens, heads, VALUE_WIDTH, dtype=q.dtype, device=q.device)
    lse = torch.empty(tokens, heads, dtype=torch.float32, device=q.device)
    most_lines, block_k, warps, stages = blocks or BLOCKS[architecture(q.device), q.element_size()]
    lines = lines_of(lists.many, most_lines)  # whatever the length: it decides no bit of a result
    row_tiles = -(-min(lists.many, batch.max_new) // (lines // MEMBERS))
    tiles = lists.rows * row_tiles
    programs = sequences * heads // MEMBERS * tiles
    if splits is None:
        few = batch.max_new <= DECODE_TOKENS
        splits = power_of_2(count_splits(programs, -(-most * UNIT // block_k) + 4, q.device)) if few else 1
    parts = tokens * heads * splits if splits > 1 else 0
    part_o = torch.empty(parts * VALUE_WIDTH, dtype=torch.float32, device=q.device)
    part_norm = torch.empty(2 * parts, dtype=torch.float32, device=q.device)
    sink_logit = scale if sink_logit is None else sink_logit
    token_stride, head_stride, _ = q.stride()
    tensors = (
        q, part.k, part.v, o, lse, part_o, part_norm, rows, lists.index, lists.count, lists.row_begin, batch.offsets,
        batch.past, part.stored, part.base, part.k_begin, part.v_begin, scale.contiguous(), sink_logit,
    )  # fmt: skip
    numbers = (
        0.0 if cap is None else cap, kv_heads, tiles, row_tiles, lists.many, splits, list_rows, most, int(choosers > 1),
        token_stride, head_stride, part.k_stride, part.v_stride, rows.stride(0), part.k_begin.stride(0), part.v_begin.stride(0),
    )  # fmt: skip
    strides = token_stride | head_stride | part.k_stride | part.v_stride
    key = (q.device, q.dtype, sink_logit.dtype, lines, block_k, warps, stages, splits == 1)
    made = lambda: settings(lines, block_k, warps, stages, splits == 1)  # noqa: E731
    run(attend_kernel, programs * splits, tensors, numbers, strides, key, made)
    if splits > 1:
        tensors = part_o, part_norm, o, lse, sink_logit
        run(combine_kernel, tokens * heads, tensors, (heads, splits), 0, (*key, splits), lambda: combine_settings(splits))
    return o, lse
