"""The backward pass of softmax attention over keys that content chose, beside key intervals: see lists_attend.

For queries a program walks the keys of its tile again, or gathers the queries of a unit where attention did. For keys and
values a program has a block of keys of one unit: it walks the queries that see them by the intervals, then those of the rows
that list the unit, for all heads of the KV head, from lists that were turned round on the device by a sort. A tile of queries
stands in one row, or where rows are shorter is gathered from several. Nothing is added by atomics, so runs have the same bits.
"""

import torch
import triton
import triton.language as tl

from attnc.codegen.triton.skeletons.lists_keys import keys_kernel
from attnc.codegen.triton.skeletons.lists_parts import lines_of
from attnc.codegen.triton.skeletons.lists_queries import queries_kernel
from attnc.codegen.triton.skeletons.lists_unit_queries import add_kernel, unit_queries_kernel
from attnc.codegen.triton.skeletons.lists_units import gathered, unlisted
from attnc.codegen.triton.skeletons.scan_parts import architecture, run

FORM = (1, 0, 0, True)  # how many near intervals, strides and powers a row holds, and whether the future is hidden
HEAD_WIDTH = 64  # of queries and keys
VALUE_WIDTH = 64
GROUP = 1  # query heads for each KV head
MEMBERS = 1  # query heads that share a list: those of a KV head, or one
UNIT = 64  # keys
CAP = False
BY_UNITS = True  # for lists of single queries of 2 bytes an element, gradients of queries are found unit by unit
BLOCKS = {  # (architecture, bytes of an element): lines and keys of a block, warps, pipeline stages
    ("any", 2): (64, 64, 4, 2),
    ("any", 4): (32, 32, 4, 1),
}

UNIT_BLOCKS = {  # architecture: lines, warps, stages of a program that reads a unit
    "any": (16, 4, 1),
}
UNIT_SHARES = 4  # programs that share the queries of a unit
ROOM = 2**31  # bytes of parts
DECODE_TOKENS = 16  # new tokens of a sequence up to which lists are read query by query

KNOWN = {}  # device -> its row of BLOCKS
READY = {}  # key of `run` -> what was compiled, and its compile-time arguments

LOG2E = tl.constexpr(1.4426950408889634)
HIDDEN = tl.constexpr(-1e30)  # logarithm of the weight of a key that is not seen
EMPTY = tl.constexpr(1e30)  # log-sum-exp of a query without keys: nothing has a weight beside it
NOWHERE = tl.constexpr(2**30)  # position of a slot that holds no key; also "no bound"


def settings(lines, block_k, warps, stages):
    """The compile-time arguments of both kernels."""
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
        "BLOCK_R": lines,
        "BLOCK_K": block_k,
        "num_warps": warps,
        "num_stages": stages,
        "enable_fp_fusion": True,
    }


def key_settings(most_lines, block_k, warps, stages, many):
    """Those of `keys_kernel`: a block holds keys of one unit; two sums beside it leave room for half as many lines.

    TILES: each tile's lines stand in one row of the lists, else they are gathered from several.
    """
    lines = max(16, triton.next_power_of_2(MEMBERS), most_lines // 2)
    made = settings(lines, max(16, min(block_k, triton.next_power_of_2(UNIT))), warps, stages)
    return {**made, "TILES": many * MEMBERS >= lines}


def unit_settings(lines, warps, stages):
    """The compile-time arguments of `unit_queries_kernel`."""
    return settings(lines, max(16, triton.next_power_of_2(UNIT)), warps, stages)


def add_settings():
    """Those of `add_kernel`."""
    wide, lines = max(16, triton.next_power_of_2(HEAD_WIDTH)), triton.next_power_of_2(MEMBERS)
    warps = 1 if lines * wide <= 1024 else 4
    return {"MEMBERS": MEMBERS, "D": HEAD_WIDTH, "BLOCK_M": lines, "BLOCK_D": wide, "num_warps": warps, "num_stages": 3,
            "enable_fp_fusion": True}  # fmt: skip


def variants(architecture, element_size):
    """Kernels that `attend_backward` may launch, with their compile-time arguments: smallest and largest tiles."""
    lines, *rest = BLOCKS[architecture, element_size]
    sizes = sorted({lines_of(1, lines), lines_of(lines, lines)})
    of_keys = [key_settings(lines, *rest, many) for many in (1, 2**30)]
    tiles = (*((queries_kernel, settings(size, *rest)) for size in sizes), *((keys_kernel, one) for one in of_keys))
    if not BY_UNITS or element_size != 2:
        return tiles
    return (*tiles, (unit_queries_kernel, unit_settings(*UNIT_BLOCKS[architecture])), (add_kernel, add_settings()))


def turned(lists, sequences, units):
    """Which rows list each unit: row SETS + which of a KV head's lists [n]; where those of sequence, unit and chooser begin."""
    choosers, rows, most = lists.index.shape
    assert choosers > 1 or MEMBERS == GROUP
    pairs, begins = gathered(lists.index, lists.count, lists.row_begin, 0, sequences, units, by_chooser=False)
    row = torch.arange(rows, device=pairs.device)
    own = row - lists.row_begin[torch.searchsorted(lists.row_begin, row, right=True) - 1]
    sets = GROUP // MEMBERS
    return (own[pairs // most % rows] * sets + pairs // (most * rows) % sets).to(torch.int32), begins


def attend_backward(q, part, rows, form, batch, scale, cap, lists, o, lse, o_grad, lse_grad, *, blocks=None):
    """The gradients of `attend` (lists_attend), whose arguments and results o and lse it takes.

    o_grad [T, H, E] and lse_grad [T, H] fp32: the results' gradients; blocks = (lines, keys, warps, stages), else the table's.
    Returns q_grad [T, H, D] and delta [T, H] fp32, the sum over E of o o_grad less lse_grad; k_grad and v_grad, flat as part.k
    and part.v: zeros where no sequence of the part has a slot.
    """
    tokens, heads, width = q.shape
    kv_heads = rows.shape[1]
    assert (form.nears, form.strides, form.powers, form.causal) == FORM
    assert (width, part.v_width, heads) == (HEAD_WIDTH, VALUE_WIDTH, kv_heads * GROUP)
    assert q.stride(2) == 1
    assert rows.stride(1) == rows.shape[2]
    assert q.dtype == part.k.dtype == part.v.dtype == o_grad.dtype
    assert not part.rings
    call = q, part, rows, batch, scale.contiguous(), 0.0 if cap is None else cap
    o, lse, o_grad, lse_grad = (x.contiguous() for x in (o, lse, o_grad, lse_grad))
    of_units = blocks is None and BY_UNITS and lists.many == 1 and batch.max_new > DECODE_TOKENS and q.element_size() == 2
    blocks = blocks or BLOCKS[architecture(q.device), q.element_size()]
    q_grad = torch.empty(tokens, heads, width, dtype=q.dtype, device=q.device)
    delta = torch.empty(tokens, heads, dtype=torch.float32, device=q.device)
    if of_units:
        near = torch.empty(tokens, heads, width, dtype=torch.float32, device=q.device)
        launch_queries(*call, unlisted(lists, len(rows)), o, lse, o_grad, lse_grad, near, delta, blocks)
        launch_units(*call, lists, lse, delta, o_grad, near, q_grad)
    else:
        launch_queries(*call, lists, o, lse, o_grad, lse_grad, q_grad, delta, blocks)
    return q_grad, delta, *launch_keys(*call, lists, lse, delta, o_grad, blocks)


def launch_queries(q, part, rows, batch, scale, cap, lists, o, lse, o_grad, lse_grad, q_grad, delta, blocks):
    """Gradients of queries, tile by tile, into q_grad, of any dtype, and delta."""
    heads, (sequences, kv_heads, _) = q.shape[1], rows.shape
    choosers, list_rows, most = lists.index.shape
    most_lines, *rest = blocks
    lines = lines_of(lists.many, most_lines)
    row_tiles = -(-min(lists.many, batch.max_new) // (lines // MEMBERS))
    tiles = lists.rows * row_tiles
    tensors = (
        q, part.k, part.v, o, lse, o_grad, lse_grad, q_grad, delta, rows, lists.index, lists.count, lists.row_begin,
        batch.offsets, batch.past, part.stored, part.base, part.k_begin, part.v_begin, scale,
    )  # fmt: skip
    token_stride, head_stride, _ = q.stride()
    numbers = (
        cap, kv_heads, tiles, row_tiles, lists.many, list_rows, most, int(choosers > 1), token_stride, head_stride,
        part.k_stride, part.v_stride, rows.stride(0), part.k_begin.stride(0), part.v_begin.stride(0),
    )  # fmt: skip
    strides, key = token_stride | head_stride | part.k_stride | part.v_stride, (q.device, q.dtype, q_grad.dtype, lines, *rest)
    run(queries_kernel, sequences * heads // MEMBERS * tiles, tensors, numbers, strides, key, lambda: settings(lines, *rest))


def launch_units(q, part, rows, batch, scale, cap, lists, lse, delta, o_grad, near, q_grad):
    """Gradients of queries by lists, unit by unit, and `near` added, into q_grad."""
    heads, (sequences, kv_heads, _) = q.shape[1], rows.shape
    choosers, list_rows, most = lists.index.shape
    sets, of_heads = heads // MEMBERS, int(choosers > 1)
    units = units_of(part)
    blocks = UNIT_BLOCKS[architecture(q.device)]
    at_once = max(1, ROOM // max(1, most * heads * HEAD_WIDTH * 4))
    places = batch.offsets, batch.past, part.stored, part.base, part.k_begin, part.v_begin
    token_stride, head_stride, _ = q.stride()
    strides = token_stride | head_stride | part.k_stride | part.v_stride
    for row_from in range(0, list_rows, at_once):
        some = slice(row_from, row_from + at_once)
        chunk = min(at_once, list_rows - row_from)
        readers, begins = gathered(lists.index[:, some], lists.count[:, some], lists.row_begin, row_from, sequences, units)
        parts = torch.empty(chunk * most * heads * HEAD_WIDTH, dtype=torch.float32, device=q.device)
        tensors = q, part.k, part.v, lse, delta, o_grad, parts, rows, readers, begins, *places, scale
        numbers = (
            cap, kv_heads, units, UNIT_SHARES, of_heads, choosers, chunk, most, row_from, token_stride, head_stride,
            part.k_stride, part.v_stride, rows.stride(0), part.k_begin.stride(0), part.v_begin.stride(0),
        )  # fmt: skip
        programs, key = sequences * sets * units * UNIT_SHARES, (q.device, q.dtype, "units", *blocks)
        run(unit_queries_kernel, programs, tensors, numbers, strides, key, lambda: unit_settings(*blocks))
        tensors, numbers = (parts, near, q_grad, lists.count), (sets, of_heads, chunk, most, row_from, list_rows)
        run(add_kernel, chunk * sets, tensors, numbers, 0, (q.device, q.dtype, "add"), add_settings)


def launch_keys(q, part, rows, batch, scale, cap, lists, lse, delta, o_grad, blocks):
    """Gradients of keys and values, flat as part.k and part.v."""
    sequences, kv_heads, _ = rows.shape
    copies = sequences if part.shared else 1  # all sequences read the same keys: a storage for each, then the sum
    apart = torch.arange(sequences, device=q.device)[:, None] * part.shared
    k_grad = torch.zeros(copies, part.k.numel(), dtype=part.k.dtype, device=q.device)
    v_grad = torch.zeros(copies, part.v.numel(), dtype=part.v.dtype, device=q.device)
    starts = [(begin + apart * flat.numel()).contiguous() for begin, flat in ((part.k_begin, part.k), (part.v_begin, part.v))]
    units = units_of(part)
    readers, begins = turned(lists, sequences, units)
    block = key_settings(*blocks, lists.many)
    pieces = (UNIT + block["BLOCK_K"] - 1) // block["BLOCK_K"]
    tensors = (
        q, part.k, part.v, lse, delta, o_grad, k_grad, v_grad, rows, readers, begins, batch.offsets, batch.past, part.stored,
        part.base, part.k_begin, part.v_begin, *starts, scale,
    )  # fmt: skip
    at_once = min(lists.many, batch.max_new)
    row_tiles = -(-at_once // max(1, block["BLOCK_R"] // MEMBERS))
    token_stride, head_stride, _ = q.stride()
    numbers = (
        cap, sequences, kv_heads, lists.many, at_once, row_tiles, len(lists.index), units, token_stride, head_stride,
        part.k_stride, part.v_stride, part.k_stride, part.v_stride, rows.stride(0), part.k_begin.stride(0),
        part.v_begin.stride(0),
    )  # fmt: skip
    strides, key = token_stride | head_stride | part.k_stride | part.v_stride, (q.device, q.dtype, *blocks, block["TILES"])
    programs = (-(-part.max_stored // UNIT) + 1) * pieces * sequences * kv_heads
    run(keys_kernel, programs, tensors, numbers, strides, key, lambda: block)
    return (k_grad.sum(0), v_grad.sum(0)) if part.shared else (k_grad[0], v_grad[0])


def units_of(part):
    """How many units there may be."""
    return -(-(max([0, *part.bases]) + part.max_stored) // UNIT) + 1
