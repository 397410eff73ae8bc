"""The party that plans: which tiles there are, which keys they walk and where queries see all of them, ahead of the others."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier

from attnc.codegen.gluon.skeletons.producing import stored_place
from attnc.codegen.gluon.skeletons.seeing import NOWHERE, SHARE, key_begin, listed, position, read_row, sees_all, walk
from attnc.codegen.gluon.skeletons.spreading import tell_spread
from attnc.codegen.gluon.skeletons.telling import (
    FIRST_AT,
    HEAD_AT,
    K_HEAD_AT,
    K_ROW_AT,
    LEFT_AT,
    LISTED_AT,
    MASKED,
    NUMBERS_AT,
    ROW_AT,
    SLOTS_AT,
    STEPS_AT,
    V_HEAD_AT,
    V_ROW_AT,
    WHOLE,
    WORDS,
    tell,
)
from attnc.codegen.gluon.skeletons.tiles import slot_after, tile


@gluon.jit
def plan(
    tile_ring, step_ring, q_empty, batch, keys, k_place, v_place,
    ROW: gl.constexpr, GROUP: gl.constexpr, D: gl.constexpr, E: gl.constexpr, FAR: gl.constexpr, RINGS: gl.constexpr,
    BLOCK_Q: gl.constexpr, BLOCK_K: gl.constexpr, SLOTS: gl.constexpr, Q_SLOTS: gl.constexpr, AHEAD: gl.constexpr,
):  # fmt: skip
    """Tells of every tile and of every step. A tile's numbers stay as long as its queries; a step's until its values have been
    added, which who copies hears of SLOTS steps later. A fresh barrier counts as one whose last phase is over.
    """
    KEYS: gl.constexpr = gl.BlockedLayout([BLOCK_K // 32], [32], [1], [0])
    words, tile_full = tile_ring
    marks, spread, step_full, step_empty = step_ring
    tiles = batch[5]
    rows, row_stride, stored, base, pinned, ring = keys
    k_begin, k_begin_stride, k_stride = k_place
    v_begin, v_begin_stride, v_stride = v_place
    PARTIES: gl.constexpr = BLOCK_Q // SHARE
    planned = 0
    planned_tiles = 0
    for t in range(gl.program_id(0), tiles, gl.num_programs(0)):
        sequence, group, head, row, query, count, start, slots = tile(t, batch, keys, GROUP, BLOCK_Q)
        if query < count:
            place = sequence * row_stride + group * ROW
            numbers = read_row(rows + place)
            base_here = gl.load(base + sequence)
            stored_here = gl.load(stored + sequence)
            pinned_here = gl.load(pinned + group)
            ring_here = gl.load(ring + group)
            k_row, k_head = stored_place(k_begin + sequence * k_begin_stride + group, k_stride, D)
            v_row, v_head = stored_place(v_begin + sequence * v_begin_stride + group, v_stride, E)
            first = start + query
            last = start + gl.minimum(count, query + BLOCK_Q) - 1
            whole = RINGS and ring_here < NOWHERE
            visits = walk(numbers, first, last, base_here, slots, whole, batch, sequence, head, start, BLOCK_K)
            steps = gl.maximum(visits[-1], 1)
            slot, phase = slot_after(planned_tiles, Q_SLOTS)
            for party in gl.static_range(PARTIES):
                mbarrier.wait(q_empty.index(slot * PARTIES + party), phase ^ 1)
            at = slot * WORDS
            tell(words, at + STEPS_AT, steps)
            tell(words, at + ROW_AT, row)
            tell(words, at + HEAD_AT, head)
            tell(words, at + LEFT_AT, count - query)
            tell(words, at + FIRST_AT, first)
            tell(words, at + SLOTS_AT, slots)
            tell(words, at + NUMBERS_AT, place)
            tell(words, at + K_ROW_AT, k_row)
            tell(words, at + K_HEAD_AT, k_head)
            tell(words, at + V_ROW_AT, v_row)
            tell(words, at + V_HEAD_AT, v_head)
            tell(words, at + LISTED_AT, listed(visits))
            mbarrier.arrive(tile_full.index(slot), count=1)
            planned_tiles += 1
            for step in range(steps):
                begin = key_begin(visits, step, base_here, slots, BLOCK_K)
                step_slot = planned % AHEAD
                empty_slot, empty_phase = slot_after(planned + SLOTS, AHEAD)
                mbarrier.wait(step_empty.index(empty_slot), empty_phase ^ 1)
                there = (begin < slots) & (begin > -BLOCK_K)
                mark = step_slot * (PARTIES + 1)
                tell(marks, mark, gl.where(there, begin, 0))  # where there is nothing, anything
                masked = step < 0
                for party in gl.static_range(PARTIES):
                    own = first + party * SHARE
                    whole_here = sees_all(visits, step, numbers, own, begin, base_here, ring_here, slots, RINGS, BLOCK_K)
                    tell(marks, mark + 1 + party, gl.where(whole_here, WHOLE, MASKED))
                    masked |= whole_here == 0
                if masked:
                    keys_here = begin + gl.arange(0, BLOCK_K, layout=KEYS)
                    x = position(keys_here, base_here, stored_here, pinned_here, ring_here, slots, RINGS).to(gl.int32)
                    spread.index(step_slot * (FAR + 1)).store(x)
                    if FAR:
                        tell_spread(spread, step_slot * (FAR + 1) + 1, numbers, x)
                mbarrier.arrive(step_full.index(step_slot), count=1)
                planned += 1
    slot, phase = slot_after(planned_tiles, Q_SLOTS)
    for party in gl.static_range(PARTIES):
        mbarrier.wait(q_empty.index(slot * PARTIES + party), phase ^ 1)
    tell(words, slot * WORDS + STEPS_AT, 0)
    mbarrier.arrive(tile_full.index(slot), count=1)
