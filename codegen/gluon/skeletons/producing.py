"""The party that copies: queries, keys and values of every tile, into the slots that the others read."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mbarrier

from attnc.codegen.gluon.names import tma_load
from attnc.codegen.gluon.skeletons.seeing import SHARE
from attnc.codegen.gluon.skeletons.telling import (
    HEAD_AT,
    K_HEAD_AT,
    K_ROW_AT,
    ROW_AT,
    SLOTS_AT,
    STEPS_AT,
    V_HEAD_AT,
    V_ROW_AT,
    WORDS,
    told,
)
from attnc.codegen.gluon.skeletons.tiles import slot_after


@gluon.jit
def clear(values, first, until, BLOCK_K: gl.constexpr, BLOCK_E: gl.constexpr):
    """Zeros in all rows but first..until - 1; by one warp."""
    layout: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [1, 1], [1, 0])
    for row in gl.static_range(0, BLOCK_K, 8):
        if (row < first) | (row + 8 > until):
            for column in gl.static_range(0, BLOCK_E, 64):
                some = values.slice(row, 8, 0).slice(column, 64, 1)
                x = some.load(layout)
                line = row + gl.arange(0, 8, layout=gl.SliceLayout(1, layout))
                some.store(gl.where(((line >= first) & (line < until))[:, None], x, gl.full([8, 64], 0.0, x.dtype, layout)))


@gluon.jit
def stored_place(begin, stride, WIDTH: gl.constexpr):
    """The row and the head at which the keys of a sequence and a head begin: in units of a width these are short numbers."""
    place = (gl.load(begin) // WIDTH).to(gl.int32)
    heads = stride // WIDTH
    return place // heads, place % heads


@gluon.jit
def produce(
    descriptors, tile_ring, step_ring, q_ring, k_ring, v_ring, v_raw,
    BLOCK_E: gl.constexpr, BLOCK_Q: gl.constexpr, BLOCK_K: gl.constexpr, SLOTS: gl.constexpr, Q_SLOTS: gl.constexpr,
    AHEAD: gl.constexpr,
):  # fmt: skip
    """Copies what the other parties read. A tile that has been planned has free slots for its queries. A fresh barrier counts
    as one whose last phase is over, so nobody waits at first.
    """
    words, tile_full = tile_ring
    marks, spread, step_full, step_empty = step_ring
    q_desc, k_desc, v_desc = descriptors
    q_slots, q_full, q_empty = q_ring
    k_slots, k_full, k_empty = k_ring
    v_slots, v_full, v_empty = v_ring
    PARTIES: gl.constexpr = BLOCK_Q // SHARE
    copied = 0
    copied_tiles = 0
    raw_phase = 0
    mbarrier.wait(tile_full.index(0), 0)
    steps = told(words, STEPS_AT, 1)
    while steps > 0:
        q_slot = copied_tiles % Q_SLOTS
        at = q_slot * WORDS
        row = told(words, at + ROW_AT, 1)
        head = told(words, at + HEAD_AT, 1)
        for party in gl.static_range(PARTIES):
            place = q_slot * PARTIES + party
            mbarrier.expect(q_full.index(place), q_desc.block_type.nbytes)
            tma_load(q_desc, [row + party * SHARE, head, 0], q_full.index(place), q_slots.index(place))
        slots = told(words, at + SLOTS_AT, 1)
        k_row = told(words, at + K_ROW_AT, 1)
        k_head = told(words, at + K_HEAD_AT, 1)
        v_row = told(words, at + V_ROW_AT, 1)
        v_head = told(words, at + V_HEAD_AT, 1)
        for _ in range(steps):
            slot, phase = slot_after(copied, SLOTS)
            step_slot, step_phase = slot_after(copied, AHEAD)
            mbarrier.wait(step_full.index(step_slot), step_phase)
            begin = told(marks, step_slot * (PARTIES + 1), 1)
            mbarrier.wait(k_empty.index(slot), phase ^ 1)
            mbarrier.expect(k_full.index(slot), k_desc.block_type.nbytes)
            tma_load(k_desc, [k_row + begin, k_head, 0], k_full.index(slot), k_slots.index(slot))
            mbarrier.wait(v_empty.index(slot), phase ^ 1)
            mbarrier.arrive(step_empty.index(step_slot), count=1)  # nobody reads of the step any more whose values went
            if (begin >= 0) & (begin + BLOCK_K <= slots):
                mbarrier.expect(v_full.index(slot), v_desc.block_type.nbytes)
                tma_load(v_desc, [v_row + begin, v_head, 0], v_full.index(slot), v_slots.index(slot))
            else:
                mbarrier.expect(v_raw.index(0), v_desc.block_type.nbytes)
                tma_load(v_desc, [v_row + begin, v_head, 0], v_raw.index(0), v_slots.index(slot))
                mbarrier.wait(v_raw.index(0), raw_phase)
                raw_phase ^= 1
                clear(v_slots.index(slot).reshape([BLOCK_K, BLOCK_E]), -begin, slots - begin, BLOCK_K, BLOCK_E)
                fence_async_shared()
                mbarrier.arrive(v_full.index(slot), count=1)
            copied += 1
        copied_tiles += 1
        q_slot, q_phase = slot_after(copied_tiles, Q_SLOTS)
        mbarrier.wait(tile_full.index(q_slot), q_phase)
        steps = told(words, q_slot * WORDS + STEPS_AT, 1)
