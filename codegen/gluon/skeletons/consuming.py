"""The parties that attend: 64 of a tile's queries each."""

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
from attnc.codegen.gluon.skeletons.seeing import HIDDEN, SHARE, hide
from attnc.codegen.gluon.skeletons.telling import HEAD_AT, LEFT_AT, MASKED, ROW_AT, STEPS_AT, WORDS, told
from attnc.codegen.gluon.skeletons.tiles import slot_after
from attnc.codegen.gluon.skeletons.weighing import LOG2E, add_sink_logit, adjust_score, narrow, thread_sums, weigh

LN2 = gl.constexpr(0.6931471805599453)
FLOOR = gl.constexpr(-1e29)  # least maximum beside a sink logit, which may be -inf
LEAST = gl.constexpr(1e-20)  # least scale: HIDDEN * 0 would be NaN


@gluon.jit
def finish(
    party: gl.constexpr, out, best, sums, factor, row, head, left, outputs, sink_logit, kv_heads,
    GROUP: gl.constexpr, E: gl.constexpr, BLOCK_E: gl.constexpr, DIRECT: gl.constexpr,
    LINES: gl.constexpr, OUT: gl.constexpr,
):  # fmt: skip
    """Writes what a party has of a tile, of which `left` queries are left of the sequence. DIRECT: from registers, where shared
    memory has no place for it.
    """
    o_desc, o_slots, o, lse = outputs
    dtype: gl.constexpr = o_desc.dtype
    OUT_LINES: gl.constexpr = gl.SliceLayout(1, OUT)
    best = gl.where(best == HIDDEN, FLOOR, best * factor)
    peak, norm = add_sink_logit(best, gl.convert_layout(gl.sum(sums, 1), LINES), sink_logit, head)
    safe = gl.where(norm != 0.0, norm, 1.0)
    result = gl.where(norm != 0.0, (peak + gl.log2(safe)) * LN2, HIDDEN)
    out = (out * gl.convert_layout(gl.exp2(best - peak) / safe, OUT_LINES)[:, None]).to(dtype)
    heads = kv_heads * GROUP
    row += party * SHARE
    left -= party * SHARE
    line = gl.arange(0, SHARE, layout=LINES)
    gl.store(lse + (row + line) * heads + head, result, mask=line < left)
    if not DIRECT and left >= SHARE:
        tma.store_wait(0)
        block_barrier()
        o_slots.index(party).reshape([SHARE, BLOCK_E]).store(out)
        fence_async_shared()
        tma_store(o_desc, [row, head, 0], o_slots.index(party))
    else:
        out_line = gl.arange(0, SHARE, layout=OUT_LINES)
        e = gl.arange(0, BLOCK_E, layout=gl.SliceLayout(0, OUT))
        places = ((row + out_line) * heads + head).to(gl.int64) * E
        gl.store(o + places[:, None] + e[None, :], out, mask=(out_line < left)[:, None] & (e < E)[None, :])


@gluon.jit
def seen(
    product, step, masked, party, scale, cap, rows, words, at, spread, place,
    CAP: gl.constexpr, FAR: gl.constexpr, SCORES: gl.constexpr,
):  # fmt: skip
    """The scores of a step's keys, HIDDEN where a key is not seen."""
    score = product
    if CAP:
        score = adjust_score(product, scale, cap)
    if masked == MASKED:
        score = hide(score, step, party, rows, words, at, spread, place, FAR, SCORES)
    return score


@gluon.jit
def consume(
    party: gl.constexpr, tile_ring, steps_told, q_ring, k_ring, v_ring, kv_heads, rows, outputs, scale, sink_logit, cap,
    FAR: gl.constexpr, GROUP: gl.constexpr, E: gl.constexpr, BLOCK_D: gl.constexpr, BLOCK_E: gl.constexpr, CAP: gl.constexpr,
    BLOCK_Q: gl.constexpr, BLOCK_K: gl.constexpr, SLOTS: gl.constexpr, Q_SLOTS: gl.constexpr, AHEAD: gl.constexpr,
    PIN: gl.constexpr, DIRECT: gl.constexpr,
):  # fmt: skip
    """Attends 64 of each tile's queries. Scores of a block and values of the one before are multiplied at once; the block
    before a tile's first one is the last one of the tile before, which is written only then. A step's mark is there when its
    keys are: who copies them has read it.
    """
    words, tile_full = tile_ring
    marks, spread = steps_told
    q_slots, q_full, q_empty = q_ring
    k_slots, k_full, k_empty = k_ring
    v_slots, v_full, v_empty = v_ring
    SCORES: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_K, 16])
    OUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_E, 16])
    OPERAND: gl.constexpr = gl.DotOperandLayout(0, OUT, 2)
    LINES: gl.constexpr = gl.SliceLayout(1, SCORES)
    OUT_LINES: gl.constexpr = gl.SliceLayout(1, OUT)
    dtype: gl.constexpr = outputs[0].dtype
    EXACT: gl.constexpr = dtype == gl.float16
    PARTIES: gl.constexpr = BLOCK_Q // SHARE
    nothing = gl.zeros([SHARE, BLOCK_K], gl.float32, SCORES)
    done = 0  # steps whose scores have been made
    done_tiles = 0
    open_tiles = 0  # one at most, whose last values are not added yet
    row = 0
    head = 0
    left = 0
    factor = 1.0
    best = gl.full([SHARE], HIDDEN, gl.float32, LINES)
    sums = thread_sums(nothing, BLOCK_K)
    out = gl.zeros([SHARE, BLOCK_E], gl.float32, OUT)
    p = gl.zeros([SHARE, BLOCK_K], dtype, OPERAND)
    mbarrier.wait(tile_full.index(0), 0)
    steps = told(words, STEPS_AT, 4)
    while steps > 0:
        q_slot, q_phase = slot_after(done_tiles, Q_SLOTS)
        k_slot, k_phase = slot_after(done, SLOTS)
        slot, phase = slot_after(gl.maximum(done - 1, 0), SLOTS)  # of the block whose values are added next
        told_at = done % AHEAD
        at = q_slot * WORDS
        scale_here = gl.load(scale + told(words, at + HEAD_AT, 4))
        if CAP:
            next_factor = 1.0
        else:
            next_factor = gl.maximum(scale_here * LOG2E, LEAST)
        place = q_slot * PARTIES + party
        q = q_slots.index(place).reshape([SHARE, BLOCK_D])
        mbarrier.wait(q_full.index(place), q_phase)

        mbarrier.wait(k_full.index(k_slot), k_phase)
        k = k_slots.index(k_slot).reshape([BLOCK_K, BLOCK_D]).permute((1, 0))
        product = warpgroup_mma(q, k, nothing, use_acc=False, is_async=True)
        masked = told(marks, told_at * (PARTIES + 1) + 1 + party, 4)
        mbarrier.wait(v_full.index(slot), phase, pred=open_tiles > 0)
        v = v_slots.index(slot).reshape([BLOCK_K, BLOCK_E])
        adding = warpgroup_mma(p, v, out, is_async=True)  # where no tile is open, of anything: nobody reads it
        score = warpgroup_mma_wait(1, deps=[product])
        mbarrier.arrive(k_empty.index(k_slot), count=1)
        score = seen(
            score, 0, masked, party, scale_here, cap, rows, words, at, spread, told_at * (FAR + 1), CAP, FAR,
            SCORES,
        )  # fmt: skip
        unseen = gl.full([SHARE], HIDDEN, gl.float32, LINES)
        weight, fade, next_best, next_sums = weigh(score, unseen, thread_sums(nothing, BLOCK_K), next_factor, EXACT, BLOCK_K)
        p_next = narrow(weight, dtype, OPERAND)
        done += 1
        mbarrier.wait(q_full.index(place), q_phase)  # over long since; ends the basic block, as below
        out, p = warpgroup_mma_wait(0, deps=[adding, p])
        if open_tiles > 0:
            mbarrier.arrive(v_empty.index(slot), count=1)
            finish(
                party, out, best, sums, factor, row, head, left, outputs, sink_logit, kv_heads,
                GROUP, E, BLOCK_E, DIRECT, LINES, OUT,
            )  # fmt: skip
        open_tiles = 1
        row = told(words, at + ROW_AT, 4)
        head = told(words, at + HEAD_AT, 4)
        left = told(words, at + LEFT_AT, 4)
        factor = next_factor
        best = next_best
        sums = next_sums
        out = gl.zeros([SHARE, BLOCK_E], gl.float32, OUT)
        p = p_next

        if PIN:
            k_slot, k_phase = slot_after(done, SLOTS)
            mbarrier.wait(k_full.index(k_slot), k_phase, pred=steps > 1)
        for step in range(1, steps):
            k_slot, k_phase = slot_after(done, SLOTS)
            slot, phase = slot_after(done - 1, SLOTS)
            told_at = done % AHEAD
            if not PIN:
                mbarrier.wait(k_full.index(k_slot), k_phase)
            k = k_slots.index(k_slot).reshape([BLOCK_K, BLOCK_D]).permute((1, 0))
            product = warpgroup_mma(q, k, nothing, use_acc=False, is_async=True)
            masked = told(marks, told_at * (PARTIES + 1) + 1 + party, 4)
            mbarrier.wait(v_full.index(slot), phase)
            v = v_slots.index(slot).reshape([BLOCK_K, BLOCK_E])
            adding = warpgroup_mma(p, v, out, is_async=True)
            score = warpgroup_mma_wait(1, deps=[product])
            mbarrier.arrive(k_empty.index(k_slot), count=1)
            score = seen(
                score, step, masked, party, scale_here, cap, rows, words, at, spread, told_at * (FAR + 1), CAP, FAR,
                SCORES,
            )  # fmt: skip
            weight, fade, best, sums = weigh(score, best, sums, factor, EXACT, BLOCK_K)
            p_next = narrow(weight, dtype, OPERAND)
            done += 1
            if PIN:
                # ends the basic block: else ptxas puts the wait for the values above the weights, and nothing overlaps
                k_slot, k_phase = slot_after(done, SLOTS)
                mbarrier.wait(k_full.index(k_slot), k_phase, pred=step + 1 < steps)
            out, p = warpgroup_mma_wait(0, deps=[adding, p])  # with p, whose registers are read until then
            mbarrier.arrive(v_empty.index(slot), count=1)
            out = out * gl.convert_layout(fade, OUT_LINES)[:, None]
            p = p_next
        mbarrier.arrive(q_empty.index(place), count=1)
        done_tiles += 1
        q_slot, q_phase = slot_after(done_tiles, Q_SLOTS)
        mbarrier.wait(tile_full.index(q_slot), q_phase)
        steps = told(words, q_slot * WORDS + STEPS_AT, 4)

    if open_tiles > 0:
        slot, phase = slot_after(done - 1, SLOTS)
        mbarrier.wait(v_full.index(slot), phase)
        v = v_slots.index(slot).reshape([BLOCK_K, BLOCK_E])
        adding = warpgroup_mma(p, v, out, is_async=True)
        out, p = warpgroup_mma_wait(0, deps=[adding, p])
        mbarrier.arrive(v_empty.index(slot), count=1)
        finish(
            party, out, best, sums, factor, row, head, left, outputs, sink_logit, kv_heads,
            GROUP, E, BLOCK_E, DIRECT, LINES, OUT,
        )  # fmt: skip
    tma.store_wait(0)
