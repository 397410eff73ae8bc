"""Matrix states, token by token: one program for a sequence, a head and a block of the state's value channels. For decoding.

A program holds its part of the state [K, BLOCK_V] in fp32 and reads and writes it once; the sums over key channels are its own.
"""

import torch
import triton
import triton.language as tl

from attnc.codegen.triton.skeletons.scan_parts import architecture, bits, exp_of, run

FORM = ("scalar", "add", "scalar", "scalar", False)  # decay, update, strengths of erasing and writing, divided by sums
KEY_WIDTH = 64
VALUE_WIDTH = 64
DELTA = False  # the delta rule
NORMALIZE = False  # outputs are divided by the sum of their weights
BLOCKS = {  # (architecture, bytes of an element): tokens at a time, value channels of a block, warps, pipeline stages
    ("any", 2): (1, 16, 4, 1),
    ("any", 4): (1, 16, 4, 1),
}

KNOWN = {}  # device -> its row of BLOCKS
READY = {}  # key of `run` -> what was compiled, and its compile-time arguments

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def read_fade(decay, place, head, channel, K: tl.constexpr):
    """What a token leaves of a state before it."""
    return exp_of(tl.load(decay + place))


@triton.jit
def read_erase(e, place, channel, K: tl.constexpr):
    """A token's strength of erasing."""
    return tl.load(e + place).to(tl.float32)


@triton.jit
def read_strength(write, place, channel, V: tl.constexpr):
    """A token's strength of writing."""
    return tl.load(write + place).to(tl.float32)


@triton.jit
def of_rows(fade):
    """A fade of all channels, or one of each, beside a state [K, BLOCK_V]."""
    return fade


@triton.jit(do_not_specialize=["factor", "heads", "q_share", "k_share", "v_share"])
def step_kernel(
    q, k, v, e, write, o, decay, before, sum_before, after, sum_after, offsets, factor, heads, q_share, k_share, v_share,
    q_token_stride, q_head_stride, k_token_stride, k_head_stride, v_token_stride, v_head_stride,
    K: tl.constexpr, V: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr,
    DELTA: tl.constexpr, NORMALIZE: tl.constexpr, BEFORE: tl.constexpr,
):  # fmt: skip
    blocks: tl.constexpr = (V + BLOCK_V - 1) // BLOCK_V
    program = tl.program_id(0)
    block = program % blocks
    head = program // blocks % heads
    sequence = program // (blocks * heads)
    token_begin = tl.load(offsets + sequence)
    count = (tl.load(offsets + sequence + 1) - token_begin).to(tl.int32)

    c = tl.arange(0, BLOCK_K)
    d = block * BLOCK_V + tl.arange(0, BLOCK_V)
    q_here = q + (token_begin * q_token_stride + (head // q_share).to(tl.int64) * q_head_stride) + c
    k_here = k + (token_begin * k_token_stride + (head // k_share).to(tl.int64) * k_head_stride) + c
    v_here = v + (token_begin * v_token_stride + (head // v_share).to(tl.int64) * v_head_stride) + d
    place = (sequence * heads + head).to(tl.int64)
    tile = c[:, None] * V + d[None, :]
    inside = (c < K)[:, None] & (d < V)[None, :]
    state = tl.zeros([BLOCK_K, BLOCK_V], tl.float32)
    total = tl.zeros([BLOCK_K], tl.float32)
    if BEFORE:
        state = tl.load(before + place * (K * V) + tile, mask=inside, other=0.0)
        if NORMALIZE:
            total = tl.load(sum_before + place * K + c, mask=c < K, other=0.0)
    for token in tl.range(0, count):
        here = (token_begin + token) * heads + head
        query = tl.load(q_here + token * q_token_stride, mask=c < K, other=0.0).to(tl.float32)
        key = tl.load(k_here + token * k_token_stride, mask=c < K, other=0.0).to(tl.float32)
        value = tl.load(v_here + token * v_token_stride, mask=d < V, other=0.0).to(tl.float32)
        fade = read_fade(decay, here, head, c, K)
        state = state * of_rows(fade)
        if DELTA:
            erased = key * read_erase(e, here, c, K)
            value = value * read_strength(write, here, d, V) - tl.sum(erased[:, None] * state, 0)
        state += key[:, None] * value[None, :]
        out = tl.sum(query[:, None] * state, 0)
        if NORMALIZE:
            total = total * fade + key
            norm = tl.sum(query * total, 0)
            out = tl.where(norm != 0.0, out / tl.where(norm != 0.0, norm, 1.0), 0.0)
        else:
            out = out * factor
        tl.store(o + here * V + d, out.to(o.dtype.element_ty), mask=d < V)
    tl.store(after + place * (K * V) + tile, state, mask=inside)
    if NORMALIZE and block == 0:
        tl.store(sum_after + place * K + c, total, mask=c < K)


def settings(before, tokens, block_v, warps, stages):
    """The kernel's compile-time arguments."""
    return {
        "K": KEY_WIDTH,
        "V": VALUE_WIDTH,
        "BLOCK_K": max(16, triton.next_power_of_2(KEY_WIDTH)),
        "BLOCK_V": min(block_v, max(16, triton.next_power_of_2(VALUE_WIDTH))),
        "DELTA": DELTA,
        "NORMALIZE": NORMALIZE,
        "BEFORE": before,
        "num_warps": warps,
        "num_stages": stages,
        "enable_fp_fusion": True,
    }


def variants(architecture, element_size):
    """Every kernel that `step` may launch, with its compile-time arguments."""
    return tuple((step_kernel, settings(before, *BLOCKS[architecture, element_size])) for before in (False, True))


def step(steps, before, sum_before, *, blocks=None):
    """The outputs of a launch and its states after, token by token.

    steps: what tokens bring and where sequences lie (runtime/scan_kernels.py); before [S, H, K, V] fp32 and
    sum_before [S, H, K], or None for zeros; blocks = (1, value channels, warps, stages) instead of the table's.
    Returns o [T, H, V] in q's dtype, the state after and the sum after or None.
    """
    q, k, v = steps.q, steps.k, steps.v
    heads, sequences = steps.heads, len(steps.offsets) - 1
    chosen = blocks or BLOCKS[architecture(q.device), q.element_size()]
    compiled = settings(before is not None, *chosen)
    o = torch.empty(len(q), heads, VALUE_WIDTH, dtype=q.dtype, device=q.device)
    after = torch.empty(sequences, heads, KEY_WIDTH, VALUE_WIDTH, dtype=torch.float32, device=q.device)
    sum_after = torch.empty(sequences, heads, KEY_WIDTH, dtype=torch.float32, device=q.device) if NORMALIZE else None
    tensors = (q, k, v, steps.erase, steps.write, o, steps.decay, before, sum_before, after, sum_after)
    tensors = (*(q if tensor is None else tensor for tensor in tensors), steps.offsets)
    strides = [stride for tensor in (q, k, v) for stride in tensor.stride()[:2]]
    numbers = (steps.scale, heads, *(heads // tensor.shape[1] for tensor in (q, k, v)), *strides)
    programs = triton.cdiv(VALUE_WIDTH, compiled["BLOCK_V"]) * heads * sequences
    key = (step_kernel, q.device, *(tensor.dtype for tensor in tensors), before is not None, chosen)
    run(step_kernel, programs, tensors, numbers, bits(strides), key, lambda: compiled)
    return o, after, sum_after
