"""Gradients of values, all chunks at once: one program for a chunk, a head and a block of value channels. With the delta rule,
where they pass from chunk to chunk, scan_backward finds them.

From the gradient of the state after the chunk, G, which scan_backward left, and from those of the chunk's own outputs:

    dV = (K G) until + (K Q^T between) dO
"""

import torch
import triton
import triton.language as tl

from attnc.codegen.triton.skeletons.scan_parts import (
    add_product,
    architecture,
    between_turned,
    bits,
    output_share,
    read_gates,
    read_rows,
    run,
    until_end,
)

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
def turned_weights(key, q, gates, pairs, row, token_stride, offset, head, heads, index, left, channel,
                   K: tl.constexpr, C: tl.constexpr):  # fmt: skip
    """What the output of token i, a column, takes of what token j, a row, wrote [C, C]; 0 for j > i."""
    query = read_rows(q, row, token_stride, offset, index, left, channel, K)
    product = tl.dot(key, tl.trans(query), input_precision="ieee")
    return tl.where(index[:, None] <= index[None, :], product * between_turned(gates), 0.0)


@triton.jit(do_not_specialize=["factor", "sequences", "heads", "q_share", "k_share"])
def values_kernel(
    q, k, o_grad, norms, decay, pairs, states_grad, v_grad, offsets, factor, sequences, heads, q_share, k_share,
    q_token_stride, q_head_stride, k_token_stride, k_head_stride,
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
    c = tl.arange(0, BLOCK_K)
    d = block * BLOCK_V + tl.arange(0, BLOCK_V)
    q_head = (head // q_share).to(tl.int64) * q_head_stride
    key = read_rows(k, row, k_token_stride, (head // k_share).to(tl.int64) * k_head_stride, index, left, c, K)
    inside = (c < K)[:, None] & (d < V)[None, :]
    state_grad = tl.load(states_grad + slot * (K * V) + c[:, None] * V + d[None, :], mask=inside, other=0.0).to(key.dtype)
    out_grad = read_rows(o_grad, row, heads * V, head * V, index, left, d, V)
    gates = read_gates(decay, row, head, heads, index, left, slot, c, K)
    share = output_share(norms, factor, row, head, heads, index, left, NORMALIZE)
    turned = turned_weights(key, q, gates, pairs, row, q_token_stride, q_head, head, heads, index, left, c, K, C)
    value_grad = tl.dot(key, state_grad, input_precision="ieee") * until_end(gates)
    value_grad = add_product(value_grad, (turned * share[None, :]).to(key.dtype), out_grad)
    to = v_grad + (row * heads + head) * V + (index[:, None] * (heads * V) + d[None, :])
    tl.store(to, value_grad.to(v_grad.dtype.element_ty), mask=(index < left)[:, None] & (d < V)[None, :])


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
    """Every kernel that `values` may launch, with its compile-time arguments."""
    return ((values_kernel, settings(*BLOCKS[architecture, element_size])),)


def values(steps, made, norms, o_grad, back, *, blocks=None):
    """The gradients of values [T, H, V] in q's dtype, or in fp32 where a head is repeated.

    steps, made, norms, o_grad as scan_backward takes them; back: what it returns;
    blocks = (tokens, value channels, warps, stages).
    """
    q, k = made.get("q", steps.q), made.get("k", steps.k)
    heads, sequences, tokens = steps.heads, len(steps.offsets) - 1, len(q)
    chosen = blocks or BLOCKS[architecture(q.device), q.element_size()]
    compiled = settings(*chosen)
    dtype = q.dtype if steps.v.shape[1] == heads else torch.float32
    v_grad = torch.empty(tokens, heads, VALUE_WIDTH, dtype=dtype, device=q.device)
    tensors = (q, k, o_grad, norms, made.get("decay", steps.decay), made.get("pairs"), back[2], v_grad)
    tensors = (*(q if tensor is None else tensor for tensor in tensors), steps.offsets)
    strides = [stride for tensor in (q, k) for stride in tensor.stride()[:2]]
    numbers = (steps.scale, sequences, heads, *(heads // tensor.shape[1] for tensor in (q, k)), *strides)
    programs = triton.cdiv(VALUE_WIDTH, compiled["BLOCK_V"]) * heads * sequences * triton.cdiv(steps.max_new, chosen[0])
    key = (values_kernel, q.device, tuple(tensor.dtype for tensor in tensors), chosen)
    run(values_kernel, programs, tensors, numbers, bits(strides), key, lambda: compiled)
    return v_grad
