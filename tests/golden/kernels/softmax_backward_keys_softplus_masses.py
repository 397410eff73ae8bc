"""The backward pass of softmax attention over key intervals, for keys and values: one program for a block of keys of a KV head.

It walks the query blocks that see its keys, each at most once, for every query head of the group, so that each gradient is
summed in one order by one program: the same bits every time. Only the first keys, where every query of a long sequence sees
them, are shared out among programs, and `join_kernel` adds what these found. Scores are formed transposed, keys by queries.
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
    ("sm_80", 2): (32, 32, 4, 2),
    ("sm_90", 2): (32, 32, 4, 2),
    ("sm_100", 2): (32, 64, 8, 2),
    ("gfx942", 2): (32, 64, 4, 2),
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
SHARE = 16384  # query rows of a program that shares first keys with others
MOST_PIECES = 16


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
def solid(numbers, first, last, begin, end):
    """Whether all queries first..last see all keys from begin up to, not including, end."""
    whole = end <= numbers[0]
    whole |= (begin >= lower(numbers, last)) & (end <= upper(numbers, first))
    return whole & (end <= horizon(first))


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
    """The factor of a query's logits, the logarithm of its number of keys, and that number over the sum of its masses."""
    here = scale + place * 3
    return tl.load(here, mask=live, other=0.0), tl.load(here + 1, mask=live, other=0.0), tl.load(here + 2, mask=live, other=0.0)


@triton.jit
def load_sums(sums, place, live):
    """Nothing of it is needed."""
    return 0.0


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


@triton.jit(do_not_specialize=["sequences", "kv_heads", "pieces", "row_stride", "k_begin_stride", "v_begin_stride"])
def keys_kernel(
    q, k, v, lse, delta, o_grad, k_grad, v_grad, k_pieces, v_pieces, rows, offsets, past, stored, base, k_begin, v_begin,
    k_grad_begin, v_grad_begin, scale, cap, sequences, kv_heads, pieces, q_token_stride, q_head_stride, k_stride, v_stride,
    k_grad_stride, v_grad_stride, row_stride, k_begin_stride, v_begin_stride,
    ROW: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr, E: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    SUMS_APART: tl.constexpr = q.dtype.element_ty == tl.float32
    # The first keys, which most queries see, first, and their pieces before all.
    program = tl.program_id(0)
    group = program % kv_heads
    sequence = program // kv_heads % sequences
    piece = tl.minimum(program // (kv_heads * sequences), pieces - 1)
    begin = (program // (kv_heads * sequences) - piece) * BLOCK_K
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
    own = tl.arange(0, BLOCK_K)[:, None]
    there = (slot < slots)[:, None]
    k_there = k + (tl.load(k_begin + sequence * k_begin_stride + group) + begin.to(tl.int64) * k_stride)
    v_there = v + (tl.load(v_begin + sequence * v_begin_stride + group) + begin.to(tl.int64) * v_stride)
    key = tl.load(k_there + (own * k_stride + d), mask=there & (d < D), other=0.0)
    value = tl.load(v_there + (own * v_stride + e), mask=there & (e < E), other=0.0)
    j = tl.where(slot < slots, base_here + slot, NOWHERE)[:, None]

    first = base_here + begin
    last = base_here + tl.minimum(slots, begin + BLOCK_K) - 1
    visits = visit_queries(numbers, first, last, start, count, BLOCK_Q)
    shared_out = (pieces > 1) & (begin == 0) & (first < numbers[0])
    turns = tl.where(shared_out | (begin > 0) | (piece == 0), visits[-1] * GROUP, 0)
    from_turn = tl.where(shared_out, turns * piece // pieces, 0)
    to_turn = tl.where(shared_out, turns * (piece + 1) // pieces, turns)
    k_acc = tl.zeros([BLOCK_K, BLOCK_D], tl.float32)
    v_acc = tl.zeros([BLOCK_K, BLOCK_E], tl.float32)
    for turn in tl.range(from_turn, to_turn):
        head = group * GROUP + turn % GROUP
        block = query_block_of(visits, turn // GROUP, count, BLOCK_Q)
        token = block * BLOCK_Q + tl.arange(0, BLOCK_Q)
        live = token < count
        row = token_begin + token
        place = row * (kv_heads * GROUP) + head
        query = tl.load(q + (row * q_token_stride + head * q_head_stride)[:, None] + d, mask=live[:, None] & (d < D), other=0.0)
        grad = tl.load(o_grad + place[:, None] * E + e, mask=live[:, None] & (e < E), other=0.0)
        sums = load_sums(lse, place[None, :], live[None, :])
        shared = tl.load(delta + place, mask=live, other=0.0)[None, :]
        scale_here = read_scale(scale, head, place[None, :], live[None, :])
        product = tl.dot(key, tl.trans(query), input_precision="ieee")
        weight_grad = tl.dot(value, tl.trans(grad), input_precision="ieee")
        power = exponent(product, scale_here, cap, sums)
        earliest = start + block * BLOCK_Q
        whole = solid(numbers, earliest, earliest + BLOCK_Q - 1, first, first + BLOCK_K) & (begin + BLOCK_K <= slots)
        if not whole:
            power = tl.where(keep(numbers, (start + token)[None, :], j), power, HIDDEN)
        weight = weight_of(power, sums)
        change = product_grad(weight * (weight_grad - shared), product, scale_here, cap)
        if SUMS_APART:  # an accumulator of tl.dot would take one product after the other
            v_acc = tl.fma(tl.dot(weight, grad, input_precision="ieee"), 1.0, v_acc)
            k_acc = tl.fma(tl.dot(change, query, input_precision="ieee"), 1.0, k_acc)
        else:
            v_acc = tl.dot(weight.to(grad.dtype), grad, v_acc)
            k_acc = tl.dot(change.to(query.dtype), query, k_acc)

    if shared_out:
        parts = ((sequence * kv_heads + group) * pieces + piece).to(tl.int64) * BLOCK_K
        tl.store(k_pieces + (parts * BLOCK_D + own * BLOCK_D + d), k_acc)
        tl.store(v_pieces + (parts * BLOCK_E + own * BLOCK_E + e), v_acc)
    # Strides and a mask of their own, so that no address of above stays in a register all the while.
    ends = tl.where(shared_out | ((begin == 0) & (piece > 0)), 0, slots - begin)
    k_there = k_grad + (tl.load(k_grad_begin + sequence * kv_heads + group) + begin.to(tl.int64) * k_grad_stride)
    v_there = v_grad + (tl.load(v_grad_begin + sequence * kv_heads + group) + begin.to(tl.int64) * v_grad_stride)
    tl.store(k_there + (own * k_grad_stride + d), k_acc.to(k_grad.dtype.element_ty), mask=(own < ends) & (d < D))
    tl.store(v_there + (own * v_grad_stride + e), v_acc.to(v_grad.dtype.element_ty), mask=(own < ends) & (e < E))


@triton.jit(do_not_specialize=["kv_heads", "pieces", "row_stride"])
def join_kernel(
    k_grad, v_grad, k_pieces, v_pieces, rows, stored, base, k_grad_begin, v_grad_begin, kv_heads, pieces, k_grad_stride,
    v_grad_stride, row_stride,
    ROW: tl.constexpr, D: tl.constexpr, E: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    sequence = tl.program_id(0) // kv_heads
    group = tl.program_id(0) % kv_heads
    numbers = read_row(rows + sequence * row_stride + group * ROW)
    seen = tl.load(base + sequence) < numbers[0]
    own = tl.arange(0, BLOCK_K)[:, None]
    d = tl.arange(0, BLOCK_D)[None, :]
    e = tl.arange(0, BLOCK_E)[None, :]
    k_acc = tl.zeros([BLOCK_K, BLOCK_D], tl.float32)
    v_acc = tl.zeros([BLOCK_K, BLOCK_E], tl.float32)
    for piece in tl.range(0, tl.where(seen, pieces, 0)):
        parts = ((sequence * kv_heads + group) * pieces + piece).to(tl.int64) * BLOCK_K
        k_acc += tl.load(k_pieces + (parts * BLOCK_D + own * BLOCK_D + d))
        v_acc += tl.load(v_pieces + (parts * BLOCK_E + own * BLOCK_E + e))
    stays = own < tl.where(seen, tl.load(stored + sequence), 0)
    k_there = k_grad + tl.load(k_grad_begin + sequence * kv_heads + group)
    v_there = v_grad + tl.load(v_grad_begin + sequence * kv_heads + group)
    tl.store(k_there + (own * k_grad_stride + d), k_acc.to(k_grad.dtype.element_ty), mask=stays & (d < D))
    tl.store(v_there + (own * v_grad_stride + e), v_acc.to(v_grad.dtype.element_ty), mask=stays & (e < E))


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
    """The compile-time arguments of `keys_kernel` and of `join_kernel`."""
    nears, strides, powers, _ = FORM
    common = {
        "ROW": 1 + 4 * nears + strides + powers,
        "D": HEAD_WIDTH,
        "E": VALUE_WIDTH,
        "BLOCK_D": max(16, triton.next_power_of_2(HEAD_WIDTH)),
        "BLOCK_E": max(16, triton.next_power_of_2(VALUE_WIDTH)),
        "BLOCK_K": block_k,
        "num_warps": warps,
        "num_stages": stages,
        "enable_fp_fusion": True,
    }
    return {**common, "GROUP": GROUP, "BLOCK_Q": block_q}, common


def variants(architecture, element_size):
    """Every kernel that `attend_backward_keys` may launch, with its compile-time arguments."""
    walking, joining = settings(*BLOCKS[architecture, element_size])
    return ((keys_kernel, walking), (join_kernel, joining))


def attend_backward_keys(q, part, rows, form, batch, scale, cap, lse, delta, o_grad, *, blocks=None):
    """The gradients of the keys and values of `attend` (softmax_prefill), whose arguments and log-sum-exp it takes.

    part: a KeyPart without rings; delta [T, H] fp32, from the queries' backward pass; o_grad [T, H, E];
    blocks = (queries, keys, warps, stages) instead of the table's.
    Returns k_grad and v_grad, flat as part.k and part.v; zeros where no sequence of the part has a slot.
    """
    _, heads, width = q.shape
    sequences, kv_heads, row_numbers = rows.shape
    assert (form.nears, form.strides, form.powers, form.causal) == FORM
    assert (width, part.v_width, heads) == (HEAD_WIDTH, VALUE_WIDTH, kv_heads * GROUP)
    token_stride, head_stride, dense = q.stride()
    row_stride, head_row, _ = rows.stride()
    assert (dense, head_row) == (1, row_numbers)
    assert (cap is not None) == CAP
    assert q.dtype == part.k.dtype == part.v.dtype == o_grad.dtype
    assert not part.rings
    copies = sequences if part.shared else 1  # all sequences read the same keys: a storage for each, then the sum
    apart = torch.arange(sequences, device=q.device)[:, None] * part.shared
    k_grad = torch.zeros(copies, part.k.numel(), dtype=part.k.dtype, device=q.device)
    v_grad = torch.zeros(copies, part.v.numel(), dtype=part.v.dtype, device=q.device)
    chosen = blocks or BLOCKS[architecture(q.device), q.element_size()]
    walking, joining = settings(*chosen)
    pieces = max(1, min(MOST_PIECES, -(-batch.max_new * GROUP // SHARE)))
    shared = sequences * kv_heads * chosen[1] * pieces if pieces > 1 else 0
    k_pieces = torch.empty(shared * joining["BLOCK_D"], dtype=torch.float32, device=q.device)
    v_pieces = torch.empty(shared * joining["BLOCK_E"], dtype=torch.float32, device=q.device)
    k_grad_begin = (part.k_begin + apart * part.k.numel()).contiguous()
    v_grad_begin = (part.v_begin + apart * part.v.numel()).contiguous()
    tensors = (
        q, part.k, part.v, lse.contiguous(), delta, o_grad.contiguous(), k_grad, v_grad, k_pieces, v_pieces, rows,
        batch.offsets, batch.past, part.stored, part.base, part.k_begin, part.v_begin, k_grad_begin, v_grad_begin,
        scale.contiguous(),
    )  # fmt: skip
    numbers = (
        0.0 if cap is None else cap, sequences, kv_heads, pieces, token_stride, head_stride, part.k_stride, part.v_stride,
        part.k_stride, part.v_stride, row_stride, part.k_begin.stride(0), part.v_begin.stride(0),
    )  # fmt: skip
    programs = (-(-part.max_stored // chosen[1]) + pieces - 1) * sequences * kv_heads
    strides = token_stride | head_stride | part.k_stride | part.v_stride
    key = q.device, q.dtype, chosen
    run(keys_kernel, programs, tensors, numbers, strides, key, lambda: walking)
    if pieces > 1:
        tensors = k_grad, v_grad, k_pieces, v_pieces, rows, part.stored, part.base, k_grad_begin, v_grad_begin
        numbers = kv_heads, pieces, part.k_stride, part.v_stride, row_stride
        strides = part.k_stride | part.v_stride
        run(join_kernel, sequences * kv_heads, tensors, numbers, strides, (*key, "join"), lambda: joining)
    return (k_grad.sum(0), v_grad.sum(0)) if part.shared else (k_grad[0], v_grad[0])
