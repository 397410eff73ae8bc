"""What the chunks of a sequence need before a state passes through them: one program for a chunk, or a part of one, of a head.

For the delta rule: weights of outputs, and T = (1 + A)^-1 of every chunk, A_ij = erase_i (k_i . k_j) between_ij for j < i, so
that U = T (write V - erase (K S) since) is what the chunk's tokens write.

For one decay of a token without the delta rule, its sums since the chunk's start in two parts, which are in float64 before.

For decays of every key channel, which are no factors of a product q_i . k_j: the weights

    P_ij = sum over c of q_ic k_jc between_ijc,    A_ij likewise

and queries, keys and erased keys with the decays since the chunk's start, or until its end, in them. No exponent is positive:
16 tokens are one part; within a part between_ij is a running product, and parts meet at the later one's start.
"""

import torch
import triton
import triton.language as tl

from attnc.codegen.triton.skeletons.scan_parts import (
    architecture,
    between,
    bits,
    exp_of,
    part_fades,
    read_eraser,
    read_gates,
    read_rows,
    run,
    since_start,
    until_end,
)

FORM = ("scalar", "delta", "scalar", "scalar", False)  # decay, update, strengths of erasing and writing, divided by sums
KEY_WIDTH = 64
VALUE_WIDTH = 64
CHANNELS = False  # every key channel decays by itself
DELTA = True
FADES = True  # tokens have a decay each, the same for all channels
PRECISION = {2: "tf32", 4: "ieee"}  # bytes of an element: how products of fp32 numbers are made
BLOCKS = {  # (architecture, bytes of an element): tokens of a chunk, warps for pairs, warps to solve, pipeline stages
    ("any", 2): (16, 4, 4, 1),
    ("any", 4): (16, 4, 4, 1),
}

KNOWN = {}  # device -> its row of BLOCKS
READY = {}  # key of `run` -> what was compiled, and its compile-time arguments

LOG2E = tl.constexpr(1.4426950408889634)
PART = tl.constexpr(16)  # tokens that are solved, or decay, one by one


@triton.jit
def store_fades(gates, fades, row, head, heads, index, left):
    """Leaves what is left of a state since the chunk's start, and until its end of what a token wrote."""
    here = fades + (row * heads + head) * 2 + index[:, None] * (heads * 2)
    tl.store(here, since_start(gates), mask=(index < left)[:, None])
    tl.store(here + 1, until_end(gates), mask=(index < left)[:, None])


@triton.jit
def find_pairs(q, k, e, decay, fades, pairs, strengths, row, q_token_stride, q_head, k_token_stride, k_head, head, heads,
               index, left, slot, channel, K: tl.constexpr, C: tl.constexpr):  # fmt: skip
    """A [C, C]: what token i, a row, erases of what token j wrote; only j < i is read. Leaves the weights of outputs."""
    query = read_rows(q, row, q_token_stride, q_head, index, left, channel, K)
    key = read_rows(k, row, k_token_stride, k_head, index, left, channel, K)
    erased, strength = read_eraser(key, e, row, head, heads, index, left, channel, K)
    gates = read_gates(decay, row, head, heads, index, left, slot, channel, K)
    store_fades(gates, fades, row, head, heads, index, left)
    alive = between(gates)
    weight = tl.dot(query, tl.trans(key), input_precision="ieee") * alive
    to = pairs + (row * heads + head) * C + (index[:, None] * (heads * C) + index[None, :])
    tl.store(to, weight.to(pairs.dtype.element_ty), mask=(index < left)[:, None])
    return tl.dot(erased, tl.trans(key), input_precision="ieee") * alive * strength


@triton.jit(do_not_specialize=["sequences", "heads", "q_share", "k_share"])
def solve_kernel(
    q, k, e, decay, fades, pairs, strengths, inverse, offsets, sequences, heads, q_share, k_share,
    q_token_stride, q_head_stride, k_token_stride, k_head_stride,
    K: tl.constexpr, BLOCK_K: tl.constexpr, C: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    head = program % heads
    chunks = tl.num_programs(0) // (heads * sequences)
    chunk = program // heads % chunks
    sequence = program // (heads * chunks)
    token_begin = tl.load(offsets + sequence)
    left = (tl.load(offsets + sequence + 1) - token_begin).to(tl.int32) - chunk * C
    if left <= 0:
        return
    row = token_begin + chunk * C
    slot = ((token_begin // C + sequence + chunk) * heads + head).to(tl.int64)
    index = tl.arange(0, C)
    i = index[:, None]
    j = index[None, :]
    q_head = (head // q_share).to(tl.int64) * q_head_stride
    k_head = (head // k_share).to(tl.int64) * k_head_stride
    found = find_pairs(
        q, k, e, decay, fades, pairs, strengths, row, q_token_stride, q_head, k_token_stride, k_head, head, heads,
        index, left, slot, tl.arange(0, BLOCK_K), K, C,
    )  # fmt: skip
    found = tl.where(i > j, found, 0.0)
    # Blocks on the diagonal, all at once, row by row: row r of a block's inverse follows from those before it.
    solution = tl.where(i == j, 1.0, 0.0)
    for r in tl.range(1, PART):
        fresh = i == j // PART * PART + r
        factors = tl.sum(tl.where(fresh, found, 0.0), 0)
        solution -= tl.where(fresh, tl.sum(factors[:, None] * solution, 0)[None, :], 0.0)
    # Two neighbours X, Y become one block twice as large: [X 0; -Y A X, Y].
    for level in tl.static_range(4, 7):
        if 2**level < C:
            below = (i // 2 ** (level + 1) == j // 2 ** (level + 1)) & (i // 2**level > j // 2**level)
            low = tl.dot(tl.where(below, found, 0.0), solution, input_precision=PRECISION)
            solution -= tl.dot(solution, low, input_precision=PRECISION)
    to = inverse + (row * heads + head) * C
    tl.store(to + (i * (heads * C) + j), solution.to(inverse.dtype.element_ty), mask=i < left)


@triton.jit(do_not_specialize=["sequences", "heads"])
def sums_kernel(decay, sums, offsets, sequences, heads, C: tl.constexpr):
    program = tl.program_id(0)
    head = program % heads
    chunks = tl.num_programs(0) // (heads * sequences)
    chunk = program // heads % chunks
    sequence = program // (heads * chunks)
    token_begin = tl.load(offsets + sequence)
    left = (tl.load(offsets + sequence + 1) - token_begin).to(tl.int32) - chunk * C
    if left <= 0:
        return
    row = token_begin + chunk * C
    index = tl.arange(0, C)
    gates = read_gates(decay, row, head, heads, index, left, 0, index, C)
    here = sums + (row * heads + head) * 2 + index * (heads * 2)
    tl.store(here, gates[0], mask=index < left)
    tl.store(here + 1, gates[1], mask=index < left)


@triton.jit(do_not_specialize=["sequences", "heads", "q_share", "k_share"])
def pairs_kernel(
    q, k, e, decay, pairs, strengths, folded_q, folded_k, folded_e, totals, offsets,
    sequences, heads, q_share, k_share, q_token_stride, q_head_stride, k_token_stride, k_head_stride,
    K: tl.constexpr, BLOCK_K: tl.constexpr, C: tl.constexpr, DELTA: tl.constexpr,
):  # fmt: skip
    parts: tl.constexpr = C // 16
    program = tl.program_id(0)
    part = program % parts
    head = program // parts % heads
    chunks = tl.num_programs(0) // (parts * heads * sequences)
    chunk = program // (parts * heads) % chunks
    sequence = program // (parts * heads * chunks)
    token_begin = tl.load(offsets + sequence)
    count = (tl.load(offsets + sequence + 1) - token_begin).to(tl.int32) - chunk * C
    left = count - part * PART
    if left <= 0:
        return
    first = token_begin + chunk * C
    row = first + part * PART
    index = tl.arange(0, PART)
    c = tl.arange(0, BLOCK_K)
    k_offset = (head // k_share).to(tl.int64) * k_head_stride
    query = read_rows(q, row, q_token_stride, (head // q_share).to(tl.int64) * q_head_stride, index, left, c, K)
    query = query.to(tl.float32)
    own = read_rows(k, row, k_token_stride, k_offset, index, left, c, K)
    key = own.to(tl.float32)
    eraser = query
    if DELTA:
        operand, strength = read_eraser(own, e, row, head, heads, index, left, c, K)
        eraser = operand.to(tl.float32) * strength

    weight = tl.zeros([PART, PART], tl.float32)
    erased = tl.zeros([PART, PART], tl.float32)
    alive = tl.zeros([PART, BLOCK_K], tl.float32)
    for step in tl.range(0, tl.minimum(left, PART)):
        j = tl.minimum(left, PART) - 1 - step
        fade = tl.load(decay + (row + j + 1) * (heads * K) + head * K + c, mask=(c < K) & (step > 0), other=0.0)
        alive = tl.where(index[:, None] == j, 1.0, alive * exp_of(fade)[None, :])
        other = tl.load(k + ((row + j) * k_token_stride + k_offset + c), mask=c < K, other=0.0).to(tl.float32)
        found = alive * other[None, :]
        weight += tl.where(index[None, :] == j, tl.sum(query * found, 1)[:, None], 0.0)
        if DELTA:
            erased += tl.where(index[None, :] == j, tl.sum(eraser * found, 1)[:, None], 0.0)
    to = (row * heads + head) * C + index[:, None] * (heads * C) + index[None, :]
    here = (index < left)[:, None]
    tl.store(pairs + (to + part * PART), weight.to(pairs.dtype.element_ty), mask=here)
    if DELTA:
        tl.store(strengths + (to + part * PART), erased, mask=here)

    since, until, whole = part_fades(decay, row, head, heads, index, left, c, K)
    query = query * since
    eraser = eraser * since
    key = key * until
    for back in tl.range(0, part):
        begin = (part - 1 - back) * PART
        _, until, total = part_fades(decay, first + begin, head, heads, index, PART, c, K)
        other = read_rows(k, first + begin, k_token_stride, k_offset, index, PART, c, K)
        other = (other.to(tl.float32) * until).to(own.dtype)
        weight = tl.dot(query.to(own.dtype), tl.trans(other), input_precision="ieee")
        tl.store(pairs + (to + begin), weight.to(pairs.dtype.element_ty), mask=here)
        if DELTA:
            erased = tl.dot(eraser.to(own.dtype), tl.trans(other), input_precision="ieee")
            tl.store(strengths + (to + begin), erased, mask=here)
        query = query * total[None, :]
        eraser = eraser * total[None, :]
    for begin in tl.range(part * PART + PART, tl.minimum(count, C), 16):
        _, _, total = part_fades(decay, first + begin, head, heads, index, count - begin, c, K)
        key = key * total[None, :]
        whole = whole * total

    to = (row * heads + head) * K + index[:, None] * (heads * K) + c[None, :]
    mask = here & (c < K)[None, :]
    tl.store(folded_q + to, query.to(own.dtype), mask=mask)
    tl.store(folded_k + to, key.to(own.dtype), mask=mask)
    if DELTA:
        tl.store(folded_e + to, eraser.to(own.dtype), mask=mask)
    if part == 0:
        slot = ((token_begin // C + sequence + chunk) * heads + head).to(tl.int64)
        tl.store(totals + slot * K + c, whole, mask=c < K)


def settings(element_size, chunk, pairing, solving, stages):
    """The compile-time arguments of `solve_kernel`, of `pairs_kernel` and of `sums_kernel`."""
    both = {
        "K": KEY_WIDTH,
        "BLOCK_K": max(16, triton.next_power_of_2(KEY_WIDTH)),
        "C": chunk,
        "num_stages": stages,
        "enable_fp_fusion": True,
    }
    solve = {**both, "PRECISION": PRECISION[element_size], "num_warps": solving}
    alone = {"C": chunk, "num_warps": 1, "num_stages": 1, "enable_fp_fusion": True}
    return solve, {**both, "DELTA": DELTA, "num_warps": pairing}, alone


def variants(architecture, element_size):
    """Every kernel that `prepare` may launch, with its compile-time arguments."""
    solving, pairing, summing = settings(element_size, *BLOCKS[architecture, element_size])
    every = ((solve_kernel, solving, DELTA), (pairs_kernel, pairing, CHANNELS), (sums_kernel, summing, FADES and not DELTA))
    return tuple((kernel, constants) for kernel, constants, wanted in every if wanted)


def prepare(steps, *, blocks=None):
    """What `scan` asks of chunks, by name: the inverse of the delta rule, sums of decays, weights and folded rows.

    steps: what tokens bring and where sequences lie (runtime/scan_kernels.py);
    blocks = (tokens, warps for pairs, warps to solve, stages).
    """
    q, k = steps.q, steps.k
    heads, sequences, tokens = steps.heads, len(steps.offsets) - 1, len(q)
    chosen = blocks or BLOCKS[architecture(q.device), q.element_size()]
    chunk = chosen[0]
    solving, pairing, summing = settings(q.element_size(), *chosen)
    numbers = (sequences, heads, heads // q.shape[1], heads // k.shape[1], *q.stride()[:2], *k.stride()[:2])
    programs = triton.cdiv(steps.max_new, chunk) * sequences * heads
    together = bits(numbers[4:])

    def new(wanted, *shape, dtype=q.dtype):
        return torch.empty(shape, dtype=dtype, device=q.device) if wanted else q

    made = {"pairs": new(True, tokens, heads, chunk)} if CHANNELS or DELTA else {}
    if FADES:
        made["decay"] = new(True, tokens, heads, 2, dtype=torch.float32)
    strengths = new(CHANNELS and DELTA, tokens, heads, chunk, dtype=torch.float32)
    e, decay = (q if tensor is None else tensor for tensor in (steps.erase, steps.decay))
    if CHANNELS:
        made |= {name: new(True, tokens, heads, KEY_WIDTH) for name in ("q", "k", "e")[: 2 + DELTA]}
        made["decay"] = new(True, tokens // chunk + sequences, heads, KEY_WIDTH, dtype=torch.float32)
        folded = made["q"], made["k"], made.get("e", q), made["decay"]
        tensors = (q, k, e, decay, made["pairs"], strengths, *folded, steps.offsets)
        key = (pairs_kernel, q.device, *(tensor.dtype for tensor in tensors), chosen)
        run(pairs_kernel, programs * (chunk // 16), tensors, numbers, together, key, lambda: pairing)
    if DELTA:
        made["inverse"] = new(True, tokens, heads, chunk)
        kept = made.get("decay", q), made["pairs"], strengths, made["inverse"]
        tensors = (q, k, e, decay, *kept, steps.offsets)
        key = (solve_kernel, q.device, *(tensor.dtype for tensor in tensors), chosen)
        run(solve_kernel, programs, tensors, numbers, together, key, lambda: solving)
    elif FADES:
        tensors = (decay, made["decay"], steps.offsets)
        run(sums_kernel, programs, tensors, (sequences, heads), 0, (sums_kernel, q.device, chosen), lambda: summing)
    return made
