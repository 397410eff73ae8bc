"""Softmax attention over key intervals, for a few new queries: the keys of a KV head are split among many programs.

All query heads of a KV head and all its new queries share a tile, so each key is read once. A program walks its even part of
the key blocks that the tile can see and leaves a partial result; `combine_kernel` joins the parts, in their order. All tiles
have equally many programs, or, where much is to be read, as many as their share of all work: `list_kernel` says which program
serves which tile. Both follow from lengths on the device, the grid only from bounds, so a captured graph stays right while a
cache grows.

Heads may differ in which keys they see: every sequence and KV head has a row of numbers, `rows`. Queries lie packed [T, H, D];
keys and values lie in slots, of which `position` says the place in the text.
"""

import torch
import triton
import triton.language as tl

FORM = (1, 0, 0, True)  # how many near intervals, strides and powers a row holds, and whether the future is hidden
HEAD_WIDTH = 64  # of queries and keys
VALUE_WIDTH = 1
GROUP = 1  # query heads for each KV head
CAP = False
SINK_LOGIT = False
EXPONENT = 0.0  # of re-weighted softplus masses; 0.0: their sum alone; None: a softmax
BLOCKS = {  # (architecture, bytes of an element): keys of a block, warps, warps of the largest tile, pipeline stages
    ("sm_80", 2): (64, 4, 8, 3),
    ("sm_90", 2): (64, 4, 4, 4),
    ("sm_100", 2): (64, 4, 8, 4),
    ("gfx942", 2): (64, 4, 4, 2),
    ("sm_80", 4): (16, 8, 8, 1),
    ("sm_90", 4): (16, 4, 8, 2),
    ("sm_100", 4): (32, 8, 16, 1),
    ("gfx942", 4): (32, 8, 8, 2),
    ("any", 2): (32, 4, 4, 1),
    ("any", 4): (32, 4, 4, 1),
}
MOST_ROWS = 64  # of a tile
MOST_SPLITS = 64  # of a tile where all have equally many; parts that are joined at once
LISTED_BLOCKS = 8192  # key blocks of all tiles from which a list is worth its launch: 270 MB at width 128 and 2 bytes
LISTED_TILES = 2048  # that one list may have
LISTED_PAIRS = 8192  # of programs and tiles that a program of `list_kernel` looks at

PROCESSORS = {}  # device -> how many it has
KNOWN = {}  # device -> its row of BLOCKS
READY = {}  # key of `run` -> what was compiled, how it is launched, and its compile-time arguments
HOOKS = triton.knobs.runtime
POINTER = torch.Tensor.data_ptr

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
HIDDEN = tl.constexpr(0.0)  # score of a key that is not seen
FLOOR = tl.constexpr(1e-30)  # least running maximum: HIDDEN has no weight beside it, so a row without keys stays empty
NOWHERE = tl.constexpr(2**30)  # position of a slot that holds no key; also "no bound"
PIECE = tl.constexpr(16)  # products of fp32 numbers are summed this many at a time, then the sums: errors add up less


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
def upper(numbers, i):
    """One past the last key near query i that it sees."""
    return i + 1


@triton.jit
def horizon(i):
    """One past the last key that causality shows to query i."""
    return i + 1


@triton.jit
def keep(numbers, i, j):
    """Whether the query at i sees the key at j."""
    sink, align, shift, back, ahead = numbers
    seen = j < sink
    seen |= j >= lower(numbers, i)
    return seen & (j <= i)


@triton.jit
def read_scale(scale, head, place, live):
    """The factor of a query's logits, the logarithm of its number of keys, and that number over the sum of its masses."""
    here = scale + place * 3
    return tl.load(here, mask=live, other=0.0), tl.load(here + 1, mask=live, other=0.0), tl.load(here + 2, mask=live, other=0.0)


@triton.jit
def softplus(x):
    """log(1 + exp(x)), without losing what is small: log(1 + u) is u times the polynomial of degree 9 whose largest relative
    error for u in [0, 1] is least (found by Lawson's reweighted least squares; 5e-9), without a division.
    """
    u = tl.exp(-tl.abs(x))
    series = -0.15305594 + u * (0.10603656 + u * (-0.05695954 + u * (0.019851463 + u * -0.0032440247)))
    series = 1.0 + u * (-0.499999 + u * (0.33329964 + u * (-0.24954134 + u * (0.1967594 + u * series))))
    return tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL) + u * series


@triton.jit
def logit(product, factor, count, cap):
    """The logit of a query and a key times log N."""
    return product * (factor * count)


@triton.jit
def adjust_score(product, scale, cap):
    """The mass of a query and a key."""
    factor, count, share = scale
    return softplus(logit(product, factor, count, cap))


@triton.jit
def weigh(score, peak):
    """A mass beside the largest so far."""
    return score * tl.div_rn(1.0, peak)


@triton.jit
def store_sums(sums, place, peak, norm, live):
    """Leaves the largest mass, and the sum of all over it."""
    tl.store(sums + 2 * place, peak, mask=live)
    tl.store(sums + 2 * place + 1, norm, mask=live)


@triton.jit
def add_sink_logit(best, norm, sink_logit, head):
    """Running maximum and sum with the learned logit that has no value."""
    return best, norm


@triton.jit
def reads(numbers, first, base, slots, whole):
    """About how many slots the queries from `first` on read: only shares of the work follow from it."""
    near = tl.maximum(slots - tl.maximum(lower(numbers, first) - base, 0), 0)
    return tl.where(whole, slots, tl.minimum(near + tl.maximum(numbers[0] - base, 0), slots))


@triton.jit
def visit(numbers, first, last, base, slots, whole, BLOCK_K: tl.constexpr):
    """Which key blocks the queries first..last see: how many of the first ones, the first near one, how many in all."""
    sink_end = tl.minimum(tl.maximum(tl.minimum(numbers[0], horizon(last)) - base, 0), slots)
    sink_blocks = tl.where(whole, 0, tl.cdiv(sink_end, BLOCK_K))
    begin = tl.where(whole, 0, tl.maximum(lower(numbers, first) - base, 0))
    end = tl.where(whole, slots, tl.minimum(tl.maximum(upper(numbers, last) - base, 0), slots))
    near_block = tl.maximum(begin // BLOCK_K, sink_blocks)
    near_blocks = tl.where(begin < end, tl.maximum(tl.cdiv(end, BLOCK_K) - near_block, 0), 0)
    return sink_blocks, near_block, sink_blocks + near_blocks


@triton.jit
def block_of(visits, step, base, slots, BLOCK_K: tl.constexpr):
    """The key block of a step."""
    sink_blocks, near_block, steps = visits
    return tl.where(step < sink_blocks, step, step - sink_blocks + near_block)


@triton.jit
def position(slot, base, stored, pinned, ring, slots, RINGS: tl.constexpr):
    """Where the keys of these slots stand in the text."""
    j = slot
    if RINGS:  # a slot behind the pinned ones holds the newest token whose number differs by a multiple of `ring`
        turns = tl.maximum(stored - 1 - pinned, 0) // ring * ring
        older = tl.where(slot > stored - 1 - turns, ring, 0)
        j = tl.where(slot < pinned, slot, slot + turns - older)
    return tl.where(slot < slots, base + j, NOWHERE)


@triton.jit(do_not_specialize=["kv_heads", "tiles", "units", "shares", "programs", "row_stride"])
def list_kernel(
    work, rows, offsets, past, stored, base, pinned, ring, kv_heads, tiles, units, shares, programs, row_stride,
    ROW: tl.constexpr, GROUP: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_K: tl.constexpr, UNITS: tl.constexpr,
    PLACES: tl.constexpr,
):  # fmt: skip
    """Of each program of `split_kernel`: its tile (a unit), which of the unit's programs it is, how many the unit has.

    All work is cut into about `shares` equal parts. A unit has a program for each of its parts, also for one begun, so all
    units together at most `shares + units`.
    """
    index = tl.arange(0, UNITS)
    unit = tl.minimum(index, units - 1)
    tile = unit % tiles
    group = unit // tiles % kv_heads
    sequence = unit // (tiles * kv_heads)
    count = (tl.load(offsets + sequence + 1) - tl.load(offsets + sequence)).to(tl.int32)
    ring_here = tl.load(ring + group)
    slots = tl.minimum(tl.load(stored + sequence), tl.load(pinned + group) + ring_here)
    numbers = read_row(rows + sequence * row_stride + group * ROW)
    first = tl.load(past + sequence).to(tl.int32) + tile * BLOCK_R // GROUP
    blocks = tl.cdiv(reads(numbers, first, tl.load(base + sequence), slots, ring_here < NOWHERE), BLOCK_K)
    live = (index < units) & (tile * BLOCK_R < count * GROUP)
    blocks = tl.where(live, tl.maximum(blocks, 1), 0)
    share = tl.maximum(tl.cdiv(tl.sum(blocks, 0), shares), 1)
    splits = tl.cdiv(blocks, share)
    ends = tl.cumsum(splits, 0)[None, :]
    program = tl.program_id(0) * PLACES + tl.arange(0, PLACES)
    before = ends <= program[:, None]
    own = tl.sum(before.to(tl.int32), 1)
    split = program - tl.max(tl.where(before, ends, 0), 1)
    of = tl.sum(tl.where(index[None, :] == own[:, None], splits[None, :], 0), 1)
    there = program < programs
    tl.store(work + 3 * program, tl.where(own < units, own, -1), mask=there)
    tl.store(work + 3 * program + 1, split, mask=there)
    tl.store(work + 3 * program + 2, of, mask=there)


@triton.jit(do_not_specialize=["kv_heads", "tiles", "splits", "lines", "row_stride", "k_begin_stride", "v_begin_stride"])
def split_kernel(
    q, k, v, parts, spans, work, rows, offsets, past, stored, base, k_begin, v_begin, pinned, ring, scale, cap, kv_heads, tiles,
    splits, lines, q_token_stride, q_head_stride, k_stride, v_stride, row_stride, k_begin_stride, v_begin_stride,
    ROW: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr, E: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    IN_PIECES: tl.constexpr = q.dtype.element_ty == tl.float32
    program = tl.program_id(0)
    unit = program // tl.maximum(splits, 1)
    split = program % tl.maximum(splits, 1)
    if splits == 0:
        unit = tl.load(work + 3 * program)
        split = tl.load(work + 3 * program + 1)
        splits = tl.load(work + 3 * program + 2)
    if unit < 0:
        return
    tile = unit % tiles
    group = unit // tiles % kv_heads
    sequence = unit // (tiles * kv_heads)

    token_begin = tl.load(offsets + sequence)
    count = (tl.load(offsets + sequence + 1) - token_begin).to(tl.int32)
    if tile * BLOCK_R >= count * GROUP:
        return
    numbers = read_row(rows + sequence * row_stride + group * ROW)
    start = tl.load(past + sequence).to(tl.int32)
    stored_here = tl.load(stored + sequence)
    base_here = tl.load(base + sequence)
    pinned_here = tl.load(pinned + group)
    ring_here = tl.load(ring + group)
    slots = tl.minimum(stored_here, pinned_here + ring_here)

    line = tile * BLOCK_R + tl.arange(0, BLOCK_R)
    token = line // GROUP
    head = group * GROUP + line % GROUP
    live = token < count
    d = tl.arange(0, BLOCK_D)
    e = tl.arange(0, BLOCK_E)
    i = (start + token)[:, None]
    row = token_begin + token
    q_here = q + (row * q_token_stride + head * q_head_stride)[:, None]
    if not IN_PIECES:
        query = tl.load(q_here + d[None, :], mask=live[:, None] & (d < D)[None, :], other=0.0)
    k_first = tl.multiple_of(tl.load(k_begin + sequence * k_begin_stride + group), D & -D)
    v_first = tl.multiple_of(tl.load(v_begin + sequence * v_begin_stride + group), E & -E)
    k_inside = tl.arange(0, BLOCK_K)[None, :] * k_stride  # keys transposed: [BLOCK_D, BLOCK_K]
    v_inside = e[None, :] + tl.arange(0, BLOCK_K)[:, None] * v_stride
    place = row * (kv_heads * GROUP) + head
    scale_here = read_scale(scale, head[:, None], place[:, None], live[:, None])

    first = start + tile * BLOCK_R // GROUP
    last = start + tl.minimum(count - 1, (tile * BLOCK_R + BLOCK_R - 1) // GROUP)
    visits = visit(numbers, first, last, base_here, slots, ring_here < NOWHERE, BLOCK_K)
    share = tl.cdiv(visits[-1], splits)
    best = tl.full([BLOCK_R], FLOOR, tl.float32)
    norm = tl.zeros([BLOCK_R], tl.float32)
    acc = tl.zeros([BLOCK_R, BLOCK_E], tl.float32)
    for step in tl.range(split * share, tl.minimum(split * share + share, visits[-1])):
        begin = block_of(visits, step, base_here, slots, BLOCK_K) * BLOCK_K
        slot = begin + tl.arange(0, BLOCK_K)
        here = slot < slots
        k_here = k + (k_first + begin.to(tl.int64) * k_stride)
        v_here = v + (v_first + begin.to(tl.int64) * v_stride)
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
        j = position(slot, base_here, stored_here, pinned_here, ring_here, slots, True)[None, :]
        score = tl.where(keep(numbers, i, j), score, HIDDEN)
        peak = tl.maximum(best, tl.max(score, 1))
        weight = weigh(score, peak[:, None])
        fade = weigh(best, peak)
        best = peak
        norm = norm * fade + tl.sum(weight, 1)
        value = tl.load(v_here + v_inside, mask=here[:, None] & (e < E)[None, :], other=0.0)
        if not IN_PIECES:
            acc = tl.dot(weight.to(value.dtype), value, acc * fade[:, None], input_precision="ieee")
        else:
            acc = tl.fma(acc, fade[:, None], tl.dot(weight, value, input_precision="ieee"))

    part = program.to(tl.int64) * lines + tl.arange(0, BLOCK_R)
    here = parts + part * (E + 4)
    tl.store(here[:, None] + e[None, :], acc, mask=(live & (norm != 0.0))[:, None] & (e < E)[None, :])
    tl.store(here + E, best, mask=live)
    tl.store(here + (E + 1), norm, mask=live)
    tl.store(spans + 2 * place, part.to(tl.int32), mask=live & (split == 0))
    tl.store(spans + 2 * place + 1, tl.zeros_like(token) + splits, mask=live & (split == 0))


@triton.jit(do_not_specialize=["heads", "lines"])
def combine_kernel(
    parts, spans, o, lse, sink_logit, heads, lines, E: tl.constexpr, BLOCK_E: tl.constexpr, SPLITS: tl.constexpr
):
    """One query of one head: its parts brought to one maximum and added. Behind a part's E sums lie its maximum and its norm;
    `spans` says which part is a query's first, the next ones are `lines` apart, and how many there are.
    """
    place = tl.program_id(0).to(tl.int64)
    begin = tl.load(spans + 2 * place).to(tl.int64)
    count = tl.load(spans + 2 * place + 1)
    e = tl.arange(0, BLOCK_E)
    best = tl.full([], FLOOR, tl.float32)
    norm = tl.full([], 0.0, tl.float32)
    acc = tl.zeros([BLOCK_E], tl.float32)
    for first in tl.range(0, count, SPLITS):
        split = first + tl.arange(0, SPLITS)
        here = parts + (begin + split * lines) * (E + 4)
        top = tl.load(here + E, mask=split < count, other=FLOOR)
        part = tl.load(here + (E + 1), mask=split < count, other=0.0)
        value = tl.load(here[:, None] + e[None, :], mask=(part != 0.0)[:, None] & (e < E)[None, :], other=0.0)
        peak = tl.maximum(best, tl.max(top, 0))
        weight = weigh(top, peak)
        fade = weigh(best, peak)
        best = peak
        norm = norm * fade + tl.sum(weight * part, 0)
        acc = acc * fade + tl.sum(weight[:, None] * value, 0)
    peak, norm = add_sink_logit(best, norm, sink_logit, place % heads)
    acc = acc * (weigh(best, peak) / tl.where(norm != 0.0, norm, 1.0))
    tl.store(o + place * E + e, acc.to(o.dtype.element_ty), mask=e < E)
    store_sums(lse, place, peak, norm, True)


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
    that are compiled for, together) are multiples of 16, `key`, whose first part is the device, says the rest, and what was
    compiled for it runs at once, as by `compiled[programs, 1, 1](...)`, which prepares much for hooks even where none is set.
    """
    if programs == 0:
        return
    pointers = list(map(POINTER, tensors))
    bits = strides
    for pointer in pointers:
        bits |= pointer
    plain = bits % 16 == 0 and strides < 2**31
    if plain and key in READY:
        compiled, start, stream, function, packed, rest = READY[key]
        if HOOKS.launch_enter_hook.calls or HOOKS.launch_exit_hook.calls:
            compiled[programs, 1, 1](*pointers, *numbers, *rest)
        else:
            start(programs, 1, 1, stream(key[0].index), function, packed, None, None, None, *pointers, *numbers, *rest)
        return
    settings = constants()
    compiled = kernel[(programs,)](*tensors, *numbers, **settings)
    if plain and compiled is not None:  # Triton's interpreter compiles nothing
        rest = [settings[name] for name in kernel.arg_names[len(tensors) + len(numbers) :]]
        stream = triton.runtime.driver.active.get_current_stream
        READY[key] = compiled, compiled.run, stream, compiled.function, compiled.packed_metadata, rest


def row_width():
    """How many numbers a row holds."""
    nears, strides, powers, _ = FORM
    return 1 + 4 * nears + strides + powers


def list_settings(block_r, block_k, units):
    """The compile-time arguments of `list_kernel`."""
    return {
        "ROW": row_width(),
        "GROUP": GROUP,
        "BLOCK_R": block_r,
        "BLOCK_K": block_k,
        "UNITS": power_of_2(units),
        "PLACES": min(128, LISTED_PAIRS // power_of_2(units)),
        "num_warps": 4,
        "num_stages": 1,
    }


def split_settings(block_r, block_k, warps, most_warps, stages):
    """The compile-time arguments of `split_kernel`."""
    return {
        "ROW": row_width(),
        "GROUP": GROUP,
        "D": HEAD_WIDTH,
        "E": VALUE_WIDTH,
        "BLOCK_D": max(16, triton.next_power_of_2(HEAD_WIDTH)),
        "BLOCK_E": max(16, triton.next_power_of_2(VALUE_WIDTH)),
        "BLOCK_R": block_r,
        "BLOCK_K": block_k,
        "num_warps": most_warps if block_r == MOST_ROWS else warps,
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
    """The kernels that `attend` may launch, with their compile-time arguments; of those but `split_kernel` the largest."""
    blocks = BLOCKS[architecture, element_size]
    tiles = tuple((split_kernel, split_settings(rows, *blocks)) for rows in (16, 32, MOST_ROWS))
    listing = (list_kernel, list_settings(16, blocks[0], LISTED_TILES))
    return (*tiles, (combine_kernel, combine_settings(MOST_SPLITS)), listing)


def count_programs(device, sequences):
    """How many programs keep a device busy: two on every processor.

    Lengths are on the device. Of several sequences one may be as long as all others, so work is cut smaller.
    """
    if device not in PROCESSORS:
        cuda = device.type == "cuda"
        PROCESSORS[device] = torch.cuda.get_device_properties(device).multi_processor_count if cuda else 4
    return (2 if sequences == 1 else 16) * PROCESSORS[device]


def count_splits(wanted, units, most):
    """How many programs share the keys of a tile, where all have equally many: each has a block to read."""
    return min(MOST_SPLITS, most, -(-wanted // (units or 1)))


def power_of_2(number):
    """The least power of two that is not below a number."""
    return 1 << max(0, number - 1).bit_length()


def attend(q, part, rows, form, batch, scale, cap=None, sink_logit=None, *, blocks=None, splits=None):
    """Attention of a few new queries to one part of the keys, whose `max_slots` are as many as a head has of a sequence.

    q [T, H, D], the sequences of `batch` one after another, the last axis dense; part: a KeyPart, whose begins and strides are
    multiples of their width; rows [S, G, R] int32, made for `form`; batch: offsets [S + 1] and past [S] int64, and max_new, at
    least the most new tokens of a sequence; scale [H] fp32; cap: soft cap of the scores; sink_logit [H] fp32;
    blocks = (keys, warps, warps of the largest tile, stages) instead of the table's; splits: programs for each tile,
    or 0: as a list shares them out.
    Returns o [T, H, E] in q's dtype and the scores' natural log-sum-exp [T, H] fp32; a query without keys has 0 and -inf.
    With an EXPONENT scale is [T, H, 3], and in place of the log-sum-exp come a largest score and a sum [T, H, 2].
    """
    tokens, heads, width = q.shape
    sequences, kv_heads, row_numbers = rows.shape
    assert (form.nears, form.strides, form.powers, form.causal) == FORM
    assert (width, part.v_width, heads) == (HEAD_WIDTH, VALUE_WIDTH, kv_heads * GROUP)
    token_stride, head_stride, dense = q.stride()
    row_stride, head_row, _ = rows.stride()
    assert (dense, head_row) == (1, row_numbers)
    assert (cap is not None, sink_logit is not None) == (CAP, SINK_LOGIT)
    assert q.dtype == part.k.dtype == part.v.dtype
    chosen = blocks or BLOCKS[architecture(q.device), q.element_size()]
    lines = GROUP * batch.max_new
    block_r = min(MOST_ROWS, max(16, power_of_2(lines)))
    tiles = -(-lines // block_r)
    lines = lines if tiles == 1 else block_r
    units = sequences * kv_heads * tiles
    most = -(-part.max_slots // chosen[0]) or 1
    wanted = count_programs(q.device, sequences)
    if splits is None:
        much = units * most >= LISTED_BLOCKS and units <= LISTED_TILES
        splits = 0 if much and (sequences > 1 or part.rings) else count_splits(wanted, units, most)
    programs = units * splits if splits else min(wanted + units, units * most)
    work = rows
    if splits == 0:
        work = torch.empty(programs, 3, dtype=torch.int32, device=q.device)
        tensors = work, rows, batch.offsets, batch.past, part.stored, part.base, part.pinned, part.ring
        numbers = kv_heads, tiles, units, wanted, programs, row_stride
        key = (q.device, "list", block_r, chosen, power_of_2(units))
        settings = list_settings(block_r, chosen[0], units)
        run(list_kernel, -(-programs // settings["PLACES"]), tensors, numbers, 0, key, lambda: settings)
    o = torch.empty(tokens, heads, VALUE_WIDTH, dtype=q.dtype, device=q.device)
    lse = torch.empty(tokens, heads, *([] if EXPONENT is None else [2]), dtype=torch.float32, device=q.device)
    parts = torch.empty(programs * lines, VALUE_WIDTH + 4, dtype=torch.float32, device=q.device)
    spans = torch.empty(tokens, heads, 2, dtype=torch.int32, device=q.device)
    scale = scale.contiguous()
    sink_logit = scale if sink_logit is None else sink_logit
    tensors = (
        q, part.k, part.v, parts, spans, work, rows, batch.offsets, batch.past, part.stored, part.base, part.k_begin,
        part.v_begin, part.pinned, part.ring, scale,
    )  # fmt: skip
    numbers = (
        0.0 if cap is None else cap, kv_heads, tiles, splits, lines, token_stride, head_stride, part.k_stride, part.v_stride,
        row_stride, part.k_begin.stride(0), part.v_begin.stride(0),
    )  # fmt: skip
    strides = token_stride | head_stride | part.k_stride | part.v_stride
    key = (q.device, q.dtype, block_r, chosen)
    run(split_kernel, programs, tensors, numbers, strides, key, lambda: split_settings(block_r, *chosen))
    tensors = (parts, spans, o, lse, sink_logit)
    together = power_of_2(splits) if 0 < splits < MOST_SPLITS else MOST_SPLITS
    key = (q.device, q.dtype, sink_logit.dtype, together)
    run(combine_kernel, tokens * heads, tensors, (heads, lines), 0, key, lambda: combine_settings(together))
    return o, lse
