"""Softmax attention over key intervals, for many queries, on sm_90: what softmax_prefill.py in Triton computes, by its rules.

A program stays on its multiprocessor and walks tiles: 128 queries of one head each, those that see most first. Three parties
work at once: one warp copies queries, keys and values into shared memory (TMA), and two groups of four warps attend 64 queries
each. What is full and what may be overwritten they tell each other by barriers (mbarriers): every `_full` one is arrived at
by the copies, every `_empty` one by the readers, once a group. A party counts through the slots of a ring; a barrier's phase
flips each time around.

Rows behind a sequence's last key belong to someone else, and hold anything: scores against them are hidden, and their values
are overwritten with zeros before anyone reads them.
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
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from attnc.codegen.gluon.names import block_barrier, tma_load, tma_store

FORM = (1, 0, 0, True)  # how many near intervals, strides and powers a row holds, and whether the future is hidden
HEAD_WIDTH = 64  # of queries and keys
VALUE_WIDTH = 64
GROUP = 1  # query heads for each KV head
CAP = False
SINK_LOGIT = False
EXPONENT = None
BLOCKS = {  # (architecture, bytes of an element): queries, keys, warps, slots for keys, for tiles of queries, registers, PIN
    ("sm_90", 2): (128, 128, 12, 3, 2, 240, 0),
}

PROCESSORS = {}  # device -> how many multiprocessors it has
READY = {}  # key of `run` -> what was compiled, and its compile-time arguments
LAYOUTS = {}  # (rows, columns, element type) -> how a copied block lies in shared memory

LOG2E = gl.constexpr(1.4426950408889634)
LN2 = gl.constexpr(0.6931471805599453)
HIDDEN = gl.constexpr(float("-inf"))  # score of a key that is not seen
FLOOR = gl.constexpr(-1e29)  # least maximum beside a sink logit, which may be -inf
LEAST = gl.constexpr(1e-20)  # least scale: HIDDEN * 0 would be NaN
NOWHERE = gl.constexpr(2**30)  # position of a slot that holds no key; also "no bound"
HALF = gl.constexpr(64)  # queries of one group of warps


@gluon.jit
def read_row(row):
    """The numbers of one sequence and KV head."""
    return gl.load(row), gl.load(row + 1), gl.load(row + 2), gl.load(row + 3), gl.load(row + 4)


@gluon.jit
def lower(numbers, i):
    """The first key near query i that it sees."""
    sink, align, shift, back, ahead = numbers
    return (i + shift) // align * align - shift - back


@gluon.jit
def upper(numbers, i):
    """One past the last key near query i that it sees."""
    return i + 1


@gluon.jit
def horizon(i):
    """One past the last key that causality shows to query i."""
    return i + 1


@gluon.jit
def keep(numbers, i, j):
    """Whether the query at i sees the key at j."""
    sink, align, shift, back, ahead = numbers
    return ((j >= lower(numbers, i)) | (j < sink)) & (j <= i)


@gluon.jit
def solid(numbers, first, last, begin, end):
    """Whether all queries first..last see all keys from begin up to, not including, end."""
    whole = end <= numbers[0]
    whole |= (begin >= lower(numbers, last)) & (end <= upper(numbers, first))
    return whole & (end <= horizon(first))


@gluon.jit
def adjust_score(product, scale, cap):
    """The logit of a query and a key, to base 2; called where scores are capped, else scales are part of the exponent."""
    return product * (scale * LOG2E)


@gluon.jit
def add_sink_logit(best, norm, sink_logit, head):
    """Running maximum and sum with the learned logit that has no value."""
    return best, norm


@gluon.jit
def visit(numbers, first, last, base, slots, whole, BLOCK_K: gl.constexpr):
    """Which key blocks the queries first..last see: how many of the first ones, the first near one, how many in all."""
    sink_end = gl.minimum(gl.maximum(gl.minimum(numbers[0], horizon(last)) - base, 0), slots)
    sink_blocks = gl.where(whole, 0, gl.cdiv(sink_end, BLOCK_K))
    begin = gl.where(whole, 0, gl.maximum(lower(numbers, first) - base, 0))
    end = gl.where(whole, slots, gl.minimum(gl.maximum(upper(numbers, last) - base, 0), slots))
    near_block = gl.maximum(begin // BLOCK_K, sink_blocks)
    near_blocks = gl.where(begin < end, gl.maximum(gl.cdiv(end, BLOCK_K) - near_block, 0), 0)
    return sink_blocks, near_block, sink_blocks + near_blocks


@gluon.jit
def block_of(visits, step, base, slots, BLOCK_K: gl.constexpr):
    """The key block of a step."""
    sink_blocks, near_block, steps = visits
    return gl.where(step < sink_blocks, step, step - sink_blocks + near_block)


@gluon.jit
def position(slot, base, stored, pinned, ring, slots, RINGS: gl.constexpr):
    """Where the keys of these slots stand in the text."""
    j = slot
    if RINGS:  # a slot behind the pinned ones holds the newest token whose number differs by a multiple of `ring`
        turns = gl.maximum(stored - 1 - pinned, 0) // ring * ring
        older = gl.where(slot > stored - 1 - turns, ring, 0)
        j = gl.where(slot < pinned, slot, slot + turns - older)
    return gl.where(slot < slots, base + j, NOWHERE)


@gluon.jit
def tile(t, offsets, past, stored, pinned, ring, sequences, kv_heads, blocks, GROUP: gl.constexpr, BLOCK_Q: gl.constexpr):
    """Of tile t: sequence, KV head, query head; its first query, as a row and in its sequence; the sequence's queries, its
    past, its slots. The heads of a group side by side, as they read the same keys; the last queries, which see most, first.
    """
    member = t % GROUP
    group = t // GROUP % kv_heads
    sequence = t // (GROUP * kv_heads) % sequences
    query = (blocks - 1 - t // (GROUP * kv_heads * sequences)) * BLOCK_Q
    begin = gl.load(offsets + sequence)
    count = (gl.load(offsets + sequence + 1) - begin).to(gl.int32)
    start = gl.load(past + sequence).to(gl.int32)
    slots = gl.minimum(gl.load(stored + sequence), gl.load(pinned + group) + gl.load(ring + group))
    return sequence, group, group * GROUP + member, begin.to(gl.int32) + query, query, count, start, slots


@gluon.jit
def key_block(visits, step, base, slots, BLOCK_K: gl.constexpr):
    """The key block of a step, the last one first; one past all keys where nothing is to be seen."""
    block = block_of(visits, gl.maximum(visits[-1] - 1 - step, 0), base, slots, BLOCK_K)
    return gl.where(visits[-1] > 0, block, gl.cdiv(slots, BLOCK_K))


@gluon.jit
def next_slot(slot, phase, SLOTS: gl.constexpr):
    """The slot after this one in a ring, and its phase."""
    slot += 1
    if slot == SLOTS:
        slot = 0
        phase ^= 1
    return slot, phase


@gluon.jit
def clear(values, first, BLOCK_K: gl.constexpr, BLOCK_E: gl.constexpr):
    """Zeros in the rows from `first` on; by one warp."""
    layout: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [1, 1], [1, 0])
    for row in gl.static_range(0, BLOCK_K, 8):
        if row + 8 > first:
            for column in gl.static_range(0, BLOCK_E, 64):
                some = values.slice(row, 8, 0).slice(column, 64, 1)
                x = some.load(layout)
                line = row + gl.arange(0, 8, layout=gl.SliceLayout(1, layout))
                some.store(gl.where((line < first)[:, None], x, gl.full([8, 64], 0.0, x.dtype, layout)))


@gluon.jit
def produce(
    q_desc, k_desc, v_desc, q_slots, k_slots, v_slots, q_full, q_empty, k_full, k_empty, v_full, v_empty, v_raw,
    rows, offsets, past, stored, base, k_begin, v_begin, pinned, ring, sequences, kv_heads, blocks, tiles, k_stride, v_stride,
    row_stride, k_begin_stride, v_begin_stride,
    ROW: gl.constexpr, GROUP: gl.constexpr, D: gl.constexpr, E: gl.constexpr, BLOCK_E: gl.constexpr, RINGS: gl.constexpr,
    BLOCK_Q: gl.constexpr, BLOCK_K: gl.constexpr, SLOTS: gl.constexpr, Q_SLOTS: gl.constexpr,
):  # fmt: skip
    """Copies what the other parties read. A fresh barrier counts as one whose last phase is over, so nobody waits at first."""
    slot = 0
    phase = 1
    q_slot = 0
    q_phase = 1
    raw_phase = 0
    for t in range(gl.program_id(0), tiles, gl.num_programs(0)):
        sequence, group, head, row, query, count, start, slots = tile(
            t, offsets, past, stored, pinned, ring, sequences, kv_heads, blocks, GROUP, BLOCK_Q
        )
        if query < count:
            for half in gl.static_range(2):
                place = q_slot * 2 + half
                mbarrier.wait(q_empty.index(place), q_phase)
                mbarrier.expect(q_full.index(place), q_desc.block_type.nbytes)
                tma_load(q_desc, [row + half * HALF, head, 0], q_full.index(place), q_slots.index(place))
            q_slot, q_phase = next_slot(q_slot, q_phase, Q_SLOTS)
            numbers = read_row(rows + sequence * row_stride + group * ROW)
            base_here = gl.load(base + sequence)
            k_first = gl.load(k_begin + sequence * k_begin_stride + group)
            v_first = gl.load(v_begin + sequence * v_begin_stride + group)
            k_row = (k_first // k_stride).to(gl.int32)
            v_row = (v_first // v_stride).to(gl.int32)
            k_head = (k_first % k_stride).to(gl.int32) // D
            v_head = (v_first % v_stride).to(gl.int32) // E
            whole = RINGS and gl.load(ring + group) < NOWHERE
            last = start + gl.minimum(count, query + BLOCK_Q) - 1
            visits = visit(numbers, start + query, last, base_here, slots, whole, BLOCK_K)
            for step in range(gl.maximum(visits[-1], 1)):
                begin = key_block(visits, step, base_here, slots, BLOCK_K) * BLOCK_K
                begin = gl.where(begin < slots, begin, 0)  # where there is nothing, anything
                mbarrier.wait(k_empty.index(slot), phase)
                mbarrier.expect(k_full.index(slot), k_desc.block_type.nbytes)
                tma_load(k_desc, [k_row + begin, k_head, 0], k_full.index(slot), k_slots.index(slot))
                mbarrier.wait(v_empty.index(slot), phase)
                if begin + BLOCK_K <= slots:
                    mbarrier.expect(v_full.index(slot), v_desc.block_type.nbytes)
                    tma_load(v_desc, [v_row + begin, v_head, 0], v_full.index(slot), v_slots.index(slot))
                else:
                    mbarrier.expect(v_raw.index(0), v_desc.block_type.nbytes)
                    tma_load(v_desc, [v_row + begin, v_head, 0], v_raw.index(0), v_slots.index(slot))
                    mbarrier.wait(v_raw.index(0), raw_phase)
                    raw_phase ^= 1
                    clear(v_slots.index(slot).reshape([BLOCK_K, BLOCK_E]), slots - begin, BLOCK_K, BLOCK_E)
                    fence_async_shared()
                    mbarrier.arrive(v_full.index(slot), count=1)
                slot, phase = next_slot(slot, phase, SLOTS)


@gluon.jit
def hide(
    score, numbers, first, block, base, stored, pinned, ring, slots, RINGS: gl.constexpr, BLOCK_K: gl.constexpr,
    SCORES: gl.constexpr,
):  # fmt: skip
    """HIDDEN for keys that are not seen; blocks in which there are none skip it as a whole."""
    begin = block * BLOCK_K
    whole = solid(numbers, first, first + HALF - 1, base + begin, base + begin + BLOCK_K) & (begin + BLOCK_K <= slots)
    if RINGS:
        whole &= ring == NOWHERE
    if not whole:
        i = first + gl.arange(0, HALF, layout=gl.SliceLayout(1, SCORES))
        slot = begin + gl.arange(0, BLOCK_K, layout=gl.SliceLayout(0, SCORES))
        j = position(slot, base, stored, pinned, ring, slots, RINGS)
        score = gl.where(keep(numbers, i[:, None], j[None, :]), score, HIDDEN)
    return score


@gluon.jit
def thread_sums(weight, BLOCK_K: gl.constexpr):
    """The part of the rows' sums that lies inside each thread, [64, 4]: no exchange while blocks are walked."""
    return gl.sum(gl.sum(weight.reshape([HALF, BLOCK_K // 8, 4, 2]), 3), 1)


@gluon.jit
def weigh(score, best, sums, factor, EXACT: gl.constexpr, BLOCK_K: gl.constexpr):
    """Weights of a block's scores beside the new maximum, what older weights fade by, the maximum, and the sums.

    The factor and the maximum are one operation for each weight. It leaves the rounding error of their product in all weights
    of a block alike: 2^(1e-7 times the largest logit), which bfloat16 does not see. EXACT takes two. What fades must be exactly
    1 where the maximum stays, as it is met in every block.
    """
    peak = gl.maximum(best, gl.max(score, 1))
    some = gl.where(peak == HIDDEN, 0.0, peak)
    if EXACT:
        weight = gl.exp2((score - some[:, None]) * factor)
    else:
        weight = gl.exp2(score * factor - (some * factor)[:, None])
    fade = gl.exp2((best - some) * factor)
    part = thread_sums(weight, BLOCK_K)
    sums = sums * gl.convert_layout(fade, gl.SliceLayout(1, part.type.layout))[:, None] + part
    return weight, fade, peak, sums


@gluon.jit
def narrow(weight, dtype: gl.constexpr, OPERAND: gl.constexpr):
    """Weights as an operand in registers. By assembly that is not pure: LLVM would put the conversion behind the next wait."""
    if dtype == gl.bfloat16:
        weight = gl.inline_asm_elementwise(
            "cvt.rn.bf16x2.f32 $0, $2, $1;", "=r,r,r", [weight], dtype=gl.bfloat16, is_pure=False, pack=2
        )
    else:
        weight = gl.inline_asm_elementwise(
            "cvt.rn.f16x2.f32 $0, $2, $1;", "=r,r,r", [weight], dtype=gl.float16, is_pure=False, pack=2
        )
    return gl.convert_layout(weight, OPERAND, assert_trivial=True)


@gluon.jit
def consume(
    half: gl.constexpr, o_desc, q_slots, k_slots, v_slots, o_slots, q_full, q_empty, k_full, k_empty, v_full, v_empty,
    o, lse, rows, offsets, past, stored, base, pinned, ring, scale, sink_logit, cap, sequences, kv_heads, blocks, tiles,
    row_stride,
    ROW: gl.constexpr, GROUP: gl.constexpr, E: gl.constexpr, BLOCK_D: gl.constexpr, BLOCK_E: gl.constexpr, CAP: gl.constexpr,
    RINGS: gl.constexpr, BLOCK_Q: gl.constexpr, BLOCK_K: gl.constexpr, SLOTS: gl.constexpr, Q_SLOTS: gl.constexpr,
    PIN: gl.constexpr, SHARED_OUT: gl.constexpr,
):  # fmt: skip
    """Attends one half of each tile's queries. Scores of a block and values of the one before are multiplied at once."""
    SCORES: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_K, 16])
    OUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_E, 16])
    EXACT: gl.constexpr = o_desc.dtype == gl.float16
    OPERAND: gl.constexpr = gl.DotOperandLayout(0, OUT, 2)
    LINES: gl.constexpr = gl.SliceLayout(1, SCORES)
    OUT_LINES: gl.constexpr = gl.SliceLayout(1, OUT)
    dtype: gl.constexpr = o_desc.dtype
    nothing = gl.zeros([HALF, BLOCK_K], gl.float32, SCORES)
    slot = 0
    phase = 0
    q_slot = 0
    q_phase = 0
    for t in range(gl.program_id(0), tiles, gl.num_programs(0)):
        sequence, group, head, row, query, count, start, slots = tile(
            t, offsets, past, stored, pinned, ring, sequences, kv_heads, blocks, GROUP, BLOCK_Q
        )
        if query < count:
            numbers = read_row(rows + sequence * row_stride + group * ROW)
            base_here = gl.load(base + sequence)
            stored_here = gl.load(stored + sequence)
            pinned_here = gl.load(pinned + group)
            ring_here = gl.load(ring + group)
            scale_here = gl.load(scale + head)
            if CAP:
                factor = 1.0
            else:
                factor = gl.maximum(scale_here * LOG2E, LEAST)
            first = start + query + half * HALF
            last = start + gl.minimum(count, query + BLOCK_Q) - 1
            visits = visit(numbers, start + query, last, base_here, slots, RINGS and ring_here < NOWHERE, BLOCK_K)
            steps = gl.maximum(visits[-1], 1)
            best = gl.full([HALF], HIDDEN, gl.float32, LINES)
            sums = thread_sums(nothing, BLOCK_K)
            out = gl.zeros([HALF, BLOCK_E], gl.float32, OUT)
            place = q_slot * 2 + half
            q = q_slots.index(place).reshape([HALF, BLOCK_D])
            mbarrier.wait(q_full.index(place), q_phase)
            q_slot, q_phase = next_slot(q_slot, q_phase, Q_SLOTS)

            mbarrier.wait(k_full.index(slot), phase)
            k = k_slots.index(slot).reshape([BLOCK_K, BLOCK_D]).permute((1, 0))
            product = warpgroup_mma(q, k, nothing, use_acc=False, is_async=True)
            score = warpgroup_mma_wait(0, deps=[product])
            mbarrier.arrive(k_empty.index(slot), count=1)
            if CAP:
                score = adjust_score(score, scale_here, cap)
            block = key_block(visits, 0, base_here, slots, BLOCK_K)
            score = hide(
                score, numbers, first, block, base_here, stored_here, pinned_here, ring_here, slots, RINGS, BLOCK_K, SCORES
            )
            weight, fade, best, sums = weigh(score, best, sums, factor, EXACT, BLOCK_K)
            p = narrow(weight, dtype, OPERAND)
            k_slot, k_phase = next_slot(slot, phase, SLOTS)
            if PIN:
                mbarrier.wait(k_full.index(k_slot), k_phase, pred=steps > 1)
            for step in range(1, steps):
                if not PIN:
                    mbarrier.wait(k_full.index(k_slot), k_phase)
                k = k_slots.index(k_slot).reshape([BLOCK_K, BLOCK_D]).permute((1, 0))
                product = warpgroup_mma(q, k, nothing, use_acc=False, is_async=True)
                mbarrier.wait(v_full.index(slot), phase)
                v = v_slots.index(slot).reshape([BLOCK_K, BLOCK_E])
                adding = warpgroup_mma(p, v, out, is_async=True)
                score = warpgroup_mma_wait(1, deps=[product])
                mbarrier.arrive(k_empty.index(k_slot), count=1)
                if CAP:
                    score = adjust_score(score, scale_here, cap)
                block = key_block(visits, step, base_here, slots, BLOCK_K)
                score = hide(
                    score, numbers, first, block, base_here, stored_here, pinned_here, ring_here, slots, RINGS, BLOCK_K, SCORES
                )
                weight, fade, best, sums = weigh(score, best, sums, factor, EXACT, BLOCK_K)
                p_next = narrow(weight, dtype, OPERAND)
                v_slot = slot
                slot = k_slot
                phase = k_phase
                k_slot, k_phase = next_slot(slot, phase, SLOTS)
                if PIN:
                    # ends the basic block: else ptxas puts the wait for the values above the weights, and nothing overlaps
                    mbarrier.wait(k_full.index(k_slot), k_phase, pred=step + 1 < steps)
                out, p = warpgroup_mma_wait(0, deps=[adding, p])  # with p, whose registers are read until then
                mbarrier.arrive(v_empty.index(v_slot), count=1)
                out = out * gl.convert_layout(fade, OUT_LINES)[:, None]
                p = p_next
            if not SHARED_OUT:
                mbarrier.arrive(q_empty.index(place), count=1)
            mbarrier.wait(v_full.index(slot), phase)
            v = v_slots.index(slot).reshape([BLOCK_K, BLOCK_E])
            adding = warpgroup_mma(p, v, out, is_async=True)
            out, p = warpgroup_mma_wait(0, deps=[adding, p])
            mbarrier.arrive(v_empty.index(slot), count=1)
            slot, phase = next_slot(slot, phase, SLOTS)

            best = gl.where(best == HIDDEN, FLOOR, best * factor)
            peak, norm = add_sink_logit(best, gl.convert_layout(gl.sum(sums, 1), LINES), sink_logit, head)
            safe = gl.where(norm != 0.0, norm, 1.0)
            out = out * gl.convert_layout(gl.exp2(best - peak) / safe, OUT_LINES)[:, None]
            line = gl.arange(0, HALF, layout=LINES)
            places = (row + half * HALF + line) * (kv_heads * GROUP) + head
            result = gl.where(norm != 0.0, (peak + gl.log2(safe)) * LN2, HIDDEN)
            gl.store(lse + places, result, mask=query + half * HALF + line < count)
            if query + (half + 1) * HALF <= count:
                o_place = half
                if SHARED_OUT:
                    o_place = place
                tma.store_wait(0)
                block_barrier()
                o_slots.index(o_place).reshape([HALF, BLOCK_E]).store(out.to(dtype))
                fence_async_shared()
                tma_store(o_desc, [row + half * HALF, head, 0], o_slots.index(o_place))
                if SHARED_OUT:
                    tma.store_wait(0)
            else:
                out_line = gl.arange(0, HALF, layout=OUT_LINES)
                e = gl.arange(0, BLOCK_E, layout=gl.SliceLayout(0, OUT))
                o_places = ((row + half * HALF + out_line) * (kv_heads * GROUP) + head).to(gl.int64) * E
                live = (query + half * HALF + out_line < count)[:, None] & (e < E)[None, :]
                gl.store(o + o_places[:, None] + e[None, :], out.to(dtype), mask=live)
            if SHARED_OUT:
                mbarrier.arrive(q_empty.index(place), count=1)
    tma.store_wait(0)


@gluon.jit(do_not_specialize=["sequences", "kv_heads", "blocks", "tiles", "k_stride", "v_stride", "row_stride",
                              "k_begin_stride", "v_begin_stride", "cap"])  # fmt: skip
def attend_kernel(
    q_desc, k_desc, v_desc, o_desc, o, lse, rows, offsets, past, stored, base, k_begin, v_begin, pinned, ring, scale,
    sink_logit, cap, sequences, kv_heads, blocks, tiles, k_stride, v_stride, row_stride, k_begin_stride, v_begin_stride,
    ROW: gl.constexpr, GROUP: gl.constexpr, D: gl.constexpr, E: gl.constexpr, BLOCK_D: gl.constexpr, BLOCK_E: gl.constexpr,
    CAP: gl.constexpr, RINGS: gl.constexpr, BLOCK_Q: gl.constexpr, BLOCK_K: gl.constexpr, SLOTS: gl.constexpr,
    Q_SLOTS: gl.constexpr, PIN: gl.constexpr, SHARED_OUT: gl.constexpr, REGISTERS: gl.constexpr,
):  # fmt: skip
    dtype: gl.constexpr = q_desc.dtype
    q_slots = gl.allocate_shared_memory(dtype, [Q_SLOTS * 2, HALF, 1, BLOCK_D], q_desc.layout)
    k_slots = gl.allocate_shared_memory(dtype, [SLOTS, BLOCK_K, 1, BLOCK_D], k_desc.layout)
    v_slots = gl.allocate_shared_memory(dtype, [SLOTS, BLOCK_K, 1, BLOCK_E], v_desc.layout)
    o_slots = q_slots
    if not SHARED_OUT:
        o_slots = gl.allocate_shared_memory(dtype, [2, HALF, 1, BLOCK_E], o_desc.layout)
    BARRIER: gl.constexpr = mbarrier.MBarrierLayout()
    q_full = gl.allocate_shared_memory(gl.int64, [Q_SLOTS * 2, 1], BARRIER)
    q_empty = gl.allocate_shared_memory(gl.int64, [Q_SLOTS * 2, 1], BARRIER)
    k_full = gl.allocate_shared_memory(gl.int64, [SLOTS, 1], BARRIER)
    k_empty = gl.allocate_shared_memory(gl.int64, [SLOTS, 1], BARRIER)
    v_full = gl.allocate_shared_memory(gl.int64, [SLOTS, 1], BARRIER)
    v_empty = gl.allocate_shared_memory(gl.int64, [SLOTS, 1], BARRIER)
    v_raw = gl.allocate_shared_memory(gl.int64, [1, 1], BARRIER)
    for i in gl.static_range(Q_SLOTS * 2):
        mbarrier.init(q_full.index(i), count=1)
        mbarrier.init(q_empty.index(i), count=1)
    for i in gl.static_range(SLOTS):
        mbarrier.init(k_full.index(i), count=1)
        mbarrier.init(k_empty.index(i), count=2)
        mbarrier.init(v_full.index(i), count=1)
        mbarrier.init(v_empty.index(i), count=2)
    mbarrier.init(v_raw.index(0), count=1)
    fence_async_shared()
    gl.warp_specialize([
        (consume, (
            0, o_desc, q_slots, k_slots, v_slots, o_slots, q_full, q_empty, k_full, k_empty, v_full, v_empty,
            o, lse, rows, offsets, past, stored, base, pinned, ring, scale, sink_logit, cap, sequences, kv_heads, blocks, tiles,
            row_stride, ROW, GROUP, E, BLOCK_D, BLOCK_E, CAP, RINGS, BLOCK_Q, BLOCK_K, SLOTS, Q_SLOTS, PIN, SHARED_OUT,
        )),
        (consume, (
            1, o_desc, q_slots, k_slots, v_slots, o_slots, q_full, q_empty, k_full, k_empty, v_full, v_empty,
            o, lse, rows, offsets, past, stored, base, pinned, ring, scale, sink_logit, cap, sequences, kv_heads, blocks, tiles,
            row_stride, ROW, GROUP, E, BLOCK_D, BLOCK_E, CAP, RINGS, BLOCK_Q, BLOCK_K, SLOTS, Q_SLOTS, PIN, SHARED_OUT,
        )),
        (produce, (
            q_desc, k_desc, v_desc, q_slots, k_slots, v_slots, q_full, q_empty, k_full, k_empty, v_full, v_empty, v_raw,
            rows, offsets, past, stored, base, k_begin, v_begin, pinned, ring, sequences, kv_heads, blocks, tiles, k_stride,
            v_stride, row_stride, k_begin_stride, v_begin_stride, ROW, GROUP, D, E, BLOCK_E, RINGS, BLOCK_Q, BLOCK_K, SLOTS,
            Q_SLOTS,
        )),
    ], [4, 1], [REGISTERS, 504 - 2 * REGISTERS])  # fmt: skip


def width_of(width):
    """A copied row: the width's next power of two, at least the 128 bytes of a swizzled line."""
    return max(64, 1 << (width - 1).bit_length())


def settings(rings, queries, keys, warps, slots, q_slots, registers, pin):
    """The kernel's compile-time arguments; the first of the three parties is launched, the others are of its making."""
    nears, strides, powers, _ = FORM
    return {
        "ROW": 1 + 4 * nears + strides + powers,
        "GROUP": GROUP,
        "D": HEAD_WIDTH,
        "E": VALUE_WIDTH,
        "BLOCK_D": width_of(HEAD_WIDTH),
        "BLOCK_E": width_of(VALUE_WIDTH),
        "CAP": CAP,
        "RINGS": rings,
        "BLOCK_Q": queries,
        "BLOCK_K": keys,
        "SLOTS": slots,
        "Q_SLOTS": q_slots,
        "PIN": bool(pin),
        "SHARED_OUT": q_slots == 1 and width_of(HEAD_WIDTH) == width_of(VALUE_WIDTH),
        "REGISTERS": registers,
        "num_warps": 4,
        "num_stages": 1,
        "enable_fp_fusion": True,
    }


def descriptors(keys):
    """Of queries, keys, values and outputs: name -> rows and columns of a block."""
    d, e = width_of(HEAD_WIDTH), width_of(VALUE_WIDTH)
    return {"q_desc": (64, d), "k_desc": (keys, d), "v_desc": (keys, e), "o_desc": (64, e)}


def variants(architecture, element_size):
    """Every kernel that `attend` may launch, with its compile-time arguments."""
    if (architecture, element_size) not in BLOCKS:
        return ()
    return tuple((attend_kernel, settings(rings, *BLOCKS[architecture, element_size])) for rings in (False, True))


def architecture(device):
    """The row of BLOCKS that serves a device."""
    return "sm_90"


def aligned(x):
    """x where the copies can read it, at addresses and distances of 16 bytes; else a copy."""
    *outer, inner = x.stride()
    good = x.data_ptr() % 16 == 0 and inner == 1 and all(n > 0 and n * x.element_size() % 16 == 0 for n in outer)
    return x if good else x.clone(memory_format=torch.contiguous_format)


def described(x, rows, columns):
    """What a copy is told of x [tokens, heads, width]: its place, and the block that one copy takes of one head.

    Made without the checks of TensorDescriptor's own, which take longer than a launch: `aligned` has seen to them.
    """
    block = [rows, 1, columns]
    key = (rows, columns, x.dtype)
    if key not in LAYOUTS:
        LAYOUTS[key] = gl.NVMMASharedLayout.get_default_for(block, gl.bfloat16 if x.dtype == torch.bfloat16 else gl.float16)
    made = TensorDescriptor.__new__(TensorDescriptor)
    made.base, made.shape, made.strides, made.block_shape, made.layout = x, list(x.shape), list(x.stride()), block, LAYOUTS[key]
    made.padding, made.round_f32_to_tf32 = "zero", False
    return made


def run(kernel, programs, views, tensors, numbers, key, constants):
    """kernel[(programs,)](*views, *tensors, *numbers, **constants()), without Triton's long look at every argument.

    It compiles for types, and for which pointers are multiples of 16. Where all are, `key` says the rest, and what was compiled
    for it runs at once; the views are told to the copies as ever.
    """
    pointers = [tensor.data_ptr() for tensor in tensors]
    plain = all(pointer % 16 == 0 for pointer in pointers)
    if plain and key in READY:
        compiled, rest = READY[key]
        compiled[programs, 1, 1](*views, *pointers, *numbers, *rest)
        return
    settings = constants()
    compiled = kernel[(programs,)](*views, *tensors, *numbers, **settings)
    if plain and compiled is not None:  # where there is no GPU nothing is compiled
        READY[key] = compiled, [settings[name] for name in kernel.arg_names[len(views) + len(tensors) + len(numbers) :]]


def stored_rows(flat, stride, width):
    """A flat storage as [slots, heads, width]: heads side by side where slots are further apart than one is wide."""
    if flat.numel() < stride:
        return flat.new_zeros(1, 1, width)
    return aligned(flat)[: flat.numel() // stride * stride].view(-1, stride // width, width)


def attend(q, part, rows, form, batch, scale, cap=None, sink_logit=None, *, blocks=None):
    """Attention of new queries to one part of the keys; arguments and results as of the function in Triton.

    q, k, v: bfloat16 or float16, of widths that are multiples of 8; scale: from 0 on.
    """
    tokens, heads, width = q.shape
    sequences, kv_heads, _ = rows.shape
    assert (form.nears, form.strides, form.powers, form.causal) == FORM
    assert (width, part.v_width, heads) == (HEAD_WIDTH, VALUE_WIDTH, kv_heads * GROUP)
    assert rows.stride(1) == rows.shape[2]
    assert (cap is not None, sink_logit is not None) == (CAP, SINK_LOGIT)
    assert q.dtype == part.k.dtype == part.v.dtype
    o = torch.empty(tokens, heads, VALUE_WIDTH, dtype=q.dtype, device=q.device)
    lse = torch.empty(tokens, heads, dtype=torch.float32, device=q.device)
    chosen = blocks or BLOCKS[architecture(q.device), q.element_size()]
    count = triton.cdiv(batch.max_new, chosen[0])
    tiles = count * sequences * heads
    if tiles == 0 or tokens == 0:
        return o, lse
    if q.device not in PROCESSORS:
        PROCESSORS[q.device] = torch.cuda.get_device_properties(q.device).multi_processor_count
    views = (
        aligned(q),
        stored_rows(part.k, part.k_stride, HEAD_WIDTH),
        stored_rows(part.v, part.v_stride, VALUE_WIDTH),
        o,
    )
    shapes = descriptors(chosen[1]).values()
    sink_logit = scale if sink_logit is None else sink_logit
    tensors = (
        o, lse, rows, batch.offsets, batch.past, part.stored, part.base, part.k_begin, part.v_begin, part.pinned, part.ring,
        scale.contiguous(), sink_logit,
    )  # fmt: skip
    numbers = (
        0.0 if cap is None else cap, sequences, kv_heads, count, tiles, part.k_stride, part.v_stride, rows.stride(0),
        part.k_begin.stride(0), part.v_begin.stride(0),
    )  # fmt: skip
    run(
        attend_kernel, min(tiles, PROCESSORS[q.device]),
        [described(x, *block) for x, block in zip(views, shapes, strict=True)], tensors, numbers,
        (q.device, q.dtype, sink_logit.dtype, part.rings, chosen), lambda: settings(part.rings, *chosen),
    )  # fmt: skip
    return o, lse
