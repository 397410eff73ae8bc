"""Softmax attention over key intervals, for many queries: one program for a block of queries of one head.

The query heads of one launch may differ in which keys they see: every sequence and KV head has a row of numbers, `rows`.
A program walks the key blocks that its queries can see, each at most once; their indices are arithmetic on a counter,
so the work grows with the keys that are seen. Queries lie packed [T, H, D]; keys and values lie in slots, of which
`position` says the place in the text: new keys side by side, a growing cache, or a ring behind pinned first tokens.
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
BLOCKS = {  # (architecture, bytes of an element): queries and keys of a block, warps, pipeline stages
    ("sm_80", 2): (128, 64, 8, 3),
    ("sm_90", 2): (64, 64, 4, 3),
    ("sm_100", 2): (128, 64, 8, 3),
    ("gfx942", 2): (128, 64, 8, 2),
    ("sm_80", 4): (64, 32, 8, 2),
    ("sm_90", 4): (32, 32, 4, 2),
    ("sm_100", 4): (64, 32, 8, 1),
    ("gfx942", 4): (64, 32, 8, 2),
    ("any", 2): (32, 32, 4, 1),
    ("any", 4): (32, 32, 4, 1),
}

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
def solid(numbers, first, last, begin, end):
    """Whether all queries first..last see all keys from begin up to, not including, end."""
    whole = end <= numbers[0]
    whole |= (begin >= lower(numbers, last)) & (end <= upper(numbers, first))
    return whole & (end <= horizon(first))


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


@triton.jit(do_not_specialize=["sequences", "kv_heads", "row_stride", "k_begin_stride", "v_begin_stride"])
def attend_kernel(
    q, k, v, o, lse, rows, offsets, past, stored, base, k_begin, v_begin, pinned, ring, scale, sink_logit, cap,
    sequences, kv_heads, q_token_stride, q_head_stride, k_stride, v_stride, row_stride, k_begin_stride, v_begin_stride,
    ROW: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr, E: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr,
    RINGS: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    # The heads of a group side by side, as they read the same keys; the last queries, which see most, first.
    IN_PIECES: tl.constexpr = q.dtype.element_ty == tl.float32
    program = tl.program_id(0)
    blocks = tl.num_programs(0) // (sequences * kv_heads * GROUP)
    member = program % GROUP
    block = blocks - 1 - program // GROUP % blocks
    group = program // (GROUP * blocks) % kv_heads
    sequence = program // (GROUP * blocks * kv_heads)
    head = group * GROUP + member

    token_begin = tl.load(offsets + sequence)
    count = (tl.load(offsets + sequence + 1) - token_begin).to(tl.int32)
    if block * BLOCK_Q >= count:
        return
    numbers = read_row(rows + sequence * row_stride + group * ROW)
    start = tl.load(past + sequence).to(tl.int32)
    stored_here = tl.load(stored + sequence)
    base_here = tl.load(base + sequence)
    pinned_here = tl.load(pinned + group)
    ring_here = tl.load(ring + group)
    slots = tl.minimum(stored_here, pinned_here + ring_here)

    token = block * BLOCK_Q + tl.arange(0, BLOCK_Q)
    d = tl.arange(0, BLOCK_D)
    e = tl.arange(0, BLOCK_E)
    i = (start + token)[:, None]
    live = token < count
    row = (token_begin + token)[:, None]
    place = row * (kv_heads * GROUP) + head
    q_here = q + row * q_token_stride + head * q_head_stride
    if not IN_PIECES:
        query = tl.load(q_here + d[None, :], mask=live[:, None] & (d < D)[None, :], other=0.0)
    k_first = tl.multiple_of(tl.load(k_begin + sequence * k_begin_stride + group), D & -D)
    v_first = tl.multiple_of(tl.load(v_begin + sequence * v_begin_stride + group), E & -E)
    k_inside = tl.arange(0, BLOCK_K)[None, :] * k_stride  # keys transposed: [BLOCK_D, BLOCK_K]
    v_inside = e[None, :] + tl.arange(0, BLOCK_K)[:, None] * v_stride
    scale_here = read_scale(scale, head, place, live[:, None])

    first = start + block * BLOCK_Q
    last = start + tl.minimum(count, block * BLOCK_Q + BLOCK_Q) - 1
    visits = visit(numbers, first, last, base_here, slots, RINGS and ring_here < NOWHERE, BLOCK_K)
    best = tl.full([BLOCK_Q], FLOOR, tl.float32)
    norm = tl.zeros([BLOCK_Q], tl.float32)
    acc = tl.zeros([BLOCK_Q, BLOCK_E], tl.float32)
    for step in tl.range(0, visits[-1]):
        begin = block_of(visits, step, base_here, slots, BLOCK_K) * BLOCK_K
        slot = begin + tl.arange(0, BLOCK_K)
        here = slot < slots
        k_here = k + (k_first + begin.to(tl.int64) * k_stride)
        v_here = v + (v_first + begin.to(tl.int64) * v_stride)
        if not IN_PIECES:
            key = tl.load(k_here + k_inside + d[:, None], mask=here[None, :] & (d < D)[:, None], other=0.0)
            product = tl.dot(query, key, input_precision="ieee")
        else:
            product = tl.zeros([BLOCK_Q, BLOCK_K], tl.float32)
            for piece in tl.static_range(0, BLOCK_D, PIECE):
                c = piece + tl.arange(0, PIECE)
                some = tl.load(q_here + c[None, :], mask=live[:, None] & (c < D)[None, :], other=0.0)
                key = tl.load(k_here + k_inside + c[:, None], mask=here[None, :] & (c < D)[:, None], other=0.0)
                product = tl.fma(tl.dot(some, key, input_precision="ieee"), 1.0, product)
        score = adjust_score(product, scale_here, cap)
        whole = solid(numbers, first, last, base_here + begin, base_here + begin + BLOCK_K) & (begin + BLOCK_K <= slots)
        if RINGS:
            whole &= ring_here == NOWHERE
        if not whole:
            j = position(slot, base_here, stored_here, pinned_here, ring_here, slots, RINGS)[None, :]
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

    peak, norm = add_sink_logit(best, norm, sink_logit, head)
    acc = acc * (weigh(best, peak) / tl.where(norm != 0.0, norm, 1.0))[:, None]
    tl.store(o + place * E + e[None, :], acc.to(o.dtype.element_ty), mask=live[:, None] & (e < E)[None, :])
    store_sums(lse, place, peak[:, None], norm[:, None], live[:, None])


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


def settings(rings, block_q, block_k, warps, stages):
    """The kernel's compile-time arguments."""
    nears, strides, powers, _ = FORM
    return {
        "ROW": 1 + 4 * nears + strides + powers,
        "GROUP": GROUP,
        "D": HEAD_WIDTH,
        "E": VALUE_WIDTH,
        "BLOCK_D": max(16, triton.next_power_of_2(HEAD_WIDTH)),
        "BLOCK_E": max(16, triton.next_power_of_2(VALUE_WIDTH)),
        "RINGS": rings,
        "BLOCK_Q": block_q,
        "BLOCK_K": block_k,
        "num_warps": warps,
        "num_stages": stages,
        "enable_fp_fusion": True,
    }


def variants(architecture, element_size):
    """Every kernel that `attend` may launch, with its compile-time arguments."""
    return tuple((attend_kernel, settings(rings, *BLOCKS[architecture, element_size])) for rings in (False, True))


def attend(q, part, rows, form, batch, scale, cap=None, sink_logit=None, *, blocks=None):
    """Attention of new queries to one part of the keys.

    q [T, H, D], the sequences of `batch` one after another, the last axis dense; part: a KeyPart, whose begins and strides are
    multiples of their width; rows [S, G, R] int32, made for `form`; batch: offsets [S + 1] and past [S] int64, and max_new, at
    least the most new tokens of a sequence; scale [H] fp32; cap: soft cap of the scores; sink_logit [H] fp32;
    blocks = (queries, keys, warps, stages) instead of the table's.
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
    o = torch.empty(tokens, heads, VALUE_WIDTH, dtype=q.dtype, device=q.device)
    lse = torch.empty(tokens, heads, *([] if EXPONENT is None else [2]), dtype=torch.float32, device=q.device)
    chosen, rings = blocks or BLOCKS[architecture(q.device), q.element_size()], part.rings
    sink_logit = scale if sink_logit is None else sink_logit
    tensors = (
        q, part.k, part.v, o, lse, rows, batch.offsets, batch.past, part.stored, part.base, part.k_begin, part.v_begin,
        part.pinned, part.ring, scale.contiguous(), sink_logit,
    )  # fmt: skip
    numbers = (
        0.0 if cap is None else cap, sequences, kv_heads, token_stride, head_stride, part.k_stride, part.v_stride,
        row_stride, part.k_begin.stride(0), part.v_begin.stride(0),
    )  # fmt: skip
    programs = -(-batch.max_new // chosen[0]) * sequences * heads
    strides = token_stride | head_stride | part.k_stride | part.v_stride
    key = (q.device, q.dtype, sink_logit.dtype, rings, chosen)
    run(attend_kernel, programs, tensors, numbers, strides, key, lambda: settings(rings, *chosen))
    return o, lse
