"""The backward pass of softmax attention over key intervals, for queries: one program for a block of queries of one head.

It forms the weights again from the scores and their log-sum-exp (FlashAttention-2, arXiv 2307.08691, algorithm 2) and walks
the same key blocks as the forward pass, each at most once. What a query's scores have in common, `delta`, is left for the
keys' pass. Queries lie packed [T, H, D]; keys and values lie in slots that hold the tokens from position `base` on.
"""

import torch
import triton
import triton.language as tl

FORM = (1, 0, 0, True)  # how many near intervals, strides and powers a row holds, and whether the future is hidden
HEAD_WIDTH = 64  # of queries and keys
VALUE_WIDTH = 1
GROUP = 1  # query heads for each KV head
CAP = False
EXPONENT = 0.0  # of re-weighted softplus masses; 0.0: their sum alone; None: a softmax
BLOCKS = {  # (architecture, bytes of an element): queries and keys of a block, warps, pipeline stages
    ("sm_80", 2): (64, 32, 4, 2),
    ("sm_90", 2): (64, 32, 4, 2),
    ("sm_100", 2): (64, 32, 4, 2),
    ("gfx942", 2): (64, 32, 4, 2),
    ("sm_80", 4): (16, 16, 4, 1),
    ("sm_90", 4): (16, 16, 4, 1),
    ("sm_100", 4): (16, 16, 4, 1),
    ("gfx942", 4): (16, 16, 4, 1),
    ("any", 2): (16, 16, 4, 1),
    ("any", 4): (16, 16, 4, 1),
}

KNOWN = {}  # device -> its row of BLOCKS
READY = {}  # key of `run` -> what was compiled, how it is launched, and its compile-time arguments
HOOKS = triton.knobs.runtime
POINTER = torch.Tensor.data_ptr

LOG2E = tl.constexpr(1.4426950408889634)
HIDDEN = tl.constexpr(0.0)  # exponent of a key that is not seen
EMPTY = tl.constexpr(1e30)  # stands for the log-sum-exp of a query without keys: no key has a weight beside it
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
    seen = j < sink
    seen |= j >= lower(numbers, i)
    return seen & (j <= i)


@triton.jit
def read_scale(scale, head, place, live):
    """The factor of a query's logits, the logarithm of its number of keys, and that number over the sum of its masses."""
    here = scale + place * 3
    return tl.load(here, mask=live, other=0.0), tl.load(here + 1, mask=live, other=0.0), tl.load(here + 2, mask=live, other=0.0)


@triton.jit
def load_sums(sums, place, live):
    """Nothing of it is needed."""
    return 0.0


@triton.jit
def solid(numbers, first, last, begin, end):
    """Whether all queries first..last see all keys from begin up to, not including, end."""
    whole = end <= numbers[0]
    whole |= (begin >= lower(numbers, last)) & (end <= upper(numbers, first))
    return whole & (end <= horizon(first))


@triton.jit
def exponent(product, scale, cap, sums):
    """Nothing but 1: each key counts once."""
    return product * 0.0 + 1.0


@triton.jit
def weight_of(exponent, sums):
    """1 where a key is seen."""
    return exponent


@triton.jit
def sigmoid(x):
    """The derivative of softplus."""
    u = tl.exp(-tl.abs(x))
    return tl.where(x < 0.0, u, 1.0) / (1.0 + u)


@triton.jit
def logit(product, factor, count, cap):
    """The logit of a query and a key times log N."""
    return product * (factor * count)


@triton.jit
def logit_grad(grad, product, factor, count, cap):
    """The gradient of a query's and a key's product, from that of `logit`."""
    return grad * (factor * count)


@triton.jit
def product_grad(grad, product, scale, cap):
    """The gradient of a query's and a key's product, from that of the mass."""
    factor, count, share = scale
    return logit_grad(grad * sigmoid(logit(product, factor, count, cap)), product, factor, count, cap)


@triton.jit
def add_scale_grad(total, grad, product, scale, cap):
    """The gradient of what `read_scale` read for a query, where it has one: this block's keys added to the others'."""
    return total


@triton.jit
def store_scale_grad(scale_grad, place, total, live):
    """Leaves that gradient behind."""


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


@triton.jit(do_not_specialize=["sequences", "kv_heads", "row_stride", "k_begin_stride", "v_begin_stride"])
def queries_kernel(
    q, k, v, o, lse, o_grad, lse_grad, q_grad, delta, scale_grad, rows, offsets, past, stored, base, k_begin, v_begin,
    scale, cap, sequences, kv_heads, q_token_stride, q_head_stride, k_stride, v_stride, q_grad_stride, row_stride,
    k_begin_stride, v_begin_stride,
    ROW: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr, E: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    SUMS_APART: tl.constexpr = q.dtype.element_ty == tl.float32
    # The heads of a group side by side, as they read the same keys; the last queries, which see most, first.
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
    slots = tl.load(stored + sequence)
    base_here = tl.load(base + sequence)

    token = block * BLOCK_Q + tl.arange(0, BLOCK_Q)
    d = tl.arange(0, BLOCK_D)[None, :]
    e = tl.arange(0, BLOCK_E)[None, :]
    i = (start + token)[:, None]
    live = token < count
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
    scale_here = read_scale(scale, head, place[:, None], live[:, None])

    k_first = tl.multiple_of(tl.load(k_begin + sequence * k_begin_stride + group), D & -D)
    v_first = tl.multiple_of(tl.load(v_begin + sequence * v_begin_stride + group), E & -E)
    k_inside = d + tl.arange(0, BLOCK_K)[:, None] * k_stride
    v_inside = e + tl.arange(0, BLOCK_K)[:, None] * v_stride
    first = start + block * BLOCK_Q
    last = start + tl.minimum(count, block * BLOCK_Q + BLOCK_Q) - 1
    visits = visit(numbers, first, last, base_here, slots, False, BLOCK_K)
    acc = tl.zeros([BLOCK_Q, BLOCK_D], tl.float32)
    of_scale = tl.zeros([BLOCK_Q], tl.float32)
    for step in tl.range(0, visits[-1]):
        begin = block_of(visits, step, base_here, slots, BLOCK_K) * BLOCK_K
        slot = begin + tl.arange(0, BLOCK_K)
        here = (slot < slots)[:, None]
        key = tl.load(k + (k_first + begin.to(tl.int64) * k_stride) + k_inside, mask=here & (d < D), other=0.0)
        value = tl.load(v + (v_first + begin.to(tl.int64) * v_stride) + v_inside, mask=here & (e < E), other=0.0)
        product = tl.dot(query, tl.trans(key), input_precision="ieee")
        weight_grad = tl.dot(grad, tl.trans(value), input_precision="ieee")
        power = exponent(product, scale_here, cap, sums)
        whole = solid(numbers, first, last, base_here + begin, base_here + begin + BLOCK_K) & (begin + BLOCK_K <= slots)
        if not whole:
            j = tl.where(slot < slots, base_here + slot, NOWHERE)[None, :]
            power = tl.where(keep(numbers, i, j), power, HIDDEN)
        weight = weight_of(power, sums)
        change = weight * (weight_grad - shared[:, None])
        of_scale = add_scale_grad(of_scale, change, product, scale_here, cap)
        change = product_grad(change, product, scale_here, cap)
        if SUMS_APART:  # an accumulator of tl.dot would take one product after the other
            acc = tl.fma(tl.dot(change, key, input_precision="ieee"), 1.0, acc)
        else:
            acc = tl.dot(change.to(key.dtype), key, acc)

    # A stride and a mask of their own, so that no address of above stays in a register all the while.
    own = tl.arange(0, BLOCK_Q)[:, None]
    begin = token_begin + block * BLOCK_Q
    q_there = q_grad + (begin * q_grad_stride + head * D)
    stays = own < count - block * BLOCK_Q
    tl.store(q_there + (own * q_grad_stride + d), acc.to(q_grad.dtype.element_ty), mask=stays & (d < D))
    store_scale_grad(scale_grad, place, of_scale, live)


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


def settings(block_q, block_k, warps, stages):
    """The kernel's compile-time arguments."""
    nears, strides, powers, _ = FORM
    return {
        "ROW": 1 + 4 * nears + strides + powers,
        "GROUP": GROUP,
        "D": HEAD_WIDTH,
        "E": VALUE_WIDTH,
        "BLOCK_D": max(16, triton.next_power_of_2(HEAD_WIDTH)),
        "BLOCK_E": max(16, triton.next_power_of_2(VALUE_WIDTH)),
        "BLOCK_Q": block_q,
        "BLOCK_K": block_k,
        "num_warps": warps,
        "num_stages": stages,
        "enable_fp_fusion": True,
    }


def variants(architecture, element_size):
    """Every kernel that `attend_backward_queries` may launch, with its compile-time arguments."""
    return ((queries_kernel, settings(*BLOCKS[architecture, element_size])),)


def attend_backward_queries(q, part, rows, form, batch, scale, cap, o, lse, o_grad, lse_grad, *, blocks=None):
    """The gradient of the queries of `attend` (softmax_prefill), whose arguments and results o, lse it takes.

    part: a KeyPart without rings; o_grad [T, H, E] and lse_grad [T, H] fp32: the results' gradients;
    blocks = (queries, keys, warps, stages) instead of the table's.
    Returns q_grad [T, H, D] in q's dtype, and delta [T, H] fp32: sum over E of o o_grad, less lse_grad. With an
    EXPONENT delta is [2, T, H]: the second is the gradient of each query's share.
    """
    tokens, heads, width = q.shape
    sequences, kv_heads, row_numbers = rows.shape
    assert (form.nears, form.strides, form.powers, form.causal) == FORM
    assert (width, part.v_width, heads) == (HEAD_WIDTH, VALUE_WIDTH, kv_heads * GROUP)
    token_stride, head_stride, dense = q.stride()
    row_stride, head_row, _ = rows.stride()
    assert (dense, head_row) == (1, row_numbers)
    assert (cap is not None) == CAP
    assert q.dtype == part.k.dtype == part.v.dtype == o_grad.dtype
    assert not part.rings
    q_grad = torch.empty(tokens, heads, width, dtype=q.dtype, device=q.device)
    delta = torch.empty(*([2] if EXPONENT else []), tokens, heads, dtype=torch.float32, device=q.device)
    scale_grad = delta[1] if EXPONENT else delta
    chosen = blocks or BLOCKS[architecture(q.device), q.element_size()]
    tensors = (
        q, part.k, part.v, o.contiguous(), lse.contiguous(), o_grad.contiguous(), lse_grad.contiguous(), q_grad, delta,
        scale_grad, rows, batch.offsets, batch.past, part.stored, part.base, part.k_begin, part.v_begin, scale.contiguous(),
    )  # fmt: skip
    numbers = (
        0.0 if cap is None else cap, sequences, kv_heads, token_stride, head_stride, part.k_stride, part.v_stride,
        q_grad.stride(0), row_stride, part.k_begin.stride(0), part.v_begin.stride(0),
    )  # fmt: skip
    programs = -(-batch.max_new // chosen[0]) * sequences * heads
    strides = token_stride | head_stride | part.k_stride | part.v_stride
    run(queries_kernel, programs, tensors, numbers, strides, (q.device, q.dtype, chosen), lambda: settings(*chosen))
    return q_grad, delta
