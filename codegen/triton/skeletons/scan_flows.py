"""Gradients within chunks where every key channel decays: one program for a chunk, a head and a block of key channels.

scan_gradients leaves gradients of folded rows and of pairs. A chunk has parts of 16 tokens, as in scan_chunks: what passes
between parts goes through their edges, what stays within one is a running product. The gradient of a gate is the sum of what
flows past its token; no part of that sum is a difference, so that a deep decay, past which nothing flows, gets 0 and not a
rounding error.
"""

import torch
import triton
import triton.language as tl

from attnc.codegen.triton.skeletons.scan_gradients import store_erased
from attnc.codegen.triton.skeletons.scan_parts import architecture, bits, exp_of, part_fades, read_eraser, read_rows, run

FORM = ("scalar", "add", "scalar", "scalar", False)  # decay, update, strengths of erasing and writing, divided by sums
KEY_WIDTH = 64
VALUE_WIDTH = 64
DELTA = False  # the delta rule
BLOCKS = {  # (architecture, bytes of an element): tokens of a chunk, key channels of a block, warps, pipeline stages
    ("any", 2): (16, 16, 4, 1),
    ("any", 4): (16, 16, 4, 1),
}

KNOWN = {}  # device -> its row of BLOCKS
READY = {}  # key of `run` -> what was compiled, and its compile-time arguments

LOG2E = tl.constexpr(1.4426950408889634)
PART = tl.constexpr(16)  # tokens that decay one by one


@triton.jit
def of_parts(decay, first, begin, end, count, head, heads, index, channel, K: tl.constexpr):
    """What is left of a state after the parts from `begin` up to, not including, `end`."""
    together = tl.zeros_like(channel).to(tl.float32) + 1.0
    for part in tl.range(begin, end):
        _, _, total = part_fades(decay, first + part * PART, head, heads, index, count - part * PART, channel, K)
        together = together * total
    return together


@triton.jit
def read_pairs(pairs, row, column, head, heads, index, left, C: tl.constexpr):
    """Gradients of the pairs of 16 tokens, rows, with 16, columns."""
    here = pairs + (row * heads + head) * C + column * PART
    return tl.load(here + (index[:, None] * (heads * C) + index[None, :]), mask=(index < left)[:, None], other=0.0)


@triton.jit
def read_pairs_turned(pairs, row, column, head, heads, index, left, C: tl.constexpr):
    """The same turned: the 16 tokens of `column` are rows."""
    here = pairs + (row * heads + head) * C + column * PART
    return tl.load(here + (index[None, :] * (heads * C) + index[:, None]), mask=(index < left)[None, :], other=0.0)


@triton.jit(do_not_specialize=["tokens", "sequences", "heads", "q_share", "k_share"])
def flows_kernel(
    q, k, e, decay, folded_q, folded_k, folded_e, totals, pairs, erased_pairs, q_grad, k_grad, erase_grad, decay_grad, offsets,
    tokens, sequences, heads, q_share, k_share, q_token_stride, q_head_stride, k_token_stride, k_head_stride,
    K: tl.constexpr, BLOCK: tl.constexpr, C: tl.constexpr, DELTA: tl.constexpr,
):  # fmt: skip
    blocks: tl.constexpr = (K + BLOCK - 1) // BLOCK
    parts: tl.constexpr = C // 16
    program = tl.program_id(0)
    block = program % blocks
    part = program // blocks % parts
    head = program // (blocks * parts) % heads
    chunks = tl.num_programs(0) // (blocks * parts * heads * sequences)
    chunk = program // (blocks * parts * heads) % chunks
    sequence = program // (blocks * parts * heads * chunks)
    token_begin = tl.load(offsets + sequence)
    count = (tl.load(offsets + sequence + 1) - token_begin).to(tl.int32) - chunk * C
    left = count - part * PART
    if left <= 0:
        return
    first = token_begin + chunk * C
    row = first + part * PART
    slot = ((token_begin // C + sequence + chunk) * heads + head).to(tl.int64)
    index = tl.arange(0, PART)
    here = (index < left)[:, None]
    c = block * BLOCK + tl.arange(0, BLOCK)
    q_head = (head // q_share).to(tl.int64) * q_head_stride
    k_head = (head // k_share).to(tl.int64) * k_head_stride
    ends = tl.minimum(tl.cdiv(count, PART), parts)

    start = of_parts(decay, first, 0, part, count, head, heads, index, c, K)
    after = of_parts(decay, first, part + 1, ends, count, head, heads, index, c, K)
    since, until, whole = part_fades(decay, row, head, heads, index, left, c, K)
    own = read_rows(k, row, k_token_stride, k_head, index, left, c, K)
    key = own.to(tl.float32)
    query = read_rows(q, row, q_token_stride, q_head, index, left, c, K).to(tl.float32)
    query_grad = read_rows(folded_q, row, heads * K, head * K, index, left, c, K).to(tl.float32) * start[None, :]
    key_grad = read_rows(folded_k, row, heads * K, head * K, index, left, c, K).to(tl.float32) * after[None, :]
    eraser = query
    erased_grad = query_grad
    if DELTA:
        operand, strength = read_eraser(own, e, row, head, heads, index, left, c, K)
        eraser = operand.to(tl.float32) * strength
        erased_grad = read_rows(folded_e, row, heads * K, head * K, index, left, c, K).to(tl.float32) * start[None, :]
    past = tl.load(totals + slot * K + c, mask=c < K, other=0.0)  # what flows past the whole part

    gap = tl.zeros_like(start) + 1.0
    for back in tl.range(0, part):  # what earlier parts wrote
        other = part - 1 - back
        there = first + other * PART
        _, rest, all_there = part_fades(decay, there, head, heads, index, PART, c, K)
        wrote = read_rows(k, there, k_token_stride, k_head, index, PART, c, K).to(tl.float32) * (rest * gap[None, :])
        kept = read_rows(folded_k, there, heads * K, head * K, index, PART, c, K).to(tl.float32)
        past += tl.sum(wrote * kept, 0) * (whole * after)
        lead = wrote.to(own.dtype)
        some = read_pairs(pairs, row, other, head, heads, index, left, C)
        query_grad = tl.dot(some, lead, query_grad, input_precision="ieee")
        if DELTA:
            some = read_pairs(erased_pairs, row, other, head, heads, index, left, C)
            erased_grad = tl.dot(some, lead, erased_grad, input_precision="ieee")
        gap = gap * all_there
    gap = tl.zeros_like(start) + 1.0
    for other in tl.range(part + 1, ends):  # what later parts find
        there = first + other * PART
        rest = count - other * PART
        since_there, _, all_there = part_fades(decay, there, head, heads, index, rest, c, K)
        alive = since_there * gap[None, :]
        finds = read_rows(q, there, q_token_stride, q_head, index, rest, c, K).to(tl.float32) * alive
        found = read_rows(folded_q, there, heads * K, head * K, index, rest, c, K).to(tl.float32) * start[None, :]
        some = read_pairs_turned(pairs, there, part, head, heads, index, rest, C)
        key_grad = tl.dot(some, finds.to(own.dtype), key_grad, input_precision="ieee")
        erases = finds
        erased_found = found
        if DELTA:
            operand = read_rows(k, there, k_token_stride, k_head, index, rest, c, K)
            operand, strength = read_eraser(operand, e, there, head, heads, index, rest, c, K)
            erases = operand.to(tl.float32) * strength * alive
            erased_found = read_rows(folded_e, there, heads * K, head * K, index, rest, c, K).to(tl.float32)
            erased_found = erased_found * start[None, :]
            some = read_pairs_turned(erased_pairs, there, part, head, heads, index, rest, C)
            key_grad = tl.dot(some, erases.to(own.dtype), key_grad, input_precision="ieee")
        inner = tl.zeros_like(start) + 1.0
        for back in tl.range(0, part):  # of what earlier parts wrote
            before = part - 1 - back
            _, until_there, all_before = part_fades(decay, first + before * PART, head, heads, index, PART, c, K)
            wrote = read_rows(k, first + before * PART, k_token_stride, k_head, index, PART, c, K).to(tl.float32)
            lead = (wrote * (until_there * inner[None, :])).to(own.dtype)
            some = read_pairs(pairs, there, before, head, heads, index, rest, C)
            found = tl.dot(some, lead, found, input_precision="ieee")
            if DELTA:
                some = read_pairs(erased_pairs, there, before, head, heads, index, rest, C)
                erased_found = tl.dot(some, lead, erased_found, input_precision="ieee")
            inner = inner * all_before
        flows = finds * found
        if DELTA:
            flows += erases * erased_found
        past += tl.sum(flows, 0) * whole
        gap = gap * all_there

    query_grad = query_grad * since
    key_grad = key_grad * until
    rows = query * query_grad
    if DELTA:
        erased_grad = erased_grad * since
        rows += eraser * erased_grad
    columns = key * key_grad
    gate_grad = past[None, :] + tl.cumsum(rows, 0, reverse=True)
    query_pairs = read_pairs(pairs, row, part, head, heads, index, left, C).to(tl.float32)
    eraser_pairs = query_pairs
    if DELTA:
        eraser_pairs = read_pairs(erased_pairs, row, part, head, heads, index, left, C).to(tl.float32)
    alive = tl.zeros([PART, BLOCK], tl.float32)
    for step in tl.range(0, tl.minimum(left, PART)):  # within the part
        j = tl.minimum(left, PART) - 1 - step
        fade = tl.load(decay + (row + j + 1) * (heads * K) + head * K + c, mask=(c < K) & (step > 0), other=0.0)
        alive = tl.where(index[:, None] == j, 1.0, alive * exp_of(fade)[None, :])
        written = tl.load(k + ((row + j) * k_token_stride + k_head + c), mask=c < K, other=0.0).to(tl.float32)
        found = alive * written[None, :]
        factor = tl.sum(tl.where(index[None, :] == j, query_pairs, 0.0), 1)[:, None]
        query_grad += factor * found
        pulls = factor * query
        if DELTA:
            factor = tl.sum(tl.where(index[None, :] == j, eraser_pairs, 0.0), 1)[:, None]
            erased_grad += factor * found
            pulls += factor * eraser
        mine = index[:, None] == j
        key_grad += tl.where(mine, tl.sum(alive * pulls, 0)[None, :], 0.0)
        flows = tl.where(index[:, None] > j, pulls * found, 0.0)
        column = tl.sum(tl.where(mine, columns, 0.0), 0)
        gate_grad += tl.where(index[:, None] > j, tl.cumsum(flows, 0, reverse=True) + column[None, :], 0.0)

    to = (row * heads + head) * K + (index[:, None] * (heads * K) + c[None, :])
    mask = here & (c < K)[None, :]
    tl.store(q_grad + to, query_grad.to(q_grad.dtype.element_ty), mask=mask)
    if DELTA:
        key_grad += store_erased(erased_grad, own, e, erase_grad, block, tokens, row, head, heads, index, left, c, K)
    tl.store(k_grad + to, key_grad.to(k_grad.dtype.element_ty), mask=mask)
    tl.store(decay_grad + to, gate_grad, mask=mask)


def settings(chunk, block, warps, stages):
    """The kernel's compile-time arguments."""
    return {
        "K": KEY_WIDTH,
        "BLOCK": min(block, max(16, triton.next_power_of_2(KEY_WIDTH))),
        "C": chunk,
        "DELTA": DELTA,
        "num_warps": warps,
        "num_stages": stages,
        "enable_fp_fusion": True,
    }


def variants(architecture, element_size):
    """Every kernel that `unfold` may launch, with its compile-time arguments."""
    return ((flows_kernel, settings(*BLOCKS[architecture, element_size])),)


def unfold(steps, found, *, blocks=None):
    """Gradients of queries, keys, strengths of erasing and decays, from those of folded rows and pairs.

    steps: what tokens bring and where sequences lie (runtime/scan_kernels.py); found: what `gradients` returns.
    Returns by name q, k [T, H, K] (fp32 where a head is repeated), decay [T, H, K] fp32, and with the delta rule erase, in
    parts [B, T, H] for blocks of channels, or [T, H, K].
    """
    q, k = steps.q, steps.k
    heads, sequences, tokens = steps.heads, len(steps.offsets) - 1, len(q)
    chosen = blocks or BLOCKS[architecture(q.device), q.element_size()]
    compiled = settings(*chosen)
    parts = triton.cdiv(KEY_WIDTH, compiled["BLOCK"])

    def rows(dtype):
        return torch.empty(tokens, heads, KEY_WIDTH, dtype=dtype, device=q.device)

    made = {name: rows(q.dtype if x.shape[1] == heads else torch.float32) for name, x in (("q", q), ("k", k))}
    made["decay"] = rows(torch.float32)
    if DELTA:
        made["erase"] = rows(torch.float32)
        if steps.erase.dim() == 2:
            made["erase"] = torch.empty(parts, tokens, heads, dtype=torch.float32, device=q.device)
    tensors = (
        q, k, steps.erase, steps.decay, found["q"], found["k"], found.get("erase"), found["decay"], found["pairs"],
        found.get("strengths"), made["q"], made["k"], made.get("erase"), made["decay"],
    )  # fmt: skip
    tensors = (*(q if tensor is None else tensor for tensor in tensors), steps.offsets)
    numbers = (tokens, sequences, heads, heads // q.shape[1], heads // k.shape[1], *q.stride()[:2], *k.stride()[:2])
    programs = parts * (chosen[0] // 16) * heads * sequences * triton.cdiv(steps.max_new, chosen[0])
    key = (flows_kernel, q.device, tuple(tensor.dtype for tensor in tensors), chosen)
    run(flows_kernel, programs, tensors, numbers, bits(numbers[5:]), key, lambda: compiled)
    return made
