"""The way back of matrix states, chunk by chunk: one program for a sequence, a head and a block of the state's value channels.

A program carries the gradient G [K, BLOCK_V] of its part of the state in fp32 from the end of the sequence to its begin:

    G  = G fade + Q^T (dO since) - K^T (erase dR since)          the last with the delta rule
    dU = (K G) until + (K Q^T between) dO,  dR = T^T dU

It leaves the gradients of states after each chunk, which scan_values and scan_gradients read, and of the states before all;
with the delta rule also those of values, which are dR with their strengths.

Where scan_forward split sequences into segments, a program goes back through one of them. With ENDS it finds what a segment
leaves of outputs' gradients alone; `carry` makes of that the gradients behind all segments.
"""

import torch
import triton
import triton.language as tl

from attnc.codegen.triton.skeletons.scan_parts import (
    add_product,
    architecture,
    bits,
    carry,
    carry_kernel,
    carry_settings,
    fade,
    fade_sum,
    output_share,
    read_eraser,
    read_gates,
    read_rows,
    read_turned,
    read_write,
    run,
    since_start,
    until_end,
)
from attnc.codegen.triton.skeletons.scan_values import turned_weights

FORM = ("scalar", "add", "scalar", "scalar", False)  # decay, update, strengths of erasing and writing, divided by sums
KEY_WIDTH = 64
VALUE_WIDTH = 64
DELTA = False  # the delta rule
NORMALIZE = False  # outputs are divided by the sum of their weights
WIDE = False  # gradients of states are left in fp32
BLOCKS = {  # (architecture, bytes of an element): tokens of a chunk, value channels of a block, warps, pipeline stages
    ("any", 2): (16, 16, 4, 1),
    ("any", 4): (16, 16, 4, 1),
}

KNOWN = {}  # device -> its row of BLOCKS
READY = {}  # key of `run` -> what was compiled, and its compile-time arguments

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def store_written(value_grad, v, write, v_grad, write_grad, block, tokens, row, head, heads, v_token_stride, v_head,
                  index, left, channel, V: tl.constexpr):  # fmt: skip
    """The gradients of values and of their strengths, of which a block of channels has a part, from that of their products."""
    value = read_rows(v, row, v_token_stride, v_head, index, left, channel, V).to(tl.float32)
    strength = read_write(write, row, head, heads, index, left, channel, V)
    to = v_grad + (row * heads + head) * V + (index[:, None] * (heads * V) + channel[None, :])
    mask = (index < left)[:, None] & (channel < V)[None, :]
    tl.store(to, (value_grad * strength).to(v_grad.dtype.element_ty), mask=mask)
    to = write_grad + (block.to(tl.int64) * tokens + row) * heads + head + index * heads
    tl.store(to, tl.sum(value * value_grad, 1), mask=index < left)


@triton.jit(do_not_specialize=["factor", "segments", "span", "tokens", "heads", "q_share", "k_share", "v_share"])
def back_kernel(
    q, k, v, e, write, o_grad, norms, deltas, decay, pairs, inverse, after_grad, sum_after_grad, before_grad, sum_before_grad,
    states_grad, sums_grad, values_grad, v_grad, write_grad, offsets,
    factor, segments, span, tokens, heads, q_share, k_share, v_share,
    q_token_stride, q_head_stride, k_token_stride, k_head_stride, v_token_stride, v_head_stride,
    K: tl.constexpr, V: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr, C: tl.constexpr,
    DELTA: tl.constexpr, NORMALIZE: tl.constexpr, ENDS: tl.constexpr,
):  # fmt: skip
    blocks: tl.constexpr = (V + BLOCK_V - 1) // BLOCK_V
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
    q_head = (head // q_share).to(tl.int64) * q_head_stride
    k_head = (head // k_share).to(tl.int64) * k_head_stride
    v_head = (head // v_share).to(tl.int64) * v_head_stride
    tile = c[:, None] * V + d[None, :]
    inside = (c < K)[:, None] & (d < V)[None, :]
    place = ((sequence * segments + segment) * heads + head).to(tl.int64)
    grad = tl.zeros([BLOCK_K, BLOCK_V], tl.float32)
    total = tl.zeros([BLOCK_K], tl.float32)
    if not ENDS:
        grad = tl.load(after_grad + place * (K * V) + tile, mask=inside, other=0.0)
        if NORMALIZE:
            total = tl.load(sum_after_grad + place * K + c, mask=c < K, other=0.0)

    end = tl.minimum(tl.cdiv(count, C), segment * span + span)
    for step in tl.range(segment * span, end):
        chunk = end - 1 - (step - segment * span)
        row = token_begin + chunk * C
        left = count - chunk * C
        here = index < left
        query = read_rows(q, row, q_token_stride, q_head, index, left, c, K)
        out_grad = read_rows(o_grad, row, heads * V, head * V, index, left, d, V)
        slot = ((token_begin // C + sequence + chunk) * heads + head).to(tl.int64)
        gates = read_gates(decay, row, head, heads, index, left, slot, c, K)
        share = output_share(norms, factor, row, head, heads, index, left, NORMALIZE)
        if not ENDS:
            tl.store(states_grad + slot * (K * V) + tile, grad.to(states_grad.dtype.element_ty), mask=inside)
        if DELTA:
            key = read_rows(k, row, k_token_stride, k_head, index, left, c, K)
            turned = turned_weights(
                key, q, gates, pairs, row, q_token_stride, q_head, head, heads, index, left, c, K, C
            )  # fmt: skip
            value_grad = tl.dot(key, grad.to(key.dtype), input_precision="ieee") * until_end(gates)
            value_grad = add_product(value_grad, (turned * share[None, :]).to(key.dtype), out_grad)
        lead = (out_grad.to(tl.float32) * (since_start(gates) * share[:, None])).to(query.dtype)
        if NORMALIZE:
            if block == 0 and not ENDS:
                tl.store(sums_grad + slot * K + c, total, mask=c < K)
            change = tl.load(deltas + (row + index) * heads + head, mask=here, other=0.0)[:, None] * since_start(gates)
            total = fade_sum(total, gates) + tl.sum(query.to(tl.float32) * change, 0)
        grad = add_product(fade(grad, gates), tl.trans(query), lead)
        if DELTA:
            solve = read_turned(inverse, row, heads * C, head * C, index, left, index, C)
            value_grad = tl.dot(solve, value_grad.to(key.dtype), input_precision="ieee")
            erased, strength = read_eraser(key, e, row, head, heads, index, left, c, K)
            back = (value_grad * (strength * since_start(gates))).to(key.dtype)
            grad -= tl.dot(tl.trans(erased), back, input_precision="ieee")
            if not ENDS:
                to = (row * heads + head) * V + (index[:, None] * (heads * V) + d[None, :])
                tl.store(values_grad + to, value_grad.to(key.dtype), mask=here[:, None] & (d < V)[None, :])
                store_written(
                    value_grad, v, write, v_grad, write_grad, block, tokens, row, head, heads, v_token_stride, v_head,
                    index, left, d, V,
                )  # fmt: skip

    if not ENDS:
        place = (sequence * heads + head).to(tl.int64)
    if ENDS or segment == 0:
        tl.store(before_grad + place * (K * V) + tile, grad, mask=inside)
        if NORMALIZE and block == 0:
            tl.store(sum_before_grad + place * K + c, total, mask=c < K)


def settings(ends, chunk, block_v, warps, stages):
    """The kernel's compile-time arguments."""
    return {
        "K": KEY_WIDTH,
        "V": VALUE_WIDTH,
        "BLOCK_K": max(16, triton.next_power_of_2(KEY_WIDTH)),
        "BLOCK_V": min(block_v, max(16, triton.next_power_of_2(VALUE_WIDTH))),
        "C": chunk,
        "DELTA": DELTA,
        "NORMALIZE": NORMALIZE,
        "ENDS": ends,
        "num_warps": warps,
        "num_stages": stages,
        "enable_fp_fusion": True,
    }


def variants(architecture, element_size):
    """Every kernel that `go_back` may launch, with its compile-time arguments."""
    row = BLOCKS[architecture, element_size]
    sweeps = tuple((back_kernel, settings(ends, *row)) for ends in (False, True))
    return (*sweeps, (carry_kernel, carry_settings(KEY_WIDTH, VALUE_WIDTH, DELTA, NORMALIZE, True, True)))


def go_back(steps, made, norms, deltas, o_grad, after_grad, sum_after_grad, split=None, *, blocks=None):
    """The gradients that pass from the end of sequences to their begin.

    steps, made as `scan` takes them; norms [T, H] as it gives them; deltas [T, H] fp32: the gradients of norms; o_grad
    [T, H, V] in q's dtype; after_grad [S, H, K, V] and sum_after_grad [S, H, K] fp32; split: the segments that `scan` kept.
    Returns gradients of the states before [S, H, K, V] and sums [S, H, K] or None, of states after each chunk [N, H, K, V] in
    q's dtype, or fp32 if WIDE, of sums after each chunk or None, and with the delta rule, else None, of values [T, H, V], of
    strengths of writing (in parts [B, T, H] for blocks of channels, or [T, H, V]) and of what the inverse is applied to.
    """
    chosen = blocks or BLOCKS[architecture(steps.q.device), steps.q.element_size()]
    numbers = norms, deltas, o_grad
    if split is None:
        whole = (1, triton.cdiv(steps.max_new, chosen[0]))
        return sweep_back(steps, made, *numbers, after_grad, sum_after_grad, False, whole, chosen)
    segments, span, rest = split
    ends, sum_ends, *_ = sweep_back(steps, made, *numbers, None, None, True, (segments, span), chosen)
    behind = carry(ends, sum_ends, rest, after_grad, sum_after_grad, len(steps.offsets) - 1, VALUE_WIDTH, DELTA, True)
    return sweep_back(steps, made, *numbers, *behind, False, (segments, span), chosen)


def sweep_back(steps, made, norms, deltas, o_grad, after_grad, sum_after_grad, ends, split, chosen):
    """One launch of the kernel. after_grad, sum_after_grad: of segments; split: how many a sequence has, and chunks of one."""
    q, k, v = steps.q, steps.k, steps.v
    heads, sequences, tokens = steps.heads, len(steps.offsets) - 1, len(q)
    compiled = settings(ends, *chosen)
    number = tokens // chosen[0] + sequences
    parts = triton.cdiv(VALUE_WIDTH, compiled["BLOCK_V"])
    begins = sequences * split[0] if ends else sequences

    def new(wanted, *shape, dtype=torch.float32):
        return torch.empty(shape, dtype=dtype, device=q.device) if wanted else None

    before_grad = new(True, begins, heads, KEY_WIDTH, VALUE_WIDTH)
    sum_before_grad = new(NORMALIZE, begins, heads, KEY_WIDTH)
    states_grad = new(not ends, number, heads, KEY_WIDTH, VALUE_WIDTH, dtype=torch.float32 if WIDE else q.dtype)
    sums_grad = new(NORMALIZE and not ends, number, heads, KEY_WIDTH)
    values_grad = new(DELTA and not ends, tokens, heads, VALUE_WIDTH, dtype=q.dtype)
    v_grad = new(DELTA and not ends, tokens, heads, VALUE_WIDTH, dtype=q.dtype if v.shape[1] == heads else torch.float32)
    of_channels = steps.write is not None and steps.write.dim() == 3
    write_grad = new(DELTA and not ends, *((tokens, heads, VALUE_WIDTH) if of_channels else (parts, tokens, heads)))
    rows, keys = made.get("q", q), made.get("k", k)
    tensors = (
        rows, keys, v, made.get("e", steps.erase), steps.write, o_grad, norms, deltas, made.get("decay", steps.decay),
        made.get("pairs"), made.get("inverse"), after_grad, sum_after_grad, before_grad, sum_before_grad, states_grad,
        sums_grad, values_grad, v_grad, write_grad,
    )  # fmt: skip
    tensors = (*(rows if tensor is None else tensor for tensor in tensors), steps.offsets)
    strides = [stride for tensor in (rows, keys, v) for stride in tensor.stride()[:2]]
    shares = (heads // tensor.shape[1] for tensor in (rows, keys, v))
    numbers = (steps.scale, *split, tokens, heads, *shares, *strides)
    key = (back_kernel, q.device, tuple(tensor.dtype for tensor in tensors), ends, chosen)
    run(back_kernel, parts * heads * sequences * split[0], tensors, numbers, bits(strides), key, lambda: compiled)
    return before_grad, sum_before_grad, states_grad, sums_grad, v_grad, write_grad, values_grad
