"""The backward pass of softmax attention for keys and values, on sm_90: what softmax_backward_keys.py in Triton computes.

A program takes a block of keys of one KV head and walks the query blocks that see it, for every query head of the group, so
each gradient is summed in one order: the same bits every time. Three parties work at once: one warp copies blocks of queries
and of results' gradients into shared memory (TMA) and lays each query's log-sum-exp and `delta` beside them; two groups of four
warps sum the gradients of half of the keys each in registers. Scores are formed transposed, keys by queries, so that weights
and the scores' gradients are operands as they lie in registers.

Rows behind a sequence's last query belong to someone else, and hold anything: they are overwritten with zeros before anyone
reads them. Rows behind its last key are read, and nothing of what they give is kept.
"""

import torch
import triton
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from attnc.codegen.gluon.names import tma_load
from attnc.codegen.gluon.skeletons.launching import architecture, packed_view, run, slots_view, width_of
from attnc.codegen.gluon.skeletons.producing import clear, stored_place
from attnc.codegen.gluon.skeletons.regrading import HALF, exponent, load_sums, product_grad
from attnc.codegen.gluon.skeletons.seeing import HIDDEN, keep, read_row, solid
from attnc.codegen.gluon.skeletons.seen import key_tile, query_block_of
from attnc.codegen.gluon.skeletons.tiles import barriers, next_slot
from attnc.codegen.gluon.skeletons.weighing import narrow

FORM = (1, 0, 0, True)  # how many near intervals, strides and powers a row holds, and whether the future is hidden
HEAD_WIDTH = 64  # of queries and keys
VALUE_WIDTH = 64
GROUP = 1  # query heads for each KV head
CAP = False
EXPONENT = None
BLOCKS = {  # (architecture, bytes of an element): queries, keys, warps, slots for queries, registers, EARLY
    ("sm_90", 2): (64, 128, 12, 3, 232, 0),
}

PIECE = 16384  # query rows of a program that shares first keys with others
MOST_PIECES = 16


@gluon.jit
def produce_queries(
    descriptors, ring, block, stats, raw, sums, batch, keys, k_place, v_place, pieces,
    ROW: gl.constexpr, GROUP: gl.constexpr, D: gl.constexpr, E: gl.constexpr, BLOCK_D: gl.constexpr, BLOCK_E: gl.constexpr,
    BLOCK_Q: gl.constexpr, BLOCK_K: gl.constexpr, SLOTS: gl.constexpr,
):  # fmt: skip
    """Copies what the other parties read. A fresh barrier counts as one whose last phase is over, so nobody waits at first."""
    LINE: gl.constexpr = gl.BlockedLayout([1], [32], [1], [0])
    q_desc, o_grad_desc, k_desc, v_desc = descriptors
    q_slots, grad_slots, q_full, grad_full, empty = ring
    k_block, v_block, keys_full = block
    lse, delta = sums
    k_begin, k_begin_stride, k_stride = k_place
    v_begin, v_begin_stride, v_stride = v_place
    kv_heads = batch[3]
    here, numbers, visits, shared_out, from_turn, to_turn = key_tile(batch, keys, pieces, ROW, GROUP, BLOCK_Q, BLOCK_K)
    sequence, group, piece, begin, slots, first_row, count, start, origin = here
    if begin < slots:
        k_row, k_head = stored_place(k_begin + sequence * k_begin_stride + group, k_stride, D)
        v_row, v_head = stored_place(v_begin + sequence * v_begin_stride + group, v_stride, E)
        mbarrier.expect(keys_full.index(0), 2 * k_desc.block_type.nbytes + 2 * v_desc.block_type.nbytes)
        for half in gl.static_range(2):
            tma_load(k_desc, [k_row + begin + half * HALF, k_head, 0], keys_full.index(0), k_block.index(half))
            tma_load(v_desc, [v_row + begin + half * HALF, v_head, 0], keys_full.index(0), v_block.index(half))
        slot = 0
        phase = 1
        raw_phase = 0
        for turn in range(from_turn, to_turn):
            head = group * GROUP + turn % GROUP
            query = query_block_of(visits, turn // GROUP, count, BLOCK_Q) * BLOCK_Q
            row = first_row + query
            mbarrier.wait(empty.index(slot), phase)
            if query + BLOCK_Q <= count:
                mbarrier.expect(q_full.index(slot), q_desc.block_type.nbytes)
                tma_load(q_desc, [row, head, 0], q_full.index(slot), q_slots.index(slot))
                mbarrier.expect(grad_full.index(slot), o_grad_desc.block_type.nbytes)
                tma_load(o_grad_desc, [row, head, 0], grad_full.index(slot), grad_slots.index(slot))
            else:
                mbarrier.expect(raw.index(0), q_desc.block_type.nbytes + o_grad_desc.block_type.nbytes)
                tma_load(q_desc, [row, head, 0], raw.index(0), q_slots.index(slot))
                tma_load(o_grad_desc, [row, head, 0], raw.index(0), grad_slots.index(slot))
                mbarrier.wait(raw.index(0), raw_phase)
                raw_phase ^= 1
                clear(q_slots.index(slot).reshape([BLOCK_Q, BLOCK_D]), 0, count - query, BLOCK_Q, BLOCK_D)
                clear(grad_slots.index(slot).reshape([BLOCK_Q, BLOCK_E]), 0, count - query, BLOCK_Q, BLOCK_E)
                fence_async_shared()
                mbarrier.arrive(q_full.index(slot), count=1)
                mbarrier.arrive(grad_full.index(slot), count=1)
            line = gl.arange(0, BLOCK_Q, layout=LINE)
            place = (row + line) * (kv_heads * GROUP) + head
            live = query + line < count
            stats.index(slot * 2).store(load_sums(lse, place, live))
            stats.index(slot * 2 + 1).store(gl.load(delta + place, mask=live, other=0.0))
            mbarrier.arrive(grad_full.index(slot), count=1)
            slot, phase = next_slot(slot, phase, SLOTS)


@gluon.jit
def consume_queries(
    half: gl.constexpr, ring, block, stats, k_results, v_results, batch, keys, pieces, scale, cap,
    ROW: gl.constexpr, GROUP: gl.constexpr, D: gl.constexpr, E: gl.constexpr, BLOCK_D: gl.constexpr, BLOCK_E: gl.constexpr,
    BLOCK_Q: gl.constexpr, BLOCK_K: gl.constexpr, SLOTS: gl.constexpr, EARLY: gl.constexpr,
):  # fmt: skip
    """Sums the gradients of one half of the keys. EARLY: the values' product starts before the scores' gradients are there."""
    SCORES: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_Q, 16])
    K_OUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_D, 16])
    V_OUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_E, 16])
    QUERIES: gl.constexpr = gl.SliceLayout(0, SCORES)
    q_slots, grad_slots, q_full, grad_full, empty = ring
    k_block, v_block, keys_full = block
    dtype: gl.constexpr = q_slots.dtype
    nothing = gl.zeros([HALF, BLOCK_Q], gl.float32, SCORES)
    here, numbers, visits, shared_out, from_turn, to_turn = key_tile(batch, keys, pieces, ROW, GROUP, BLOCK_Q, BLOCK_K)
    sequence, group, piece, begin, slots, first_row, count, start, origin = here
    if begin < slots:
        first = origin + begin + half * HALF
        k_sum = gl.zeros([HALF, BLOCK_D], gl.float32, K_OUT)
        v_sum = gl.zeros([HALF, BLOCK_E], gl.float32, V_OUT)
        k = k_block.index(half).reshape([HALF, BLOCK_D])
        v = v_block.index(half).reshape([HALF, BLOCK_E])
        slot = 0
        phase = 0
        mbarrier.wait(keys_full.index(0), 0)
        for turn in range(from_turn, to_turn):
            scale_here = gl.load(scale + group * GROUP + turn % GROUP)
            earliest = start + query_block_of(visits, turn // GROUP, count, BLOCK_Q) * BLOCK_Q
            q = q_slots.index(slot).reshape([BLOCK_Q, BLOCK_D])
            grad = grad_slots.index(slot).reshape([BLOCK_Q, BLOCK_E])
            mbarrier.wait(q_full.index(slot), phase)
            multiplying = warpgroup_mma(k, q.permute((1, 0)), nothing, use_acc=False, is_async=True)
            mbarrier.wait(grad_full.index(slot), phase)
            weighing = warpgroup_mma(v, grad.permute((1, 0)), nothing, use_acc=False, is_async=True)
            product = warpgroup_mma_wait(1, deps=[multiplying])
            sums = stats.index(slot * 2).load(QUERIES)
            power = exponent(product, scale_here, cap, sums[None, :])
            if not solid(numbers, earliest, earliest + BLOCK_Q - 1, first, first + HALF):
                i = earliest + gl.arange(0, BLOCK_Q, layout=QUERIES)
                j = first + gl.arange(0, HALF, layout=gl.SliceLayout(1, SCORES))
                power = gl.where(keep(numbers, i[None, :], j[:, None]), power, HIDDEN)
            weight = gl.exp2(power)
            if EARLY:
                p = narrow(weight, dtype, gl.DotOperandLayout(0, V_OUT, 2))
                adding_v = warpgroup_mma(p, grad, v_sum, is_async=True)
                weight_grad = warpgroup_mma_wait(1, deps=[weighing])
            else:
                weight_grad = warpgroup_mma_wait(0, deps=[weighing])
            shared = stats.index(slot * 2 + 1).load(QUERIES)
            change = product_grad(weight * (weight_grad - shared[None, :]), product, scale_here, cap)
            if not EARLY:
                p = narrow(weight, dtype, gl.DotOperandLayout(0, V_OUT, 2))
                adding_v = warpgroup_mma(p, grad, v_sum, is_async=True)
            s = narrow(change, dtype, gl.DotOperandLayout(0, K_OUT, 2))
            adding_k = warpgroup_mma(s, q, k_sum, is_async=True)
            v_sum, k_sum, p, s = warpgroup_mma_wait(
                0, deps=[adding_v, adding_k, p, s]
            )  # with p and s, whose registers are read
            mbarrier.arrive(empty.index(slot), count=1)
            slot, phase = next_slot(slot, phase, SLOTS)

        k_grad, k_pieces, k_grad_begin, k_stride = k_results
        v_grad, v_pieces, v_grad_begin, v_stride = v_results
        kv_heads = batch[3]
        own_k = gl.arange(0, HALF, layout=gl.SliceLayout(1, K_OUT))[:, None]
        own_v = gl.arange(0, HALF, layout=gl.SliceLayout(1, V_OUT))[:, None]
        d = gl.arange(0, BLOCK_D, layout=gl.SliceLayout(0, K_OUT))[None, :]
        e = gl.arange(0, BLOCK_E, layout=gl.SliceLayout(0, V_OUT))[None, :]
        if shared_out:
            part = (((sequence * kv_heads + group) * pieces + piece) * BLOCK_K + half * HALF).to(gl.int64)
            gl.store(k_pieces + (part * BLOCK_D + own_k * BLOCK_D + d), k_sum)
            gl.store(v_pieces + (part * BLOCK_E + own_v * BLOCK_E + e), v_sum)
        elif (begin > 0) | (piece == 0):
            ends = slots - begin - half * HALF
            line = (begin + half * HALF).to(gl.int64)
            k_there = k_grad + (gl.load(k_grad_begin + sequence * kv_heads + group) + line * k_stride)
            v_there = v_grad + (gl.load(v_grad_begin + sequence * kv_heads + group) + line * v_stride)
            gl.store(k_there + (own_k * k_stride + d), k_sum.to(dtype), mask=(own_k < ends) & (d < D))
            gl.store(v_there + (own_v * v_stride + e), v_sum.to(dtype), mask=(own_v < ends) & (e < E))


@gluon.jit(do_not_specialize=["sequences", "kv_heads", "pieces", "k_stride", "v_stride", "row_stride", "k_begin_stride",
                              "v_begin_stride", "cap"])  # fmt: skip
def keys_kernel(
    q_desc, o_grad_desc, k_desc, v_desc, lse, delta, k_grad, v_grad, k_pieces, v_pieces, rows, offsets, past, stored, base,
    k_begin, v_begin, k_grad_begin, v_grad_begin, scale, cap, sequences, kv_heads, pieces, k_stride, v_stride, row_stride,
    k_begin_stride, v_begin_stride,
    ROW: gl.constexpr, GROUP: gl.constexpr, D: gl.constexpr, E: gl.constexpr, BLOCK_D: gl.constexpr, BLOCK_E: gl.constexpr,
    BLOCK_Q: gl.constexpr, BLOCK_K: gl.constexpr, SLOTS: gl.constexpr, EARLY: gl.constexpr, REGISTERS: gl.constexpr,
):  # fmt: skip
    dtype: gl.constexpr = q_desc.dtype
    q_slots = gl.allocate_shared_memory(dtype, [SLOTS, BLOCK_Q, 1, BLOCK_D], q_desc.layout)
    grad_slots = gl.allocate_shared_memory(dtype, [SLOTS, BLOCK_Q, 1, BLOCK_E], o_grad_desc.layout)
    k_block = gl.allocate_shared_memory(dtype, [2, HALF, 1, BLOCK_D], k_desc.layout)
    v_block = gl.allocate_shared_memory(dtype, [2, HALF, 1, BLOCK_E], v_desc.layout)
    stats = gl.allocate_shared_memory(gl.float32, [SLOTS * 2, BLOCK_Q], gl.SwizzledSharedLayout(1, 1, 1, [0]))
    q_full, empty = barriers(SLOTS, 1, 2)
    grad_full = barriers(SLOTS, 2, 1)[0]  # the copy, and what lies beside it
    keys_full, raw = barriers(1, 1, 1)
    fence_async_shared()
    descriptors = (q_desc, o_grad_desc, k_desc, v_desc)
    ring = (q_slots, grad_slots, q_full, grad_full, empty)
    block = (k_block, v_block, keys_full)
    batch = (offsets, past, sequences, kv_heads)
    keys = (rows, row_stride, stored, base)
    k_results = (k_grad, k_pieces, k_grad_begin, k_stride)
    v_results = (v_grad, v_pieces, v_grad_begin, v_stride)
    k_place = (k_begin, k_begin_stride, k_stride)
    v_place = (v_begin, v_begin_stride, v_stride)
    gl.warp_specialize([
        (consume_queries, (
            0, ring, block, stats, k_results, v_results, batch, keys, pieces, scale, cap, ROW, GROUP, D, E, BLOCK_D, BLOCK_E,
            BLOCK_Q, BLOCK_K, SLOTS, EARLY,
        )),
        (consume_queries, (
            1, ring, block, stats, k_results, v_results, batch, keys, pieces, scale, cap, ROW, GROUP, D, E, BLOCK_D, BLOCK_E,
            BLOCK_Q, BLOCK_K, SLOTS, EARLY,
        )),
        (produce_queries, (
            descriptors, ring, block, stats, raw, (lse, delta), batch, keys, k_place, v_place, pieces, ROW, GROUP, D, E,
            BLOCK_D, BLOCK_E, BLOCK_Q, BLOCK_K, SLOTS,
        )),
    ], [4, 1], [REGISTERS, 504 - 2 * REGISTERS])  # fmt: skip


@gluon.jit(do_not_specialize=["kv_heads", "pieces", "k_stride", "v_stride", "row_stride"])
def join_kernel(
    k_grad, v_grad, k_pieces, v_pieces, rows, stored, base, k_grad_begin, v_grad_begin, kv_heads, pieces, k_stride, v_stride,
    row_stride,
    ROW: gl.constexpr, D: gl.constexpr, E: gl.constexpr, BLOCK_D: gl.constexpr, BLOCK_E: gl.constexpr, BLOCK_K: gl.constexpr,
):  # fmt: skip
    """Adds what the pieces of the first keys found."""
    LAYOUT: gl.constexpr = gl.BlockedLayout([1, 4], [2, 16], [8, 1], [1, 0])
    sequence = gl.program_id(0) // kv_heads
    group = gl.program_id(0) % kv_heads
    numbers = read_row(rows + sequence * row_stride + group * ROW)
    seen = gl.load(base + sequence) < numbers[0]
    own = gl.arange(0, BLOCK_K, layout=gl.SliceLayout(1, LAYOUT))[:, None]
    d = gl.arange(0, BLOCK_D, layout=gl.SliceLayout(0, LAYOUT))[None, :]
    e = gl.arange(0, BLOCK_E, layout=gl.SliceLayout(0, LAYOUT))[None, :]
    first = (sequence * kv_heads + group).to(gl.int64) * pieces * BLOCK_K
    count = gl.where(seen, pieces, 0)
    stays = own < gl.where(seen, gl.load(stored + sequence), 0)
    k_sum = gl.zeros([BLOCK_K, BLOCK_D], gl.float32, LAYOUT)
    for piece in range(count):
        k_sum += gl.load(k_pieces + (first + piece * BLOCK_K) * BLOCK_D + (own * BLOCK_D + d))
    k_there = k_grad + gl.load(k_grad_begin + sequence * kv_heads + group)
    gl.store(k_there + (own * k_stride + d), k_sum.to(k_grad.dtype.element_ty), mask=stays & (d < D))
    v_sum = gl.zeros([BLOCK_K, BLOCK_E], gl.float32, LAYOUT)
    for piece in range(count):
        v_sum += gl.load(v_pieces + (first + piece * BLOCK_K) * BLOCK_E + (own * BLOCK_E + e))
    v_there = v_grad + gl.load(v_grad_begin + sequence * kv_heads + group)
    gl.store(v_there + (own * v_stride + e), v_sum.to(v_grad.dtype.element_ty), mask=stays & (e < E))


def settings(queries, keys, warps, slots, registers, early):
    """The compile-time arguments of `keys_kernel` and of `join_kernel`."""
    nears, strides, powers, _ = FORM
    common = {
        "ROW": 1 + 4 * nears + strides + powers,
        "D": HEAD_WIDTH,
        "E": VALUE_WIDTH,
        "BLOCK_D": width_of(HEAD_WIDTH),
        "BLOCK_E": width_of(VALUE_WIDTH),
        "BLOCK_K": keys,
        "num_warps": 4,
        "num_stages": 1,
        "enable_fp_fusion": True,
    }
    walking = {"GROUP": GROUP, "BLOCK_Q": queries, "SLOTS": slots, "EARLY": bool(early), "REGISTERS": registers}
    return {**common, **walking}, {**common, "num_warps": 8}


def descriptors(constants):
    """Of queries, results' gradients, keys and values: name -> rows and columns of a block; `join_kernel` takes none."""
    if "BLOCK_Q" not in constants:
        return {}
    d, e, queries = width_of(HEAD_WIDTH), width_of(VALUE_WIDTH), constants["BLOCK_Q"]
    return {"q_desc": (queries, d), "o_grad_desc": (queries, e), "k_desc": (64, d), "v_desc": (64, e)}


def variants(architecture, element_size):
    """Every kernel that `attend_backward_keys` may launch, with its compile-time arguments."""
    if (architecture, element_size) not in BLOCKS:
        return ()
    walking, joining = settings(*BLOCKS[architecture, element_size])
    return ((keys_kernel, walking), (join_kernel, joining))


def attend_backward_keys(q, part, rows, form, batch, scale, cap, lse, delta, o_grad, *, blocks=None):
    """The gradients of the keys and values of `attend`; arguments and results as of the function in Triton.

    q, k, v: bfloat16 or float16, of widths that are multiples of 8, up to 128.
    """
    _, heads, width = q.shape
    sequences, kv_heads, _ = rows.shape
    assert (form.nears, form.strides, form.powers, form.causal) == FORM
    assert (width, part.v_width, heads) == (HEAD_WIDTH, VALUE_WIDTH, kv_heads * GROUP)
    assert rows.stride(1) == rows.shape[2]
    assert (cap is not None) == CAP
    assert q.dtype == part.k.dtype == part.v.dtype == o_grad.dtype
    assert not part.rings
    copies = sequences if part.shared else 1  # all sequences read the same keys: a storage for each, then the sum
    apart = torch.arange(sequences, device=q.device)[:, None] * part.shared
    k_grad = torch.zeros(copies, part.k.numel(), dtype=part.k.dtype, device=q.device)
    v_grad = torch.zeros(copies, part.v.numel(), dtype=part.v.dtype, device=q.device)
    chosen = blocks or BLOCKS[architecture(q.device), q.element_size()]
    walking, joining = settings(*chosen)
    pieces = max(1, min(MOST_PIECES, triton.cdiv(batch.max_new * GROUP, PIECE)))
    shared = sequences * kv_heads * chosen[1] * pieces if pieces > 1 else 0
    k_pieces = torch.empty(shared * joining["BLOCK_D"], dtype=torch.float32, device=q.device)
    v_pieces = torch.empty(shared * joining["BLOCK_E"], dtype=torch.float32, device=q.device)
    k_grad_begin = (part.k_begin + apart * part.k.numel()).contiguous()
    v_grad_begin = (part.v_begin + apart * part.v.numel()).contiguous()
    q_block, o_grad_block, k_block, v_block = descriptors(walking).values()
    views = (
        packed_view(q, *q_block),
        packed_view(o_grad, *o_grad_block),
        slots_view(part.k, part.k_stride, HEAD_WIDTH, *k_block),
        slots_view(part.v, part.v_stride, VALUE_WIDTH, *v_block),
    )
    tensors = (
        lse.contiguous(), delta, k_grad, v_grad, k_pieces, v_pieces, rows, batch.offsets, batch.past, part.stored, part.base,
        part.k_begin, part.v_begin, k_grad_begin, v_grad_begin, scale.contiguous(),
    )  # fmt: skip
    numbers = (
        0.0 if cap is None else cap, sequences, kv_heads, pieces, part.k_stride, part.v_stride, rows.stride(0),
        part.k_begin.stride(0), part.v_begin.stride(0),
    )  # fmt: skip
    programs = (triton.cdiv(part.max_stored, chosen[1]) + pieces - 1) * sequences * kv_heads
    if programs and len(q):
        run(keys_kernel, programs, views, tensors, numbers, (q.device, q.dtype, chosen), lambda: walking)
    if pieces > 1:
        tensors = k_grad, v_grad, k_pieces, v_pieces, rows, part.stored, part.base, k_grad_begin, v_grad_begin
        join_kernel[(sequences * kv_heads,)](
            *tensors, kv_heads, pieces, part.k_stride, part.v_stride, rows.stride(0), **joining
        )
    return (k_grad.sum(0), v_grad.sum(0)) if part.shared else (k_grad[0], v_grad[0])
