"""The backward pass of softmax attention over keys that content chose, beside key intervals: see lists_attend.

For queries a program walks the keys of its tile again. For keys and values a program has a block of keys of one unit: it walks
the queries that see them by the intervals, then the rows that list the unit, one after another, from lists that were turned
round on the device by a sort. Nothing is added by atomics, so the same inputs give the same bits.
"""

import torch
import triton
import triton.language as tl

FORM = (1, 0, 0, True)  # how many near intervals, strides and powers a row holds, and whether the future is hidden
HEAD_WIDTH = 64  # of queries and keys
VALUE_WIDTH = 64
GROUP = 1  # query heads for each KV head
MEMBERS = 1  # query heads that share a list: those of a KV head, or one
UNIT = 64  # keys
CAP = False
BLOCKS = {  # (architecture, bytes of an element): lines and keys of a block, warps, pipeline stages
    ("any", 2): (64, 64, 4, 2),
    ("any", 4): (32, 32, 4, 1),
}

KNOWN = {}  # device -> its row of BLOCKS
READY = {}  # key of `run` -> what was compiled, and its compile-time arguments

LOG2E = tl.constexpr(1.4426950408889634)
HIDDEN = tl.constexpr(-1e30)  # logarithm of the weight of a key that is not seen
EMPTY = tl.constexpr(1e30)  # log-sum-exp of a query without keys: nothing has a weight beside it
NOWHERE = tl.constexpr(2**30)  # position of a slot that holds no key; also "no bound"


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
    return ((j >= lower(numbers, i)) | (j < sink)) & (j <= i)


@triton.jit
def load_sums(lse, place, live):
    """What the forward pass left of a query: the log-sum-exp of its scores, to base 2; NaN stays."""
    sums = tl.load(lse + place, mask=live, other=float("-inf"))
    return tl.where(sums == float("-inf"), EMPTY, sums * LOG2E)


@triton.jit
def exponent(product, scale, cap, sums):
    """The logit of a query and a key less the query's log-sum-exp, to base 2."""
    return product * (scale * LOG2E) - sums


@triton.jit
def product_grad(grad, product, scale, cap):
    """The gradient of a query's and a key's product, from that of their logit."""
    return grad * scale


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
def seen_from(numbers, j):
    """The first query that sees key j, and no later one than for the next key."""
    return j


@triton.jit
def seen_until(numbers, j):
    """One past the last query near key j that sees it."""
    sink, align, shift, back, ahead = numbers
    return ((j + shift + back) // align + 1) * align - shift


@triton.jit
def visit_queries(numbers, first, last, start, count, BLOCK_Q: tl.constexpr):
    """Which query blocks see the keys at first..last: the first one, how many in all."""
    begin = tl.minimum(tl.maximum(seen_from(numbers, first) - start, 0), count)
    until = tl.where(first < numbers[0], NOWHERE, seen_until(numbers, last))
    end = tl.minimum(tl.maximum(until - start, 0), count)
    return begin // BLOCK_Q, tl.where(begin < end, tl.cdiv(end, BLOCK_Q) - begin // BLOCK_Q, 0)


@triton.jit
def query_block_of(visits, step, count, BLOCK_Q: tl.constexpr):
    """The query block of a step."""
    first_block, steps = visits
    return first_block + step


@triton.jit
def chosen(index, count, step, base, UNIT: tl.constexpr, BLOCK_K: tl.constexpr):
    """The slots of a step's keys: the first one where units are whole blocks, else each."""
    if UNIT % BLOCK_K == 0:
        at = tl.minimum(tl.maximum(step * BLOCK_K // UNIT, 0), tl.maximum(count - 1, 0))
        unit = tl.load(index + at, mask=count > 0, other=0)
        slot = unit * UNIT + step * BLOCK_K % UNIT - base
    else:
        key = step * BLOCK_K + tl.arange(0, BLOCK_K)
        there = (key >= 0) & (key < count * UNIT)
        unit = tl.load(index + key // UNIT, mask=there, other=0)
        slot = tl.where(there, unit * UNIT + key % UNIT - base, NOWHERE)
    return slot


@triton.jit(do_not_specialize=["kv_heads", "tiles", "row_tiles", "many", "list_rows", "width", "of_heads", "row_stride",
                               "k_begin_stride", "v_begin_stride"])  # fmt: skip
def queries_kernel(
    q, k, v, o, lse, o_grad, lse_grad, q_grad, delta, rows, index, counts, row_begin, offsets, past, stored, base, k_begin,
    v_begin, scale, cap, kv_heads, tiles, row_tiles, many, list_rows, width, of_heads, q_token_stride, q_head_stride, k_stride,
    v_stride, row_stride, k_begin_stride, v_begin_stride,
    ROW: tl.constexpr, GROUP: tl.constexpr, MEMBERS: tl.constexpr, UNIT: tl.constexpr, D: tl.constexpr, E: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    SUMS_APART: tl.constexpr = q.dtype.element_ty == tl.float32
    WHOLE_BLOCKS: tl.constexpr = UNIT % BLOCK_K == 0
    QUERIES: tl.constexpr = BLOCK_R // MEMBERS
    SETS: tl.constexpr = GROUP // MEMBERS
    program = tl.program_id(0)
    member = program % SETS
    tile = tiles - 1 - program // SETS % tiles
    group = program // (SETS * tiles) % kv_heads
    sequence = program // (SETS * tiles * kv_heads)

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
    d = tl.arange(0, BLOCK_D)[None, :]
    e = tl.arange(0, BLOCK_E)[None, :]
    i = (start + token)[:, None]
    row = token_begin + token
    place = row * (kv_heads * GROUP) + head
    in_q = live[:, None] & (d < D)
    in_o = live[:, None] & (e < E)
    query = tl.load(q + (row * q_token_stride + head * q_head_stride)[:, None] + d, mask=in_q, other=0.0)
    grad = tl.load(o_grad + place[:, None] * E + e, mask=in_o, other=0.0)
    result = tl.load(o + place[:, None] * E + e, mask=in_o, other=0.0)
    shared = tl.sum(result.to(tl.float32) * grad.to(tl.float32), 1) - tl.load(lse_grad + place, mask=live, other=0.0)
    tl.store(delta + place, shared, mask=live)
    sums = load_sums(lse, place[:, None], live[:, None])
    scale_here = tl.load(scale + head)[:, None]
    k_first = tl.multiple_of(tl.load(k_begin + sequence * k_begin_stride + group), D & -D)
    v_first = tl.multiple_of(tl.load(v_begin + sequence * v_begin_stride + group), E & -E)

    chooser = (group * SETS + member) * of_heads  # of_heads 0: one list for all
    list_place = chooser.to(tl.int64) * list_rows + tl.load(row_begin + sequence) + list_row
    count = tl.maximum(tl.load(counts + list_place), 0)
    index_here = index + list_place * width
    visits = visit(numbers, first, last, base_here, slots, False, BLOCK_K)
    near_steps = visits[-1]
    steps = near_steps + tl.cdiv(count * UNIT, BLOCK_K)
    acc = tl.zeros([BLOCK_R, BLOCK_D], tl.float32)
    ahead = chosen(index_here, count, -near_steps, base_here, UNIT, BLOCK_K)
    for step in tl.range(0, steps):
        listed = step >= near_steps
        near = block_of(visits, step, base_here, slots, BLOCK_K) * BLOCK_K
        if WHOLE_BLOCKS:
            slot = tl.where(listed, ahead, near) + tl.arange(0, BLOCK_K)
        else:
            slot = tl.where(listed, ahead, near + tl.arange(0, BLOCK_K))
        ahead = chosen(index_here, count, step + 1 - near_steps, base_here, UNIT, BLOCK_K)
        here = (slot >= 0) & (slot < slots)
        at = slot.to(tl.int64)[:, None]
        key = tl.load(k + k_first + at * k_stride + d, mask=here[:, None] & (d < D), other=0.0)
        value = tl.load(v + v_first + at * v_stride + e, mask=here[:, None] & (e < E), other=0.0)
        product = tl.dot(query, tl.trans(key), input_precision="ieee")
        weight_grad = tl.dot(grad, tl.trans(value), input_precision="ieee")
        power = exponent(product, scale_here, cap, sums)
        j = tl.where(here, base_here + slot, NOWHERE)[None, :]
        near_seen = keep(numbers, i, j)
        power = tl.where(tl.where(listed, (j <= i) & (near_seen == 0), near_seen), power, HIDDEN)
        change = tl.exp2(power) * (weight_grad - shared[:, None])
        change = product_grad(change, product, scale_here, cap)
        if SUMS_APART:  # an accumulator of tl.dot would take one product after the other
            acc = tl.fma(tl.dot(change, key, input_precision="ieee"), 1.0, acc)
        else:
            acc = tl.dot(change.to(key.dtype), key, acc)
    q_there = q_grad + (place * D)[:, None] + d
    tl.store(q_there, acc.to(q_grad.dtype.element_ty), mask=in_q)


@triton.jit
def add_keys(
    k_acc, v_acc, key, value, j, row, place, i, head, live, listed, numbers, q, o_grad, lse, delta, scale, cap,
    q_token_stride, q_head_stride,
    D: tl.constexpr, E: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """The gradients of some keys with what a tile of queries adds: lines at positions i, of tokens `row` and heads."""
    SUMS_APART: tl.constexpr = q.dtype.element_ty == tl.float32
    d = tl.arange(0, BLOCK_D)[None, :]
    e = tl.arange(0, BLOCK_E)[None, :]
    query = tl.load(q + (row * q_token_stride + head * q_head_stride)[:, None] + d, mask=live[:, None] & (d < D), other=0.0)
    grad = tl.load(o_grad + place[:, None] * E + e, mask=live[:, None] & (e < E), other=0.0)
    sums = load_sums(lse, place[None, :], live[None, :])
    shared = tl.load(delta + place, mask=live, other=0.0)[None, :]
    scale_here = tl.load(scale + head, mask=live, other=0.0)[None, :]
    product = tl.dot(key, tl.trans(query), input_precision="ieee")
    weight_grad = tl.dot(value, tl.trans(grad), input_precision="ieee")
    power = exponent(product, scale_here, cap, sums)
    near_seen = keep(numbers, i[None, :], j)
    seen = tl.where(listed, (j <= i[None, :]) & (near_seen == 0), near_seen) & live[None, :]
    weight = tl.exp2(tl.where(seen, power, HIDDEN))
    change = product_grad(weight * (weight_grad - shared), product, scale_here, cap)
    if SUMS_APART:  # an accumulator of tl.dot would take one product after the other
        v_acc = tl.fma(tl.dot(weight, grad, input_precision="ieee"), 1.0, v_acc)
        k_acc = tl.fma(tl.dot(change, query, input_precision="ieee"), 1.0, k_acc)
    else:
        v_acc = tl.dot(weight.to(grad.dtype), grad, v_acc)
        k_acc = tl.dot(change.to(query.dtype), query, k_acc)
    return k_acc, v_acc


@triton.jit(do_not_specialize=["sequences", "kv_heads", "many", "at_once", "choosers", "units", "row_stride", "k_begin_stride",
                               "v_begin_stride"])  # fmt: skip
def keys_kernel(
    q, k, v, lse, delta, o_grad, k_grad, v_grad, rows, readers, reader_begin, offsets, past, stored, base, k_begin, v_begin,
    k_grad_begin, v_grad_begin, scale, cap, sequences, kv_heads, many, at_once, choosers, units, q_token_stride, q_head_stride,
    k_stride, v_stride, row_stride, k_begin_stride, v_begin_stride,
    ROW: tl.constexpr, GROUP: tl.constexpr, MEMBERS: tl.constexpr, UNIT: tl.constexpr, D: tl.constexpr, E: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    PIECES: tl.constexpr = (UNIT + BLOCK_K - 1) // BLOCK_K  # of a unit
    SETS: tl.constexpr = GROUP // MEMBERS
    program = tl.program_id(0)
    group = program % kv_heads
    sequence = program // kv_heads % sequences
    block = program // (kv_heads * sequences)
    base_here = tl.load(base + sequence)
    slots = tl.load(stored + sequence)
    unit = base_here // UNIT + block // PIECES
    inside = block % PIECES * BLOCK_K + tl.arange(0, BLOCK_K)
    slot = unit * UNIT + inside - base_here
    if unit * UNIT + block % PIECES * BLOCK_K - base_here >= slots:
        return
    token_begin = tl.load(offsets + sequence)
    count = (tl.load(offsets + sequence + 1) - token_begin).to(tl.int32)
    numbers = read_row(rows + sequence * row_stride + group * ROW)
    start = tl.load(past + sequence).to(tl.int32)

    d = tl.arange(0, BLOCK_D)[None, :]
    e = tl.arange(0, BLOCK_E)[None, :]
    there = ((slot >= 0) & (slot < slots) & (inside < UNIT))[:, None]
    at = slot.to(tl.int64)[:, None]
    k_first = tl.load(k_begin + sequence * k_begin_stride + group)
    v_first = tl.load(v_begin + sequence * v_begin_stride + group)
    key = tl.load(k + k_first + at * k_stride + d, mask=there & (d < D), other=0.0)
    value = tl.load(v + v_first + at * v_stride + e, mask=there & (e < E), other=0.0)
    j = tl.where(there, (base_here + slot)[:, None], NOWHERE)
    k_acc = tl.zeros([BLOCK_K, BLOCK_D], tl.float32)
    v_acc = tl.zeros([BLOCK_K, BLOCK_E], tl.float32)

    first = tl.maximum(unit * UNIT + block % PIECES * BLOCK_K, base_here)
    last = tl.minimum(base_here + slots, tl.minimum(unit * UNIT + block % PIECES * BLOCK_K + BLOCK_K, (unit + 1) * UNIT)) - 1
    visits = visit_queries(numbers, first, last, start, count, BLOCK_R)
    line = tl.arange(0, BLOCK_R)
    for turn in tl.range(0, visits[-1] * GROUP):
        head = group * GROUP + turn % GROUP + line * 0
        token = query_block_of(visits, turn // GROUP, count, BLOCK_R) * BLOCK_R + line
        row = token_begin + token
        place = row * (kv_heads * GROUP) + head
        k_acc, v_acc = add_keys(
            k_acc, v_acc, key, value, j, row, place, start + token, head, token < count, False, numbers, q, o_grad, lse, delta,
            scale, cap, q_token_stride, q_head_stride, D, E, BLOCK_D, BLOCK_E,
        )  # fmt: skip
    for member in tl.static_range(0, SETS):
        chooser = tl.where(choosers > 1, group * SETS + member, 0)
        own = reader_begin + ((sequence * choosers + chooser).to(tl.int64) * units + unit)
        begin = tl.load(own)
        lines = (tl.load(own + 1) - begin) * at_once * MEMBERS
        for step in tl.range(0, tl.cdiv(lines, BLOCK_R)):
            one = step * BLOCK_R + line
            list_row = tl.load(readers + begin + one // (at_once * MEMBERS), mask=one < lines, other=0)
            row_from = (start // many + list_row) * many
            i = tl.maximum(start, row_from) + (one // MEMBERS % at_once).to(tl.int32)
            live = (one < lines) & (i < tl.minimum(start + count, row_from + many))
            head = group * GROUP + member * MEMBERS + (one % MEMBERS).to(tl.int32)
            row = token_begin + i - start
            place = row * (kv_heads * GROUP) + head
            k_acc, v_acc = add_keys(
                k_acc, v_acc, key, value, j, row, place, i, head, live, True, numbers, q, o_grad, lse, delta, scale, cap,
                q_token_stride, q_head_stride, D, E, BLOCK_D, BLOCK_E,
            )  # fmt: skip
    k_there = k_grad + tl.load(k_grad_begin + sequence * kv_heads + group) + at * k_stride
    v_there = v_grad + tl.load(v_grad_begin + sequence * kv_heads + group) + at * v_stride
    tl.store(k_there + d, k_acc.to(k_grad.dtype.element_ty), mask=there & (d < D))
    tl.store(v_there + e, v_acc.to(v_grad.dtype.element_ty), mask=there & (e < E))


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


def key_settings(most_lines, block_k, warps, stages):
    """Those of `keys_kernel`: a block holds keys of one unit; two sums beside it leave room for half as many lines."""
    return settings(max(16, most_lines // 2), max(16, min(block_k, triton.next_power_of_2(UNIT))), warps, stages)


def lines_of(queries, most):
    """Lines of a tile of a row of so many queries."""
    return max(16, triton.next_power_of_2(MEMBERS), min(most, triton.next_power_of_2(min(queries, most) * MEMBERS)))


def variants(architecture, element_size):
    """Kernels that `attend_backward` may launch, with their compile-time arguments: smallest and largest tiles."""
    lines, *rest = BLOCKS[architecture, element_size]
    sizes = sorted({lines_of(1, lines), lines_of(lines, lines)})
    return (*((queries_kernel, settings(size, *rest)) for size in sizes), (keys_kernel, key_settings(lines, *rest)))


def turned(lists, sequences, units):
    """Which rows list each unit: their numbers in rising order [n], and where those of (sequence, chooser, unit) begin."""
    choosers, rows, most = lists.index.shape
    device = lists.index.device
    row = torch.arange(rows, device=device)
    sequence = torch.searchsorted(lists.row_begin, row, right=True) - 1
    owner = (sequence * choosers + torch.arange(choosers, device=device)[:, None]) * units
    there = torch.arange(most, device=device) < lists.count.unsqueeze(-1)
    number = torch.where(there, owner.unsqueeze(-1) + lists.index.clamp(0, units - 1), sequences * choosers * units).flatten()
    ordered, order = torch.sort(number, stable=True)
    own = (row - lists.row_begin[sequence]).view(1, -1, 1).expand(choosers, -1, most).reshape(-1)
    begins = torch.searchsorted(ordered, torch.arange(sequences * choosers * units + 1, device=device))
    return own[order].to(torch.int32), begins.to(torch.int32)


def attend_backward(q, part, rows, form, batch, scale, cap, lists, o, lse, o_grad, lse_grad, *, blocks=None):
    """The gradients of `attend` (lists_attend), whose arguments and results o and lse it takes.

    o_grad [T, H, E] and lse_grad [T, H] fp32: the results' gradients; blocks = (lines, keys, warps, stages), else the table's.
    Returns q_grad [T, H, D] and delta [T, H] fp32, the sum over E of o o_grad less lse_grad; k_grad and v_grad, flat as part.k
    and part.v: zeros where no sequence of the part has a slot.
    """
    tokens, heads, width = q.shape
    sequences, kv_heads, _ = rows.shape
    choosers, list_rows, most = lists.index.shape
    assert (form.nears, form.strides, form.powers, form.causal) == FORM
    assert (width, part.v_width, heads) == (HEAD_WIDTH, VALUE_WIDTH, kv_heads * GROUP)
    assert q.stride(2) == 1
    assert rows.stride(1) == rows.shape[2]
    assert q.dtype == part.k.dtype == part.v.dtype == o_grad.dtype
    assert not part.rings
    most_lines, *rest = blocks or BLOCKS[architecture(q.device), q.element_size()]
    o, lse, o_grad, lse_grad = (x.contiguous() for x in (o, lse, o_grad, lse_grad))
    q_grad = torch.empty(tokens, heads, width, dtype=q.dtype, device=q.device)
    delta = torch.empty(tokens, heads, dtype=torch.float32, device=q.device)
    lines = lines_of(lists.many, most_lines)
    row_tiles = -(-min(lists.many, batch.max_new) // (lines // MEMBERS))
    tiles = lists.rows * row_tiles
    places = batch.offsets, batch.past, part.stored, part.base, part.k_begin, part.v_begin
    bound, token_stride, head_stride = 0.0 if cap is None else cap, *q.stride()[:2]
    tensors = (
        q, part.k, part.v, o, lse, o_grad, lse_grad, q_grad, delta, rows, lists.index, lists.count, lists.row_begin, *places,
        scale.contiguous(),
    )  # fmt: skip
    numbers = (
        bound, kv_heads, tiles, row_tiles, lists.many, list_rows, most, int(choosers > 1), token_stride, head_stride,
        part.k_stride, part.v_stride, rows.stride(0), part.k_begin.stride(0), part.v_begin.stride(0),
    )  # fmt: skip
    strides, key = token_stride | head_stride | part.k_stride | part.v_stride, (q.device, q.dtype, lines, most_lines, *rest)
    constants = settings(lines, *rest)
    run(queries_kernel, sequences * heads // MEMBERS * tiles, tensors, numbers, strides, (*key, "q"), lambda: constants)

    copies = sequences if part.shared else 1  # all sequences read the same keys: a storage for each, then the sum
    apart = torch.arange(sequences, device=q.device)[:, None] * part.shared
    k_grad = torch.zeros(copies, part.k.numel(), dtype=part.k.dtype, device=q.device)
    v_grad = torch.zeros(copies, part.v.numel(), dtype=part.v.dtype, device=q.device)
    starts = [(begin + apart * flat.numel()).contiguous() for begin, flat in ((part.k_begin, part.k), (part.v_begin, part.v))]
    units = -(-(max([0, *part.bases]) + part.max_stored) // UNIT) + 1
    readers, begins = turned(lists, sequences, units)
    block = key_settings(most_lines, *rest)
    pieces = (UNIT + block["BLOCK_K"] - 1) // block["BLOCK_K"]
    tensors = (
        q, part.k, part.v, lse, delta, o_grad, k_grad, v_grad, rows, readers, begins, *places, *starts, scale.contiguous(),
    )  # fmt: skip
    numbers = (
        bound, sequences, kv_heads, lists.many, min(lists.many, batch.max_new), choosers, units, token_stride, head_stride,
        part.k_stride, part.v_stride, rows.stride(0), part.k_begin.stride(0), part.v_begin.stride(0),
    )  # fmt: skip
    programs = (-(-part.max_stored // UNIT) + 1) * pieces * sequences * kv_heads
    run(keys_kernel, programs, tensors, numbers, strides, (*key, "k"), lambda: block)
    grads = (k_grad.sum(0), v_grad.sum(0)) if part.shared else (k_grad[0], v_grad[0])
    return q_grad, delta, *grads
