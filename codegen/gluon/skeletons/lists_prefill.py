"""Softmax attention over keys that content chose, beside key intervals, each key once, for many queries, on sm_90.

What lists_attend.py in Triton computes, by its rules, and in the way of softmax_prefill.py: 128 queries of one head are a tile,
whose queries stand in one row of the lists. Such a row has many queries, and a unit is one copied block of keys or several.
Heads that share a list work on it at the same time. A list's blocks are walked before those of the intervals.
"""

import torch
from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from attnc.codegen.gluon.skeletons.attending import attend_tiles
from attnc.codegen.gluon.skeletons.launching import architecture, packed_view, run, slots_view, width_of
from attnc.codegen.gluon.skeletons.seeing import HIDDEN, SHARE, block_of, lower, read_row, shown, solid, visit
from attnc.codegen.gluon.skeletons.telling import FIRST_AT, LISTED_AT, NUMBERS_AT, told

FORM = (1, 0, 0, True)  # how many near intervals, strides and powers a row holds, and whether the future is hidden
HEAD_WIDTH = 64  # of queries and keys
VALUE_WIDTH = 64
GROUP = 1  # query heads for each KV head
MEMBERS = 1  # query heads that share a list: those of a KV head, or one
UNIT = 64  # keys
BESIDE = 0  # units of an earlier choice of the same union that are left out: it knows none
CAP = False
SINK_LOGIT = False
BLOCKS = {  # (architecture, bytes of an element): queries, keys, warps, slots of both, AHEAD, registers, PIN, DIRECT
    ("sm_90", 2): (128, 64, 12, 3, 2, 8, 232, 0, 0),
}

PROCESSORS = {}  # device -> how many multiprocessors it has

UNKNOWN = gl.constexpr(float("nan"))  # the result of queries for which nothing could be chosen


@gluon.jit
def apart(numbers, first, begin, end):
    """Whether no query from `first` on sees a key from begin up to, not including, end by the intervals."""
    return (begin >= numbers[0]) & (end <= lower(numbers, first))


@gluon.jit
def queries_of(number, sequence, batch, BLOCK_Q: gl.constexpr):
    """A sequence's tile by its number: its first query, and one past the last query of its row of the lists."""
    offsets, past, row_tiles, many = batch[0], batch[1], batch[6], batch[7]
    tokens = (gl.load(offsets + sequence + 1) - gl.load(offsets + sequence)).to(gl.int32)
    start = gl.load(past + sequence).to(gl.int32)
    row_from = (start // many + number // row_tiles) * many
    first = gl.maximum(start, row_from) + number % row_tiles * BLOCK_Q
    return first - start, gl.minimum(start + tokens, row_from + many) - start


@gluon.jit
def walk(numbers, first, last, base, slots, whole, batch, sequence, head, start, BLOCK_K: gl.constexpr):
    """What a tile of queries first..last walks: what intervals show; where its list is, its units, how many; steps in all."""
    many, unit, index, counts, row_begin, list_rows, width, sharing = (
        batch[7], batch[8], batch[9], batch[10], batch[11], batch[12], batch[13], batch[14],
    )  # fmt: skip
    row = gl.load(row_begin + sequence) + (first // many - start // many)
    place = row + head // sharing * list_rows  # of 64 bits, as the row
    count = gl.load(counts + place)
    near = visit(numbers, first, last, base, slots, whole, BLOCK_K)
    return near, index + place * width, unit, count, near[-1] + gl.maximum(count, 0) * (unit // BLOCK_K)


@gluon.jit
def key_begin(visits, step, base, slots, BLOCK_K: gl.constexpr):
    """The first slot of a step's keys, the last step first; one past all keys where nothing is to be seen."""
    near, index, unit, count, steps = visits
    back = gl.maximum(steps - 1 - step, 0)
    listed = back - near[-1]
    ahead = gl.maximum(listed, 0) * BLOCK_K
    slot = gl.load(index + ahead // unit, mask=listed >= 0, other=0) * unit + ahead % unit - base
    begin = gl.where(listed >= 0, slot, block_of(near, back, base, slots, BLOCK_K) * BLOCK_K)
    return gl.where(steps > 0, begin, gl.cdiv(slots, BLOCK_K) * BLOCK_K)


@gluon.jit
def listed(visits):
    """Steps of a list, which are walked first; below 0 where none could be made."""
    near, index, unit, count, steps = visits
    return gl.where(count < 0, -1, steps - near[-1])


@gluon.jit
def sees_all(
    visits, step, numbers, first, begin, base, ring, slots, RINGS: gl.constexpr, BLOCK_K: gl.constexpr
):  # fmt: skip
    """Whether the party whose first query stands at `first` sees all keys of a step, listed ones by the list alone."""
    near, index, unit, count, steps = visits
    begins = base + begin
    solid_near = solid(numbers, first, first + SHARE - 1, begins, begins + BLOCK_K)
    solid_listed = (begins + BLOCK_K <= first + 1) & apart(numbers, first, begins, begins + BLOCK_K)
    whole = gl.where(steps - 1 - step >= near[-1], solid_listed, solid_near)
    return whole & (begin >= 0) & (begin + BLOCK_K <= slots) & (count >= 0)


@gluon.jit
def hide(
    score, step, party, rows, words, at, spread, place, FAR: gl.constexpr, SCORES: gl.constexpr
):  # fmt: skip
    """HIDDEN for keys that are not seen, and for listed ones that intervals show; where no list could be made, UNKNOWN."""
    KEYS: gl.constexpr = gl.SliceLayout(0, SCORES)
    numbers = read_row(rows + told(words, at + NUMBERS_AT, 4))
    many = told(words, at + LISTED_AT, 4)
    i = told(words, at + FIRST_AT, 4) + party * SHARE + gl.arange(0, SHARE, layout=gl.SliceLayout(1, SCORES))[:, None]
    j = spread.index(place).load(KEYS)[None, :]
    near = shown(numbers, i, j, spread, place + 1, FAR, KEYS)
    seen = (j <= i) & (near != (step < many)) & (many >= 0)  # what is shown is no later than the query
    return gl.where(seen, score, gl.where(many >= 0, HIDDEN, UNKNOWN))


@gluon.jit(do_not_specialize=["sequences", "kv_heads", "blocks", "tiles", "k_stride", "v_stride", "row_stride",
                              "k_begin_stride", "v_begin_stride", "row_tiles", "many", "unit", "list_rows", "width", "sharing",
                              "cap"])  # fmt: skip
def lists_kernel(
    q_desc, k_desc, v_desc, o_desc, o, lse, rows, index, counts, row_begin, offsets, past, stored, base, k_begin, v_begin,
    pinned, ring, scale, sink_logit, cap, sequences, kv_heads, blocks, tiles, k_stride, v_stride, row_stride, k_begin_stride,
    v_begin_stride, row_tiles, many, unit, list_rows, width, sharing,
    ROW: gl.constexpr, GROUP: gl.constexpr, D: gl.constexpr, E: gl.constexpr, BLOCK_D: gl.constexpr, BLOCK_E: gl.constexpr,
    FAR: gl.constexpr, CAP: gl.constexpr, BLOCK_Q: gl.constexpr, BLOCK_K: gl.constexpr, SLOTS: gl.constexpr,
    Q_SLOTS: gl.constexpr, AHEAD: gl.constexpr, PIN: gl.constexpr, DIRECT: gl.constexpr, REGISTERS: gl.constexpr,
):  # fmt: skip
    lists = row_tiles, many, unit, index, counts, row_begin, list_rows, width, sharing
    batch = (offsets, past, sequences, kv_heads, blocks, tiles) + lists  # noqa: RUF005
    keys = rows, row_stride, stored, base, pinned, ring
    k_place = k_begin, k_begin_stride, k_stride
    v_place = v_begin, v_begin_stride, v_stride
    attend_tiles(
        (q_desc, k_desc, v_desc), (o_desc, o, lse), batch, keys, k_place, v_place, scale, sink_logit, cap, ROW, GROUP, D, E,
        BLOCK_D, BLOCK_E, FAR, CAP, False, BLOCK_Q, BLOCK_K, SLOTS, Q_SLOTS, AHEAD, PIN, DIRECT, REGISTERS,
    )  # fmt: skip


def settings(queries, keys, warps, slots, q_slots, ahead, registers, pin, direct):
    """The kernel's compile-time arguments; the party that is launched makes the others."""
    nears, strides, powers, _ = FORM
    return {
        "ROW": 1 + 4 * nears + strides + powers,
        "GROUP": GROUP,
        "D": HEAD_WIDTH,
        "E": VALUE_WIDTH,
        "BLOCK_D": width_of(HEAD_WIDTH),
        "BLOCK_E": width_of(VALUE_WIDTH),
        "FAR": strides + powers,
        "CAP": CAP,
        "BLOCK_Q": queries,
        "BLOCK_K": keys,
        "SLOTS": slots,
        "Q_SLOTS": q_slots,
        "AHEAD": ahead,
        "PIN": bool(pin),
        "DIRECT": bool(direct),
        "REGISTERS": registers,
        "num_warps": 4,
        "num_stages": 1,
        "enable_fp_fusion": True,
    }


def descriptors(constants):
    """Of queries, keys, values and outputs: name -> rows and columns of a block."""
    d, e, keys = width_of(HEAD_WIDTH), width_of(VALUE_WIDTH), constants["BLOCK_K"]
    return {"q_desc": (64, d), "k_desc": (keys, d), "v_desc": (keys, e), "o_desc": (64, e)}


def variants(architecture, element_size):
    """Every kernel that `attend` may launch, with its compile-time arguments."""
    if (architecture, element_size) not in BLOCKS:
        return ()
    return ((lists_kernel, settings(*BLOCKS[architecture, element_size])),)


def serves(q, lists):
    """Whether there is a tile for these queries and rows of lists."""
    return q.element_size() == 2 and lists.many >= 128


def attend(q, part, rows, form, batch, scale, cap, sink_logit, lists, *, blocks=None):
    """Attention of new queries to one part of the keys; arguments and results as of the function in Triton, where `serves`.

    q, k, v: bfloat16 or float16, of widths that are multiples of 8; scale: from 0 on.
    """
    tokens, heads, width = q.shape
    device, dtype = q.device, q.dtype
    sequences, kv_heads, _ = rows.shape
    choosers, list_rows, most = lists.index.shape
    assert serves(q, lists)
    assert (form.nears, form.strides, form.powers, form.causal) == FORM
    assert (width, part.v_width, heads) == (HEAD_WIDTH, VALUE_WIDTH, kv_heads * GROUP)
    assert choosers in (1, heads // MEMBERS)
    assert rows.stride(1) == rows.shape[2]
    assert (cap is not None, sink_logit is not None) == (CAP, SINK_LOGIT)
    assert dtype == part.k.dtype == part.v.dtype
    assert not part.rings
    o = torch.empty(tokens, heads, VALUE_WIDTH, dtype=dtype, device=device)
    lse = torch.empty(tokens, heads, dtype=torch.float32, device=device)
    chosen = blocks or BLOCKS[architecture(device), q.element_size()]
    assert UNIT % chosen[1] == 0
    row_tiles = -(-min(lists.many, batch.max_new) // chosen[0])
    count = lists.rows * row_tiles
    tiles = count * sequences * heads
    if tiles == 0 or tokens == 0:
        return o, lse
    if device not in PROCESSORS:
        PROCESSORS[device] = torch.cuda.get_device_properties(device).multi_processor_count
    q_block, k_block, v_block, o_block = descriptors({"BLOCK_K": chosen[1]}).values()
    views = (
        packed_view(q, *q_block),
        slots_view(part.k, part.k_stride, HEAD_WIDTH, *k_block),
        slots_view(part.v, part.v_stride, VALUE_WIDTH, *v_block),
        packed_view(o, *o_block),
    )
    sink_logit = scale if sink_logit is None else sink_logit
    tensors = (
        o, lse, rows, lists.index, lists.count, lists.row_begin, batch.offsets, batch.past, part.stored, part.base,
        part.k_begin, part.v_begin, part.pinned, part.ring, scale.contiguous(), sink_logit,
    )  # fmt: skip
    numbers = (
        0.0 if cap is None else cap, sequences, kv_heads, count, tiles, part.k_stride, part.v_stride, rows.stride(0),
        part.k_begin.stride(0), part.v_begin.stride(0), row_tiles, lists.many, UNIT, list_rows, most, heads // choosers,
    )  # fmt: skip
    key = (device, dtype, sink_logit.dtype, chosen)
    run(lists_kernel, min(tiles, PROCESSORS[device]), views, tensors, numbers, key, lambda: settings(*chosen))
    return o, lse
