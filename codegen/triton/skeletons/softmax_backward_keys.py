"""The backward pass of softmax attention over key intervals, for keys and values: one program for a block of keys of a KV head.

It walks the query blocks that see its keys, each at most once, for every query head of the group, so that each gradient is
summed in one order by one program: the same bits every time. Scores are formed transposed, keys by queries.
"""

import torch
import triton
import triton.language as tl

FORM = (1, 0, 0, True)  # how many near intervals, strides and powers a row holds, and whether the future is hidden
HEAD_WIDTH = 64  # of queries and keys
VALUE_WIDTH = 64
GROUP = 1  # query heads for each KV head
CAP = False
EXPONENT = None  # of re-weighted softplus masses; 0.0: their sum alone; None: a softmax
BLOCKS = {  # (architecture, bytes of an element): queries and keys of a block, warps, pipeline stages
    ("any", 2): (32, 32, 4, 1),
    ("any", 4): (32, 32, 4, 1),
}

KNOWN = {}  # device -> its row of BLOCKS
READY = {}  # key of `run` -> what was compiled, and its compile-time arguments

LOG2E = tl.constexpr(1.4426950408889634)
HIDDEN = tl.constexpr(-1e30)  # exponent of a key that is not seen
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
def keep(numbers, i, j):
    """Whether the query at i sees the key at j."""
    sink, align, shift, back, ahead = numbers
    return ((j >= lower(numbers, i)) | (j < sink)) & (j <= i)


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
def read_scale(scale, head, place, live):
    """The factor of a head's logits."""
    return tl.load(scale + head)


@triton.jit
def load_sums(lse, place, live):
    """What the forward pass left of a query: the log-sum-exp of its scores; NaN stays."""
    sums = tl.load(lse + place, mask=live, other=float("-inf"))
    return tl.where(sums == float("-inf"), EMPTY, sums)


@triton.jit
def exponent(product, scale, cap, sums):
    """The logit of a query and a key less the query's log-sum-exp."""
    return product * scale - sums


@triton.jit
def weight_of(exponent, sums):
    """A key's weight; `exponent` is HIDDEN where it is not seen."""
    return tl.exp(exponent)


@triton.jit
def product_grad(grad, product, scale, cap):
    """The gradient of a query's and a key's product, from that of their logit."""
    return grad * scale


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


@triton.jit(do_not_specialize=["sequences", "kv_heads", "row_stride", "k_begin_stride", "v_begin_stride"])
def keys_kernel(
    q, k, v, lse, delta, o_grad, k_grad, v_grad, rows, offsets, past, stored, base, k_begin, v_begin, k_grad_begin,
    v_grad_begin, scale, cap, sequences, kv_heads, q_token_stride, q_head_stride, k_stride, v_stride, row_stride,
    k_begin_stride, v_begin_stride,
    ROW: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr, E: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    SUMS_APART: tl.constexpr = q.dtype.element_ty == tl.float32
    # The first keys, which most queries see, first.
    program = tl.program_id(0)
    group = program % kv_heads
    sequence = program // kv_heads % sequences
    begin = program // (kv_heads * sequences) * BLOCK_K
    slots = tl.load(stored + sequence)
    if begin >= slots:
        return
    token_begin = tl.load(offsets + sequence)
    count = (tl.load(offsets + sequence + 1) - token_begin).to(tl.int32)
    numbers = read_row(rows + sequence * row_stride + group * ROW)
    start = tl.load(past + sequence).to(tl.int32)
    base_here = tl.load(base + sequence)

    slot = begin + tl.arange(0, BLOCK_K)
    d = tl.arange(0, BLOCK_D)[None, :]
    e = tl.arange(0, BLOCK_E)[None, :]
    in_k = (slot < slots)[:, None] & (d < D)
    in_v = (slot < slots)[:, None] & (e < E)
    k_inside = slot.to(tl.int64)[:, None] * k_stride + d
    v_inside = slot.to(tl.int64)[:, None] * v_stride + e
    key = tl.load(k + tl.load(k_begin + sequence * k_begin_stride + group) + k_inside, mask=in_k, other=0.0)
    value = tl.load(v + tl.load(v_begin + sequence * v_begin_stride + group) + v_inside, mask=in_v, other=0.0)
    j = tl.where(slot < slots, base_here + slot, NOWHERE)[:, None]

    first = base_here + begin
    last = base_here + tl.minimum(slots, begin + BLOCK_K) - 1
    visits = visit_queries(numbers, first, last, start, count, BLOCK_Q)
    k_acc = tl.zeros([BLOCK_K, BLOCK_D], tl.float32)
    v_acc = tl.zeros([BLOCK_K, BLOCK_E], tl.float32)
    for turn in tl.range(0, visits[-1] * GROUP):
        head = group * GROUP + turn % GROUP
        token = query_block_of(visits, turn // GROUP, count, BLOCK_Q) * BLOCK_Q + tl.arange(0, BLOCK_Q)
        live = token < count
        row = token_begin + token
        place = row * (kv_heads * GROUP) + head
        there = q + (row * q_token_stride + head * q_head_stride)[:, None]
        query = tl.load(there + d, mask=live[:, None] & (d < D), other=0.0)
        grad = tl.load(o_grad + place[:, None] * E + e, mask=live[:, None] & (e < E), other=0.0)
        sums = load_sums(lse, place[None, :], live[None, :])
        shared = tl.load(delta + place, mask=live, other=0.0)[None, :]
        scale_here = read_scale(scale, head, place[None, :], live[None, :])
        product = tl.dot(key, tl.trans(query), input_precision="ieee")
        i = (start + token)[None, :]
        weight = weight_of(tl.where(keep(numbers, i, j), exponent(product, scale_here, cap, sums), HIDDEN), sums)
        weight_grad = tl.dot(value, tl.trans(grad), input_precision="ieee")
        change = product_grad(weight * (weight_grad - shared), product, scale_here, cap)
        if SUMS_APART:  # an accumulator of tl.dot would take one product after the other
            v_acc = tl.fma(tl.dot(weight, grad, input_precision="ieee"), 1.0, v_acc)
            k_acc = tl.fma(tl.dot(change, query, input_precision="ieee"), 1.0, k_acc)
        else:
            v_acc = tl.dot(weight.to(grad.dtype), grad, v_acc)
            k_acc = tl.dot(change.to(query.dtype), query, k_acc)

    k_there = k_grad + tl.load(k_grad_begin + sequence * kv_heads + group) + k_inside
    v_there = v_grad + tl.load(v_grad_begin + sequence * kv_heads + group) + v_inside
    tl.store(k_there, k_acc.to(k_grad.dtype.element_ty), mask=in_k)
    tl.store(v_there, v_acc.to(v_grad.dtype.element_ty), mask=in_v)


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
    """Every kernel that `attend_backward_keys` may launch, with its compile-time arguments."""
    return ((keys_kernel, settings(*BLOCKS[architecture, element_size])),)


def attend_backward_keys(q, part, rows, form, batch, scale, cap, lse, delta, o_grad, *, blocks=None):
    """The gradients of the keys and values of `attend` (softmax_prefill), whose arguments and log-sum-exp it takes.

    part: a KeyPart without rings; delta [T, H] fp32, from the queries' backward pass; o_grad [T, H, E];
    blocks = (queries, keys, warps, stages) instead of the table's.
    Returns k_grad and v_grad, flat as part.k and part.v; zeros where no sequence of the part has a slot.
    """
    _, heads, width = q.shape
    sequences, kv_heads, _ = rows.shape
    assert (form.nears, form.strides, form.powers, form.causal) == FORM
    assert (width, part.v_width, heads) == (HEAD_WIDTH, VALUE_WIDTH, kv_heads * GROUP)
    assert q.stride(2) == 1
    assert rows.stride(1) == rows.shape[2]
    assert (cap is not None) == CAP
    assert q.dtype == part.k.dtype == part.v.dtype == o_grad.dtype
    assert not part.rings
    copies = sequences if part.shared else 1  # all sequences read the same keys: a storage for each, then the sum
    apart = torch.arange(sequences, device=q.device)[:, None] * part.shared
    k_grad = torch.zeros(copies, part.k.numel(), dtype=part.k.dtype, device=q.device)
    v_grad = torch.zeros(copies, part.v.numel(), dtype=part.v.dtype, device=q.device)
    chosen = blocks or BLOCKS[architecture(q.device), q.element_size()]
    token_stride, head_stride, _ = q.stride()
    tensors = (
        q, part.k, part.v, lse.contiguous(), delta, o_grad.contiguous(), k_grad, v_grad, rows, batch.offsets, batch.past,
        part.stored, part.base, part.k_begin, part.v_begin, (part.k_begin + apart * part.k.numel()).contiguous(),
        (part.v_begin + apart * part.v.numel()).contiguous(), scale.contiguous(),
    )  # fmt: skip
    numbers = (
        0.0 if cap is None else cap, sequences, kv_heads, token_stride, head_stride, part.k_stride, part.v_stride,
        rows.stride(0), part.k_begin.stride(0), part.v_begin.stride(0),
    )  # fmt: skip
    programs = -(-part.max_stored // chosen[1]) * sequences * kv_heads
    strides = token_stride | head_stride | part.k_stride | part.v_stride
    run(keys_kernel, programs, tensors, numbers, strides, (q.device, q.dtype, chosen), lambda: settings(*chosen))
    return (k_grad.sum(0), v_grad.sum(0)) if part.shared else (k_grad[0], v_grad[0])
