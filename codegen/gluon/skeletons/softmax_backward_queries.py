"""The backward pass of softmax attention for queries, on sm_90: what softmax_backward_queries.py in Triton computes.

A program stays on its multiprocessor and walks tiles: 128 queries of one head each, those that see most first. Three parties
work at once: one warp copies queries, results' gradients, keys and values into shared memory (TMA), and two groups of four
warps each sum the gradients of 64 queries in registers. What they tell each other by barriers is said in softmax_prefill.py.

It also leaves `delta`, which the pass for keys reads: of each query the sum of o o_grad, less the log-sum-exp's gradient.

Rows behind a sequence's last key belong to someone else, and hold anything: scores against them are hidden, and they are
overwritten with zeros before anyone reads them.
"""

import torch
import triton
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from attnc.codegen.gluon.names import block_barrier, tma_load, tma_store
from attnc.codegen.gluon.skeletons.launching import architecture, packed_view, run, slots_view, width_of
from attnc.codegen.gluon.skeletons.producing import clear, stored_place
from attnc.codegen.gluon.skeletons.regrading import HALF, exponent, load_sums, product_grad
from attnc.codegen.gluon.skeletons.seeing import HIDDEN, NOWHERE, keep, key_begin, read_row, solid, visit
from attnc.codegen.gluon.skeletons.tiles import barriers, next_slot, tile
from attnc.codegen.gluon.skeletons.weighing import narrow

FORM = (1, 0, 0, True)  # how many near intervals, strides and powers a row holds, and whether the future is hidden
HEAD_WIDTH = 64  # of queries and keys
VALUE_WIDTH = 64
GROUP = 1  # query heads for each KV head
CAP = False
EXPONENT = None
BLOCKS = {  # (architecture, bytes of an element): queries, keys, warps, slots for keys, for tiles of queries, registers
    ("sm_90", 2): (128, 128, 12, 2, 2, 232),
}

PROCESSORS = {}  # device -> how many multiprocessors it has


@gluon.jit
def produce_keys(
    descriptors, q_ring, k_ring, v_ring, raw, batch, keys, k_place, v_place,
    ROW: gl.constexpr, GROUP: gl.constexpr, D: gl.constexpr, E: gl.constexpr, BLOCK_D: gl.constexpr, BLOCK_E: gl.constexpr,
    BLOCK_Q: gl.constexpr, BLOCK_K: gl.constexpr, SLOTS: gl.constexpr, Q_SLOTS: gl.constexpr,
):  # fmt: skip
    """Copies what the other parties read. A fresh barrier counts as one whose last phase is over, so nobody waits at first."""
    q_desc, o_grad_desc, k_desc, v_desc = descriptors
    q_slots, grad_slots, q_full, q_empty = q_ring
    k_slots, k_full, k_empty = k_ring
    v_slots, v_full, v_empty = v_ring
    tiles = batch[5]
    rows, row_stride, stored, base, pinned, ring = keys
    k_begin, k_begin_stride, k_stride = k_place
    v_begin, v_begin_stride, v_stride = v_place
    slot = 0
    phase = 1
    q_slot = 0
    q_phase = 1
    raw_phase = 0
    for t in range(gl.program_id(0), tiles, gl.num_programs(0)):
        sequence, group, head, row, query, count, start, slots = tile(t, batch, keys, GROUP, BLOCK_Q)
        if query < count:
            for half in gl.static_range(2):
                place = q_slot * 2 + half
                mbarrier.wait(q_empty.index(place), q_phase)
                mbarrier.expect(q_full.index(place), q_desc.block_type.nbytes + o_grad_desc.block_type.nbytes)
                tma_load(q_desc, [row + half * HALF, head, 0], q_full.index(place), q_slots.index(place))
                tma_load(o_grad_desc, [row + half * HALF, head, 0], q_full.index(place), grad_slots.index(place))
            q_slot, q_phase = next_slot(q_slot, q_phase, Q_SLOTS)
            numbers = read_row(rows + sequence * row_stride + group * ROW)
            base_here = gl.load(base + sequence)
            k_row, k_head = stored_place(k_begin + sequence * k_begin_stride + group, k_stride, D)
            v_row, v_head = stored_place(v_begin + sequence * v_begin_stride + group, v_stride, E)
            last = start + gl.minimum(count, query + BLOCK_Q) - 1
            visits = visit(numbers, start + query, last, base_here, slots, False, BLOCK_K)
            for step in range(gl.maximum(visits[-1], 1)):
                begin = key_begin(visits, step, base_here, slots, BLOCK_K)
                begin = gl.where(begin < slots, begin, 0)  # where there is nothing, anything
                mbarrier.wait(k_empty.index(slot), phase)
                mbarrier.wait(v_empty.index(slot), phase)
                if begin + BLOCK_K <= slots:
                    mbarrier.expect(k_full.index(slot), k_desc.block_type.nbytes)
                    tma_load(k_desc, [k_row + begin, k_head, 0], k_full.index(slot), k_slots.index(slot))
                    mbarrier.expect(v_full.index(slot), v_desc.block_type.nbytes)
                    tma_load(v_desc, [v_row + begin, v_head, 0], v_full.index(slot), v_slots.index(slot))
                else:
                    mbarrier.expect(raw.index(0), k_desc.block_type.nbytes + v_desc.block_type.nbytes)
                    tma_load(k_desc, [k_row + begin, k_head, 0], raw.index(0), k_slots.index(slot))
                    tma_load(v_desc, [v_row + begin, v_head, 0], raw.index(0), v_slots.index(slot))
                    mbarrier.wait(raw.index(0), raw_phase)
                    raw_phase ^= 1
                    clear(k_slots.index(slot).reshape([BLOCK_K, BLOCK_D]), 0, slots - begin, BLOCK_K, BLOCK_D)
                    clear(v_slots.index(slot).reshape([BLOCK_K, BLOCK_E]), 0, slots - begin, BLOCK_K, BLOCK_E)
                    fence_async_shared()
                    mbarrier.arrive(k_full.index(slot), count=1)
                    mbarrier.arrive(v_full.index(slot), count=1)
                slot, phase = next_slot(slot, phase, SLOTS)


@gluon.jit
def share_of(o, grad, lse_grad, delta, row, live_lines, heads, head, E: gl.constexpr, BLOCK_E: gl.constexpr):
    """`delta` of 64 queries of a head, from row `row` on, of which `live_lines` are there; it is stored, too."""
    COLUMNS: gl.constexpr = BLOCK_E // 8
    LAYOUT: gl.constexpr = gl.BlockedLayout([1, 8], [32 // COLUMNS, COLUMNS], [4, 1], [1, 0])
    line = gl.arange(0, HALF, layout=gl.SliceLayout(1, LAYOUT))
    e = gl.arange(0, BLOCK_E, layout=gl.SliceLayout(0, LAYOUT))
    place = (row + line) * heads + head
    live = line < live_lines
    there = live[:, None] & (e < E)[None, :]
    result = gl.load(o + place.to(gl.int64)[:, None] * E + e[None, :], mask=there, other=0.0)
    product = result.to(gl.float32) * grad.load(LAYOUT).to(gl.float32)
    shared = gl.sum(gl.where(there, product, 0.0), 1) - gl.load(lse_grad + place, mask=live, other=0.0)
    gl.store(delta + place, shared, mask=live)
    return shared


@gluon.jit
def weights(
    product, sums, scale, cap, numbers, first, begin, base, slots, BLOCK_K: gl.constexpr, SCORES: gl.constexpr
):  # fmt: skip
    """Of the keys from slot `begin` on, for the queries from `first` on; 0 where a key is not seen."""
    power = exponent(product, scale, cap, sums[:, None])
    whole = solid(numbers, first, first + HALF - 1, base + begin, base + begin + BLOCK_K)
    if not (whole & (begin + BLOCK_K <= slots)):
        i = first + gl.arange(0, HALF, layout=gl.SliceLayout(1, SCORES))
        key = begin + gl.arange(0, BLOCK_K, layout=gl.SliceLayout(0, SCORES))
        j = gl.where(key < slots, base + key, NOWHERE)
        power = gl.where(keep(numbers, i[:, None], j[None, :]), power, HIDDEN)
    return gl.exp2(power)


@gluon.jit
def consume_keys(
    half: gl.constexpr, q_grad_desc, q_ring, k_ring, v_ring, results, gradients, batch, keys, scale, cap,
    ROW: gl.constexpr, GROUP: gl.constexpr, D: gl.constexpr, E: gl.constexpr, BLOCK_D: gl.constexpr, BLOCK_E: gl.constexpr,
    BLOCK_Q: gl.constexpr, BLOCK_K: gl.constexpr, SLOTS: gl.constexpr, Q_SLOTS: gl.constexpr,
):  # fmt: skip
    """Sums the gradients of one half of each tile's queries. A block's are added while the next one's scores are multiplied."""
    SCORES: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_K, 16])
    OUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_D, 16])
    OPERAND: gl.constexpr = gl.DotOperandLayout(0, OUT, 2)
    LINES: gl.constexpr = gl.SliceLayout(1, SCORES)
    q_slots, grad_slots, q_full, q_empty = q_ring
    k_slots, k_full, k_empty = k_ring
    v_slots, v_full, v_empty = v_ring
    o, lse = results
    lse_grad, q_grad, delta = gradients
    kv_heads = batch[3]
    tiles = batch[5]
    rows, row_stride, stored, base, pinned, ring = keys
    dtype: gl.constexpr = q_slots.dtype
    nothing = gl.zeros([HALF, BLOCK_K], gl.float32, SCORES)
    slot = 0
    phase = 0
    q_slot = 0
    q_phase = 0
    for t in range(gl.program_id(0), tiles, gl.num_programs(0)):
        sequence, group, head, row, query, count, start, slots = tile(t, batch, keys, GROUP, BLOCK_Q)
        if query < count:
            numbers = read_row(rows + sequence * row_stride + group * ROW)
            base_here = gl.load(base + sequence)
            scale_here = gl.load(scale + head)
            first = start + query + half * HALF
            last = start + gl.minimum(count, query + BLOCK_Q) - 1
            visits = visit(numbers, start + query, last, base_here, slots, False, BLOCK_K)
            place = q_slot * 2 + half
            own_row = row + half * HALF
            left = count - query - half * HALF  # queries of this half that are there
            line = gl.arange(0, HALF, layout=LINES)
            sums = load_sums(lse, (own_row + line) * (kv_heads * GROUP) + head, line < left)
            q = q_slots.index(place).reshape([HALF, BLOCK_D])
            grad = grad_slots.index(place).reshape([HALF, BLOCK_E])
            mbarrier.wait(q_full.index(place), q_phase)
            q_slot, q_phase = next_slot(q_slot, q_phase, Q_SLOTS)
            shared = share_of(o, grad, lse_grad, delta, own_row, left, kv_heads * GROUP, head, E, BLOCK_E)
            shared = gl.convert_layout(shared, LINES)
            q_sum = gl.zeros([HALF, BLOCK_D], gl.float32, OUT)

            k = k_slots.index(slot).reshape([BLOCK_K, BLOCK_D])
            v = v_slots.index(slot).reshape([BLOCK_K, BLOCK_E])
            mbarrier.wait(k_full.index(slot), phase)
            multiplying = warpgroup_mma(q, k.permute((1, 0)), nothing, use_acc=False, is_async=True)
            mbarrier.wait(v_full.index(slot), phase)
            weighing = warpgroup_mma(grad, v.permute((1, 0)), nothing, use_acc=False, is_async=True)
            product = warpgroup_mma_wait(1, deps=[multiplying])
            begin = key_begin(visits, 0, base_here, slots, BLOCK_K)
            weight = weights(product, sums, scale_here, cap, numbers, first, begin, base_here, slots, BLOCK_K, SCORES)
            weight_grad = warpgroup_mma_wait(0, deps=[weighing])
            mbarrier.arrive(v_empty.index(slot), count=1)
            change = product_grad(weight * (weight_grad - shared[:, None]), product, scale_here, cap)
            s = narrow(change, dtype, OPERAND)
            for step in range(1, gl.maximum(visits[-1], 1)):
                k_slot = slot
                slot, phase = next_slot(slot, phase, SLOTS)
                k_next = k_slots.index(slot).reshape([BLOCK_K, BLOCK_D])
                v = v_slots.index(slot).reshape([BLOCK_K, BLOCK_E])
                mbarrier.wait(k_full.index(slot), phase)
                multiplying = warpgroup_mma(q, k_next.permute((1, 0)), nothing, use_acc=False, is_async=True)
                mbarrier.wait(v_full.index(slot), phase)
                weighing = warpgroup_mma(grad, v.permute((1, 0)), nothing, use_acc=False, is_async=True)
                k = k_slots.index(k_slot).reshape([BLOCK_K, BLOCK_D])
                adding = warpgroup_mma(s, k, q_sum, is_async=True)
                product = warpgroup_mma_wait(2, deps=[multiplying])
                begin = key_begin(visits, step, base_here, slots, BLOCK_K)
                weight = weights(product, sums, scale_here, cap, numbers, first, begin, base_here, slots, BLOCK_K, SCORES)
                weight_grad = warpgroup_mma_wait(1, deps=[weighing])
                mbarrier.arrive(v_empty.index(slot), count=1)
                change = product_grad(weight * (weight_grad - shared[:, None]), product, scale_here, cap)
                s_next = narrow(change, dtype, OPERAND)
                q_sum, s = warpgroup_mma_wait(0, deps=[adding, s])  # with s, whose registers are read until then
                mbarrier.arrive(k_empty.index(k_slot), count=1)
                s = s_next
            k = k_slots.index(slot).reshape([BLOCK_K, BLOCK_D])
            adding = warpgroup_mma(s, k, q_sum, is_async=True)
            q_sum, s = warpgroup_mma_wait(0, deps=[adding, s])
            mbarrier.arrive(k_empty.index(slot), count=1)
            slot, phase = next_slot(slot, phase, SLOTS)

            if left >= HALF:  # by the place of the queries, which nobody reads any more
                block_barrier()
                q.store(q_sum.to(dtype))
                fence_async_shared()
                tma_store(q_grad_desc, [own_row, head, 0], q_slots.index(place))
                tma.store_wait(0)
            else:
                own = gl.arange(0, HALF, layout=gl.SliceLayout(1, OUT))
                d = gl.arange(0, BLOCK_D, layout=gl.SliceLayout(0, OUT))
                places = ((own_row + own) * (kv_heads * GROUP) + head).to(gl.int64) * D
                gl.store(q_grad + places[:, None] + d[None, :], q_sum.to(dtype), mask=(own < left)[:, None] & (d < D)[None, :])
            mbarrier.arrive(q_empty.index(place), count=1)


@gluon.jit(do_not_specialize=["sequences", "kv_heads", "blocks", "tiles", "k_stride", "v_stride", "row_stride",
                              "k_begin_stride", "v_begin_stride", "cap"])  # fmt: skip
def queries_kernel(
    q_desc, o_grad_desc, k_desc, v_desc, q_grad_desc, o, lse, lse_grad, q_grad, delta, rows, offsets, past, stored, base,
    k_begin, v_begin, pinned, ring, scale, cap, sequences, kv_heads, blocks, tiles, k_stride, v_stride, row_stride,
    k_begin_stride, v_begin_stride,
    ROW: gl.constexpr, GROUP: gl.constexpr, D: gl.constexpr, E: gl.constexpr, BLOCK_D: gl.constexpr, BLOCK_E: gl.constexpr,
    BLOCK_Q: gl.constexpr, BLOCK_K: gl.constexpr, SLOTS: gl.constexpr, Q_SLOTS: gl.constexpr, REGISTERS: gl.constexpr,
):  # fmt: skip
    dtype: gl.constexpr = q_desc.dtype
    q_slots = gl.allocate_shared_memory(dtype, [Q_SLOTS * 2, HALF, 1, BLOCK_D], q_desc.layout)
    grad_slots = gl.allocate_shared_memory(dtype, [Q_SLOTS * 2, HALF, 1, BLOCK_E], o_grad_desc.layout)
    k_slots = gl.allocate_shared_memory(dtype, [SLOTS, BLOCK_K, 1, BLOCK_D], k_desc.layout)
    v_slots = gl.allocate_shared_memory(dtype, [SLOTS, BLOCK_K, 1, BLOCK_E], v_desc.layout)
    q_full, q_empty = barriers(Q_SLOTS * 2, 1, 1)
    k_full, k_empty = barriers(SLOTS, 1, 2)
    v_full, v_empty = barriers(SLOTS, 1, 2)
    raw = gl.allocate_shared_memory(gl.int64, [1, 1], mbarrier.MBarrierLayout())
    mbarrier.init(raw.index(0), count=1)
    fence_async_shared()
    descriptors = (q_desc, o_grad_desc, k_desc, v_desc)
    q_ring = (q_slots, grad_slots, q_full, q_empty)
    k_ring = (k_slots, k_full, k_empty)
    v_ring = (v_slots, v_full, v_empty)
    results = (o, lse)
    gradients = (lse_grad, q_grad, delta)
    batch = (offsets, past, sequences, kv_heads, blocks, tiles)
    keys = (rows, row_stride, stored, base, pinned, ring)
    k_place = (k_begin, k_begin_stride, k_stride)
    v_place = (v_begin, v_begin_stride, v_stride)
    gl.warp_specialize([
        (consume_keys, (
            0, q_grad_desc, q_ring, k_ring, v_ring, results, gradients, batch, keys, scale, cap, ROW, GROUP, D, E, BLOCK_D,
            BLOCK_E, BLOCK_Q, BLOCK_K, SLOTS, Q_SLOTS,
        )),
        (consume_keys, (
            1, q_grad_desc, q_ring, k_ring, v_ring, results, gradients, batch, keys, scale, cap, ROW, GROUP, D, E, BLOCK_D,
            BLOCK_E, BLOCK_Q, BLOCK_K, SLOTS, Q_SLOTS,
        )),
        (produce_keys, (
            descriptors, q_ring, k_ring, v_ring, raw, batch, keys, k_place, v_place, ROW, GROUP, D, E, BLOCK_D, BLOCK_E,
            BLOCK_Q, BLOCK_K, SLOTS, Q_SLOTS,
        )),
    ], [4, 1], [REGISTERS, 504 - 2 * REGISTERS])  # fmt: skip


def settings(queries, keys, warps, slots, q_slots, registers):
    """The kernel's compile-time arguments."""
    nears, strides, powers, _ = FORM
    return {
        "ROW": 1 + 4 * nears + strides + powers,
        "GROUP": GROUP,
        "D": HEAD_WIDTH,
        "E": VALUE_WIDTH,
        "BLOCK_D": width_of(HEAD_WIDTH),
        "BLOCK_E": width_of(VALUE_WIDTH),
        "BLOCK_Q": queries,
        "BLOCK_K": keys,
        "SLOTS": slots,
        "Q_SLOTS": q_slots,
        "REGISTERS": registers,
        "num_warps": 4,
        "num_stages": 1,
        "enable_fp_fusion": True,
    }


def descriptors(constants):
    """Of queries, results' gradients, keys, values, queries' gradients: name -> rows and columns of a block."""
    d, e, keys = width_of(HEAD_WIDTH), width_of(VALUE_WIDTH), constants["BLOCK_K"]
    return {"q_desc": (64, d), "o_grad_desc": (64, e), "k_desc": (keys, d), "v_desc": (keys, e), "q_grad_desc": (64, d)}


def variants(architecture, element_size):
    """Every kernel that `attend_backward_queries` may launch, with its compile-time arguments."""
    if (architecture, element_size) not in BLOCKS:
        return ()
    return ((queries_kernel, settings(*BLOCKS[architecture, element_size])),)


def attend_backward_queries(q, part, rows, form, batch, scale, cap, o, lse, o_grad, lse_grad, *, blocks=None):
    """The gradient of the queries of `attend`, and `delta`; arguments and results as of the function in Triton.

    q, k, v: bfloat16 or float16, of widths that are multiples of 8, up to 128.
    """
    tokens, heads, width = q.shape
    device, dtype = q.device, q.dtype
    sequences, kv_heads, _ = rows.shape
    assert (form.nears, form.strides, form.powers, form.causal) == FORM
    assert (width, part.v_width, heads) == (HEAD_WIDTH, VALUE_WIDTH, kv_heads * GROUP)
    assert rows.stride(1) == rows.shape[2]
    assert (cap is not None) == CAP
    assert dtype == part.k.dtype == part.v.dtype == o_grad.dtype
    assert not part.rings
    q_grad = torch.empty(tokens, heads, width, dtype=dtype, device=device)
    delta = torch.empty(tokens, heads, dtype=torch.float32, device=device)
    chosen = blocks or BLOCKS[architecture(device), q.element_size()]
    count = triton.cdiv(batch.max_new, chosen[0])
    tiles = count * sequences * heads
    if tiles == 0 or tokens == 0:
        return q_grad, delta
    if device not in PROCESSORS:
        PROCESSORS[device] = torch.cuda.get_device_properties(device).multi_processor_count
    q_block, o_grad_block, k_block, v_block, q_grad_block = descriptors({"BLOCK_K": chosen[1]}).values()
    views = (
        packed_view(q, *q_block),
        packed_view(o_grad, *o_grad_block),
        slots_view(part.k, part.k_stride, HEAD_WIDTH, *k_block),
        slots_view(part.v, part.v_stride, VALUE_WIDTH, *v_block),
        packed_view(q_grad, *q_grad_block),
    )
    tensors = (
        o.contiguous(), lse.contiguous(), lse_grad.contiguous(), q_grad, delta, rows, batch.offsets, batch.past, part.stored,
        part.base, part.k_begin, part.v_begin, part.pinned, part.ring, scale.contiguous(),
    )  # fmt: skip
    numbers = (
        0.0 if cap is None else cap, sequences, kv_heads, count, tiles, part.k_stride, part.v_stride, rows.stride(0),
        part.k_begin.stride(0), part.v_begin.stride(0),
    )  # fmt: skip
    programs = min(tiles, PROCESSORS[device])
    run(queries_kernel, programs, views, tensors, numbers, (device, dtype, chosen), lambda: settings(*chosen))
    return q_grad, delta
