"""The parties that attend: half of a tile's queries each."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from attnc.codegen.gluon.names import block_barrier, tma_store
from attnc.codegen.gluon.skeletons.seeing import HALF, HIDDEN, NOWHERE, hide, key_block, read_row, visit
from attnc.codegen.gluon.skeletons.tiles import next_slot, tile
from attnc.codegen.gluon.skeletons.weighing import LOG2E, add_sink_logit, adjust_score, narrow, thread_sums, weigh

LN2 = gl.constexpr(0.6931471805599453)
FLOOR = gl.constexpr(-1e29)  # least maximum beside a sink logit, which may be -inf
LEAST = gl.constexpr(1e-20)  # least scale: HIDDEN * 0 would be NaN


@gluon.jit
def consume(
    half: gl.constexpr, q_ring, k_ring, v_ring, batch, keys, outputs, scale, sink_logit, cap,
    ROW: gl.constexpr, GROUP: gl.constexpr, E: gl.constexpr, BLOCK_D: gl.constexpr, BLOCK_E: gl.constexpr, CAP: gl.constexpr,
    RINGS: gl.constexpr, BLOCK_Q: gl.constexpr, BLOCK_K: gl.constexpr, SLOTS: gl.constexpr, Q_SLOTS: gl.constexpr,
    PIN: gl.constexpr, SHARED_OUT: gl.constexpr,
):  # fmt: skip
    """Attends one half of each tile's queries. Scores of a block and values of the one before are multiplied at once."""
    q_slots, q_full, q_empty = q_ring
    k_slots, k_full, k_empty = k_ring
    v_slots, v_full, v_empty = v_ring
    offsets, past, sequences, kv_heads, blocks, tiles = batch
    rows, row_stride, stored, base, pinned, ring = keys
    o_desc, o_slots, o, lse = outputs
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
        sequence, group, head, row, query, count, start, slots = tile(t, batch, keys, GROUP, BLOCK_Q)
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
