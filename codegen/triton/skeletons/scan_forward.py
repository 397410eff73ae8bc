"""Matrix states, chunk by chunk: one program for a sequence, a head and a block of the state's value channels.

A program carries its part of the state [K, BLOCK_V] in fp32 through the sequence, and leaves it before every chunk of C
tokens, and with the delta rule what the chunk's tokens wrote, U. From these scan_outputs and the backward pass find all else,
all chunks at once; what is left to do one chunk after another is little:

    S = S fade + K^T (U until)          U = V, or with the delta rule T (write V - erase (K S) since),  T from scan_chunks

Sequences lie packed; the state of a sequence without tokens stays.

Where sequences and heads are few, a sequence is split into segments, and a program sweeps one of them. With ENDS it finds what
a segment that begins with 0 ends with, and what it leaves of a state before it: a factor for each key channel, or with the
delta rule a matrix [K, K], found as K more columns that begin as a unit matrix and to which nothing is written. `carry` makes
of these the states before all segments.
"""

import torch
import triton
import triton.language as tl

from attnc.codegen.triton.skeletons.scan_parts import (
    architecture,
    bits,
    carry,
    carry_kernel,
    carry_settings,
    fade,
    fade_sum,
    read_eraser,
    read_gates,
    read_rows,
    read_write,
    run,
    segments_of,
    since_start,
    until_end,
)

FORM = ("scalar", "add", "scalar", "scalar", False)  # decay, update, strengths of erasing and writing, divided by sums
KEY_WIDTH = 64
VALUE_WIDTH = 64
DELTA = False  # the delta rule
NORMALIZE = False  # outputs are divided by the sum of their weights
WIDE = False  # states before chunks are left in fp32
BLOCKS = {  # (architecture, bytes of an element): tokens of a chunk, value channels of a block, warps, pipeline stages
    ("any", 2): (16, 16, 4, 1),
    ("any", 4): (16, 16, 4, 1),
}

KNOWN = {}  # device -> its row of BLOCKS
READY = {}  # key of `run` -> what was compiled, and its compile-time arguments

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit(do_not_specialize=["segments", "span", "heads", "k_share", "v_share"])
def sweep_kernel(
    k, v, e, write, decay, inverse, before, sum_before, after, sum_after, states, sums, values, rest,
    offsets, segments, span, heads, k_share, v_share, k_token_stride, k_head_stride, v_token_stride, v_head_stride,
    K: tl.constexpr, V: tl.constexpr, COLUMNS: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr, C: tl.constexpr,
    DELTA: tl.constexpr, NORMALIZE: tl.constexpr, BEFORE: tl.constexpr, ENDS: tl.constexpr,
):  # fmt: skip
    # Blocks of one head side by side, as they read the same keys.
    blocks: tl.constexpr = (COLUMNS + BLOCK_V - 1) // BLOCK_V
    program = tl.program_id(0)
    block = program % blocks
    head = program // blocks % heads
    segment = program // (blocks * heads) % segments
    sequence = program // (blocks * heads * segments)
    token_begin = tl.load(offsets + sequence)
    count = (tl.load(offsets + sequence + 1) - token_begin).to(tl.int32)

    index = tl.arange(0, C)
    c = tl.arange(0, BLOCK_K)
    d = block * BLOCK_V + tl.arange(0, BLOCK_V)
    k_head = (head // k_share).to(tl.int64) * k_head_stride
    v_head = (head // v_share).to(tl.int64) * v_head_stride
    tile = c[:, None] * COLUMNS + d[None, :]
    inside = (c < K)[:, None] & (d < COLUMNS)[None, :]
    place = ((sequence * segments + segment) * heads + head).to(tl.int64)
    state = tl.zeros([BLOCK_K, BLOCK_V], tl.float32)
    if ENDS:
        state = tl.where(d[None, :] == c[:, None] + V, 1.0, state)
    total = tl.zeros([BLOCK_K], tl.float32)
    remains = total + 1.0
    if BEFORE:
        state = tl.load(before + place * (K * V) + tile, mask=inside, other=0.0)
        if NORMALIZE:
            total = tl.load(sum_before + place * K + c, mask=c < K, other=0.0)

    for chunk in tl.range(segment * span, tl.minimum(tl.cdiv(count, C), segment * span + span)):
        row = token_begin + chunk * C
        left = count - chunk * C
        here = index < left
        key = read_rows(k, row, k_token_stride, k_head, index, left, c, K)
        value = read_rows(v, row, v_token_stride, v_head, index, left, d, V)
        slot = ((token_begin // C + sequence + chunk) * heads + head).to(tl.int64)
        gates = read_gates(decay, row, head, heads, index, left, slot, c, K)
        if not ENDS:
            tl.store(states + slot * (K * V) + tile, state.to(states.dtype.element_ty), mask=inside)
            if NORMALIZE and block == 0:
                tl.store(sums + slot * K + c, total, mask=c < K)
        if DELTA:
            erased, strength = read_eraser(key, e, row, head, heads, index, left, c, K)
            found = tl.dot(erased, state.to(key.dtype), input_precision="ieee") * (strength * since_start(gates))
            wanted = value.to(tl.float32) * read_write(write, row, head, heads, index, left, d, V)
            solve = read_rows(inverse, row, heads * C, head * C, index, left, index, C)
            value = tl.dot(solve, (wanted - found).to(solve.dtype), input_precision="ieee").to(key.dtype)
            if not ENDS:
                to = values + (row * heads + head) * V
                tl.store(to + (index[:, None] * (heads * V) + d[None, :]), value, mask=here[:, None] & (d < V)[None, :])
        written = (value.to(tl.float32) * until_end(gates)).to(key.dtype)
        state = tl.dot(tl.trans(key), written, fade(state, gates), input_precision="ieee")
        if NORMALIZE:
            total = fade_sum(total, gates) + tl.sum(key.to(tl.float32) * until_end(gates), 0)
        if ENDS and not DELTA:
            remains = fade_sum(remains, gates)

    if not ENDS:
        place = (sequence * heads + head).to(tl.int64)
    if ENDS or segment == segments - 1:
        tl.store(after + place * (K * COLUMNS) + tile, state, mask=inside)
        if NORMALIZE and block == 0:
            tl.store(sum_after + place * K + c, total, mask=c < K)
        if ENDS and not DELTA and block == 0:
            tl.store(rest + place * K + c, remains, mask=c < K)


def settings(before, ends, chunk, block_v, warps, stages):
    """The kernel's compile-time arguments."""
    return {
        "K": KEY_WIDTH,
        "V": VALUE_WIDTH,
        "COLUMNS": VALUE_WIDTH + (KEY_WIDTH if DELTA and ends else 0),
        "BLOCK_K": max(16, triton.next_power_of_2(KEY_WIDTH)),
        "BLOCK_V": min(block_v, max(16, triton.next_power_of_2(VALUE_WIDTH))),
        "C": chunk,
        "DELTA": DELTA,
        "NORMALIZE": NORMALIZE,
        "BEFORE": before,
        "ENDS": ends,
        "num_warps": warps,
        "num_stages": stages,
        "enable_fp_fusion": True,
    }


def variants(architecture, element_size):
    """Every kernel that `scan` may launch, with its compile-time arguments."""
    row = BLOCKS[architecture, element_size]
    sweeps = tuple((sweep_kernel, settings(not ends, ends, *row)) for ends in (False, True))
    return (*sweeps, (carry_kernel, carry_settings(KEY_WIDTH, VALUE_WIDTH, DELTA, NORMALIZE, True, False)))


def scan(steps, made, before, sum_before, *, blocks=None):
    """The states before the chunks of a launch, and after.

    steps: what tokens bring and where sequences lie (runtime/scan_kernels.py); made: what `scan_chunks` found for them,
    or empty; before [S, H, K, V] fp32 and sum_before [S, H, K], or None for zeros;
    blocks = (tokens, value channels, warps, stages) instead of the table's.
    Returns the states before each chunk [N, H, K, V] in q's dtype, or fp32 if WIDE, sums before each chunk or None, what tokens
    wrote [T, H, V], or None where that is v; of the segments of a sequence, or None, how many there are, of how many chunks,
    and what each leaves of a state before it; and the states after and the sums after or None.
    """
    chosen = blocks or BLOCKS[architecture(steps.q.device), steps.q.element_size()]
    programs = triton.cdiv(VALUE_WIDTH, min(chosen[1], VALUE_WIDTH)) * steps.heads * (len(steps.offsets) - 1)
    sweeps = 2 + (KEY_WIDTH / VALUE_WIDTH if DELTA else 0)
    segments, span = segments_of(steps.q.device, programs, triton.cdiv(steps.max_new, chosen[0]), sweeps)
    split = None
    if segments > 1:
        ends, sum_ends, rest = sweep(steps, made, None, None, True, (segments, span), chosen)
        rest = ends[..., VALUE_WIDTH:] if DELTA else rest
        split = segments, span, rest
        before, sum_before = carry(ends, sum_ends, rest, before, sum_before, len(steps.offsets) - 1, VALUE_WIDTH, DELTA, False)
    *kept, after, sum_after = sweep(steps, made, before, sum_before, False, (segments, span), chosen)
    return (*kept, split, after, sum_after)


def sweep(steps, made, before, sum_before, ends, split, chosen):
    """One launch of the kernel. before, sum_before: of each segment; split: segments of a sequence, and chunks of one."""
    q, v = steps.q, steps.v
    heads, sequences, tokens = steps.heads, len(steps.offsets) - 1, len(q)
    compiled = settings(before is not None, ends, *chosen)
    columns, number = compiled["COLUMNS"], tokens // chosen[0] + sequences
    places = sequences * split[0] if ends else sequences

    def new(wanted, *shape, dtype=torch.float32):
        return torch.empty(shape, dtype=dtype, device=q.device) if wanted else None

    after = new(True, places, heads, KEY_WIDTH, columns)
    sum_after = new(NORMALIZE, places, heads, KEY_WIDTH)
    rest = new(ends and not DELTA, places, heads, KEY_WIDTH)
    states = new(not ends, number, heads, KEY_WIDTH, VALUE_WIDTH, dtype=torch.float32 if WIDE else q.dtype)
    sums = new(not ends and NORMALIZE, number, heads, KEY_WIDTH)
    values = new(not ends and DELTA, tokens, heads, VALUE_WIDTH, dtype=q.dtype)
    k = made.get("k", steps.k)
    tensors = (
        k, v, made.get("e", steps.erase), steps.write, made.get("decay", steps.decay), made.get("inverse"),
        before, sum_before, after, sum_after, states, sums, values, rest,
    )  # fmt: skip
    tensors = (*(q if tensor is None else tensor for tensor in tensors), steps.offsets)
    strides = [stride for tensor in (k, v) for stride in tensor.stride()[:2]]
    numbers = (*split, heads, *(heads // tensor.shape[1] for tensor in (k, v)), *strides)
    programs = triton.cdiv(columns, compiled["BLOCK_V"]) * heads * sequences * split[0]
    types = tuple(tensor.dtype for tensor in tensors)
    key = (sweep_kernel, q.device, types, before is not None, ends, chosen)
    run(sweep_kernel, programs, tensors, numbers, bits(strides), key, lambda: compiled)
    return (after, sum_after, rest) if ends else (states, sums, values, after, sum_after)
