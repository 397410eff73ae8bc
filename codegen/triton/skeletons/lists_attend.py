"""Softmax attention over keys that content chose, beside key intervals, each key once.

What was chosen are lists: for every row of queries and every chooser (a query head, a KV head, or one for all) the numbers of
units of UNIT keys, in rising order. A row is `many` neighbouring queries; it may be one query, or all of a call. A program
serves queries of one row with the heads that share its list, so all its lines read the same keys. It walks the key blocks of
the intervals and then those of the list; keys of the list that an interval shows are left out there. The next unit's number is
loaded a step ahead, so that loads of keys overlap with products.

Where every query of many has a list of its own, and that moves fewer bytes, lists are read unit by unit (lists_units.py).

The steps of a tile may be split among programs, whose partial results `combine_kernel` joins: the grid follows bounds, not
lengths, so a captured graph stays right while a cache grows.
"""

import torch
import triton
import triton.language as tl

from attnc.codegen.triton.skeletons.lists_parts import lines_of
from attnc.codegen.triton.skeletons.lists_tiles import attend_kernel, combine_kernel
from attnc.codegen.triton.skeletons.lists_units import gathered, join_kernel, units_kernel, unlisted
from attnc.codegen.triton.skeletons.scan_parts import architecture, run

FORM = (1, 0, 0, True)  # how many near intervals, strides and powers a row holds, and whether the future is hidden
HEAD_WIDTH = 64  # of queries and keys
VALUE_WIDTH = 64
GROUP = 1  # query heads for each KV head
MEMBERS = 1  # query heads that share a list: those of a KV head, or one
UNIT = 64  # keys
DISTANCES = False  # of units, the keys at chosen distances back from a query
BESIDE = 0  # keys of a unit of another list, which another launch reads beside what intervals show; 0: there is none
CAP = False
SINK_LOGIT = False
BY_UNITS = True  # lists of single queries of 2 bytes an element are read unit by unit
BLOCKS = {  # (architecture, bytes of an element): lines and keys of a block, warps, pipeline stages
    ("any", 2): (64, 64, 4, 2),
    ("any", 4): (32, 32, 4, 1),
}
UNIT_BLOCKS = {  # architecture: lines, warps, stages of a program that reads a unit
    "any": (16, 4, 1),
}
UNIT_SHARES = 4  # programs that share the queries of a unit
ROOM = 2**31  # bytes of parts
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


def settings(lines, block_k, warps, stages, direct):
    """The compile-time arguments of `attend_kernel`."""
    nears, strides, powers, _ = FORM
    return {
        "ROW": 1 + 4 * nears + strides + powers,
        "GROUP": GROUP,
        "MEMBERS": MEMBERS,
        "UNIT": UNIT,
        "DISTANCES": DISTANCES,
        "BESIDE": BESIDE,
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
    by_units = ((units_kernel, unit_settings(*UNIT_BLOCKS[architecture])), (join_kernel, join_settings())) if BY_UNITS else ()
    return (*tiles, (combine_kernel, combine_settings(MOST_SPLITS)), *(by_units if element_size == 2 else ()))


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
    `many` positions, at most `rows` of a sequence; C is H, G or 1; distances [C, S, n] uint8: which keys of listed units are
    read, by how far they lie back; taken: what another list has, table [C', r', n'] uint8, row_begin [S] int64, many; blocks =
    (lines, keys, warps, stages) in the table's place; splits: programs for each tile. Returns o [T, H, E] in q's dtype and the
    scores' natural log-sum-exp [T, H] fp32; a query
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
    assert (lists.distances is not None) == DISTANCES
    assert (lists.taken is not None) == (BESIDE > 0)
    if blocks is None and lists.many == 1 and batch.max_new > DECODE_TOKENS and q.element_size() == 2 and BY_UNITS:
        return attend_by_units(q, part, rows, batch, scale, cap, sink_logit, lists)
    o = torch.empty(tokens, heads, VALUE_WIDTH, dtype=q.dtype, device=q.device)
    lse = torch.empty(tokens, heads, dtype=torch.float32, device=q.device)
    launch(q, part, rows, batch, scale, cap, sink_logit, lists, o, lse, blocks, splits)
    return o, lse


def launch(q, part, rows, batch, scale, cap, sink_logit, lists, o, lse, blocks=None, splits=None):
    """What `attend` does query by query, into o, of any dtype, and lse."""
    tokens, heads, _ = q.shape
    sequences, kv_heads, _ = rows.shape
    choosers, list_rows, most = lists.index.shape
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
    distances = lists.count if lists.distances is None else lists.distances
    taken, taken_begin = (lists.count, lists.row_begin) if lists.taken is None else (lists.taken.table, lists.taken.row_begin)
    of_taken = (
        (heads, 0, 1, 0) if lists.taken is None else (heads // len(taken), taken.shape[1], lists.taken.many, taken.shape[2])
    )
    tensors = (
        q, part.k, part.v, o, lse, part_o, part_norm, rows, lists.index, lists.count, lists.row_begin, distances, taken,
        taken_begin, batch.offsets, batch.past, part.stored, part.base, part.k_begin, part.v_begin, scale.contiguous(),
        sink_logit,
    )  # fmt: skip
    numbers = (
        0.0 if cap is None else cap, kv_heads, tiles, row_tiles, lists.many, splits, list_rows, most, int(choosers > 1),
        distances.shape[-1] if DISTANCES else 0, *of_taken, token_stride, head_stride, part.k_stride, part.v_stride,
        rows.stride(0), part.k_begin.stride(0), part.v_begin.stride(0),
    )  # fmt: skip
    strides = token_stride | head_stride | part.k_stride | part.v_stride
    key = (q.device, q.dtype, o.dtype, sink_logit.dtype, lines, block_k, warps, stages, splits == 1)
    made = lambda: settings(lines, block_k, warps, stages, splits == 1)  # noqa: E731
    run(attend_kernel, programs * splits, tensors, numbers, strides, key, made)
    if splits > 1:
        tensors = part_o, part_norm, o, lse, sink_logit
        run(combine_kernel, tokens * heads, tensors, (heads, splits), 0, (*key, splits), lambda: combine_settings(splits))


def unit_settings(lines, warps, stages):
    """The compile-time arguments of `units_kernel`."""
    block = max(16, triton.next_power_of_2(UNIT))
    made, others = settings(lines, block, warps, stages, True), ("DIRECT", "DISTANCES", "BESIDE")
    return {name: value for name, value in made.items() if name not in others}


def join_settings():
    """Those of `join_kernel`."""
    wide = max(16, triton.next_power_of_2(VALUE_WIDTH))
    lines = triton.next_power_of_2(MEMBERS)
    return {
        "MEMBERS": MEMBERS,
        "E": VALUE_WIDTH,
        "BLOCK_M": lines,
        "BLOCK_E": wide,
        "num_warps": 1 if lines * wide <= 1024 else 4,
        "num_stages": 3,
        "enable_fp_fusion": True,
    }


def attend_by_units(q, part, rows, batch, scale, cap, sink_logit, lists):
    """What `attend` returns, of lists of single queries: intervals first, as if nothing was listed, then unit by unit."""
    tokens, heads, _ = q.shape
    sequences, kv_heads, _ = rows.shape
    choosers, list_rows, most = lists.index.shape
    o = torch.empty(tokens, heads, VALUE_WIDTH, dtype=q.dtype, device=q.device)
    lse = torch.empty(tokens, heads, dtype=torch.float32, device=q.device)
    near = torch.empty(tokens, heads, VALUE_WIDTH, dtype=torch.float32, device=q.device)
    launch(q, part, rows, batch, scale, cap, sink_logit, unlisted(lists, sequences), near, lse)
    sets, of_heads = heads // MEMBERS, int(choosers > 1)
    units = -(-(max([0, *part.bases]) + part.max_stored) // UNIT) + 1
    blocks = UNIT_BLOCKS[architecture(q.device)]
    at_once = max(1, ROOM // max(1, most * heads * (VALUE_WIDTH + 2) * 2))
    places = batch.offsets, batch.past, part.stored, part.base, part.k_begin, part.v_begin
    bound, token_stride, head_stride = 0.0 if cap is None else cap, *q.stride()[:2]
    strides = token_stride | head_stride | part.k_stride | part.v_stride
    for row_from in range(0, list_rows, at_once):
        some = slice(row_from, row_from + at_once)
        chunk = min(at_once, list_rows - row_from)
        readers, begins = gathered(lists.index[:, some], lists.count[:, some], lists.row_begin, row_from, sequences, units)
        parts = torch.empty(chunk * most * heads * VALUE_WIDTH, dtype=q.dtype, device=q.device)
        sums = torch.empty(chunk * most * heads, dtype=torch.float32, device=q.device)
        tensors = q, part.k, part.v, parts, sums, rows, readers, begins, *places, scale.contiguous()
        numbers = (
            bound, kv_heads, units, UNIT_SHARES, of_heads, choosers, chunk, most, row_from, token_stride, head_stride,
            part.k_stride, part.v_stride, rows.stride(0), part.k_begin.stride(0), part.v_begin.stride(0),
        )  # fmt: skip
        programs = sequences * sets * units * UNIT_SHARES
        key = q.device, q.dtype, "units", *blocks
        run(units_kernel, programs, tensors, numbers, strides, key, lambda: unit_settings(*blocks))
        tensors, numbers = (parts, sums, near, o, lse, lists.count), (sets, of_heads, chunk, most, row_from, list_rows)
        run(join_kernel, chunk * sets, tensors, numbers, 0, (q.device, q.dtype, "join"), join_settings)
    return o, lse
