"""Outputs of matrix states, all chunks at once: one program for a chunk, a head and a block of value channels.

From the state before the chunk, which scan_forward left, and from what the chunk's own tokens wrote:

    O = (Q S) since + (Q K^T between) U          U = V, or what scan_forward left of the delta rule
"""

import torch
import triton
import triton.language as tl

from attnc.codegen.triton.skeletons.scan_parts import architecture, between, bits, read_gates, read_rows, run, since_start

FORM = ("scalar", "add", "scalar", "scalar", False)  # decay, update, strengths of erasing and writing, divided by sums
KEY_WIDTH = 64
VALUE_WIDTH = 64
NORMALIZE = False  # outputs are divided by the sum of their weights
BLOCKS = {  # (architecture, bytes of an element): tokens of a chunk, value channels of a block, warps, pipeline stages
    ("any", 2): (16, 16, 4, 1),
    ("any", 4): (16, 16, 4, 1),
}

KNOWN = {}  # device -> its row of BLOCKS
READY = {}  # key of `run` -> what was compiled, and its compile-time arguments

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def pair_weights(query, k, gates, pairs, row, token_stride, offset, head, heads, index, left, channel,
                 K: tl.constexpr, C: tl.constexpr):  # fmt: skip
    """What the output of token i takes of what token j wrote [C, C]; 0 for j > i."""
    key = read_rows(k, row, token_stride, offset, index, left, channel, K)
    product = tl.dot(query, tl.trans(key), input_precision="ieee")
    return tl.where(index[:, None] >= index[None, :], product * between(gates), 0.0)


@triton.jit(do_not_specialize=["factor", "sequences", "heads", "q_share", "k_share", "v_share"])
def outputs_kernel(
    q, k, v, o, norms, decay, pairs, states, sums, offsets, factor, sequences, heads, q_share, k_share, v_share,
    q_token_stride, q_head_stride, k_token_stride, k_head_stride, v_token_stride, v_head_stride,
    K: tl.constexpr, V: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr, C: tl.constexpr, NORMALIZE: tl.constexpr,
):  # fmt: skip
    blocks: tl.constexpr = (V + BLOCK_V - 1) // BLOCK_V
    program = tl.program_id(0)
    block = program % blocks
    head = program // blocks % heads
    chunks = tl.num_programs(0) // (blocks * heads * sequences)
    chunk = program // (blocks * heads) % chunks
    sequence = program // (blocks * heads * chunks)
    token_begin = tl.load(offsets + sequence)
    left = (tl.load(offsets + sequence + 1) - token_begin).to(tl.int32) - chunk * C
    if left <= 0:
        return
    row = token_begin + chunk * C
    slot = ((token_begin // C + sequence + chunk) * heads + head).to(tl.int64)
    index = tl.arange(0, C)
    here = index < left
    c = tl.arange(0, BLOCK_K)
    d = block * BLOCK_V + tl.arange(0, BLOCK_V)
    k_head = (head // k_share).to(tl.int64) * k_head_stride
    v_head = (head // v_share).to(tl.int64) * v_head_stride
    query = read_rows(q, row, q_token_stride, (head // q_share).to(tl.int64) * q_head_stride, index, left, c, K)
    inside = (c < K)[:, None] & (d < V)[None, :]
    state = tl.load(states + slot * (K * V) + c[:, None] * V + d[None, :], mask=inside, other=0.0).to(query.dtype)
    value = read_rows(v, row, v_token_stride, v_head, index, left, d, V)
    gates = read_gates(decay, row, head, heads, index, left, slot, c, K)
    weight = pair_weights(query, k, gates, pairs, row, k_token_stride, k_head, head, heads, index, left, c, K, C)
    out = tl.dot(query, state, input_precision="ieee") * since_start(gates)
    out += tl.dot(weight.to(query.dtype), value, input_precision="ieee")
    if NORMALIZE:
        total = tl.load(sums + slot * K + c, mask=c < K, other=0.0)
        share = tl.sum(query.to(tl.float32) * total[None, :], 1)[:, None] * since_start(gates)
        norm = share + tl.sum(weight, 1)[:, None]
        out = tl.where(norm != 0.0, out / tl.where(norm != 0.0, norm, 1.0), 0.0)
        if block == 0:
            tl.store(norms + (row * heads + head) + index[:, None] * heads, norm, mask=here[:, None])
    else:
        out = out * factor
    to = o + (row * heads + head) * V + (index[:, None] * (heads * V) + d[None, :])
    tl.store(to, out.to(o.dtype.element_ty), mask=here[:, None] & (d < V)[None, :])


def settings(chunk, block_v, warps, stages):
    """The kernel's compile-time arguments."""
    return {
        "K": KEY_WIDTH,
        "V": VALUE_WIDTH,
        "BLOCK_K": max(16, triton.next_power_of_2(KEY_WIDTH)),
        "BLOCK_V": min(block_v, max(16, triton.next_power_of_2(VALUE_WIDTH))),
        "C": chunk,
        "NORMALIZE": NORMALIZE,
        "num_warps": warps,
        "num_stages": stages,
        "enable_fp_fusion": True,
    }


def variants(architecture, element_size):
    """Every kernel that `outputs` may launch, with its compile-time arguments."""
    return ((outputs_kernel, settings(*BLOCKS[architecture, element_size])),)


def outputs(steps, made, kept, *, blocks=None):
    """The outputs of a launch [T, H, V] in q's dtype, and the sums of weights [T, H] or None.

    steps, made as `scan` takes them; kept: what it returns; blocks = (tokens, value channels, warps, stages).
    """
    states, sums, values, *_ = kept
    q, k = made.get("q", steps.q), made.get("k", steps.k)
    v = steps.v if values is None else values
    heads, sequences, tokens = steps.heads, len(steps.offsets) - 1, len(q)
    chosen = blocks or BLOCKS[architecture(q.device), q.element_size()]
    compiled = settings(*chosen)
    o = torch.empty(tokens, heads, VALUE_WIDTH, dtype=q.dtype, device=q.device)
    norms = torch.empty(tokens, heads, dtype=torch.float32, device=q.device) if NORMALIZE else None
    tensors = (q, k, v, o, norms, made.get("decay", steps.decay), made.get("pairs"), states, sums)
    tensors = (*(q if tensor is None else tensor for tensor in tensors), steps.offsets)
    strides = [stride for tensor in (q, k, v) for stride in tensor.stride()[:2]]
    numbers = (steps.scale, sequences, heads, *(heads // tensor.shape[1] for tensor in (q, k, v)), *strides)
    programs = triton.cdiv(VALUE_WIDTH, compiled["BLOCK_V"]) * heads * sequences * triton.cdiv(steps.max_new, chosen[0])
    key = (outputs_kernel, q.device, tuple(tensor.dtype for tensor in tensors), chosen)
    run(outputs_kernel, programs, tensors, numbers, bits(strides), key, lambda: compiled)
    return o, norms
