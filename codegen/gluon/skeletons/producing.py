"""The party that copies: queries, keys and values of every tile, into the slots that the others read."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mbarrier

from attnc.codegen.gluon.names import tma_load
from attnc.codegen.gluon.skeletons.seeing import NOWHERE, SHARE, key_begin, read_row, walk
from attnc.codegen.gluon.skeletons.tiles import next_slot, tile


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
    descriptors, q_ring, k_ring, v_ring, v_raw, batch, keys, k_place, v_place,
    ROW: gl.constexpr, GROUP: gl.constexpr, D: gl.constexpr, E: gl.constexpr, BLOCK_E: gl.constexpr, RINGS: gl.constexpr,
    BLOCK_Q: gl.constexpr, BLOCK_K: gl.constexpr, SLOTS: gl.constexpr, Q_SLOTS: gl.constexpr,
):  # fmt: skip
    """Copies what the other parties read. A fresh barrier counts as one whose last phase is over, so nobody waits at first."""
    q_desc, k_desc, v_desc = descriptors
    q_slots, q_full, q_empty = q_ring
    k_slots, k_full, k_empty = k_ring
    v_slots, v_full, v_empty = v_ring
    tiles = batch[5]
    rows, row_stride, stored, base, pinned, ring = keys
    k_begin, k_begin_stride, k_stride = k_place
    v_begin, v_begin_stride, v_stride = v_place
    PARTIES: gl.constexpr = BLOCK_Q // SHARE
    slot = 0
    phase = 1
    q_slot = 0
    q_phase = 1
    raw_phase = 0
    for t in range(gl.program_id(0), tiles, gl.num_programs(0)):
        sequence, group, head, row, query, count, start, slots = tile(t, batch, keys, GROUP, BLOCK_Q)
        if query < count:
            for party in gl.static_range(PARTIES):
                place = q_slot * PARTIES + party
                mbarrier.wait(q_empty.index(place), q_phase)
                mbarrier.expect(q_full.index(place), q_desc.block_type.nbytes)
                tma_load(q_desc, [row + party * SHARE, head, 0], q_full.index(place), q_slots.index(place))
            q_slot, q_phase = next_slot(q_slot, q_phase, Q_SLOTS)
            numbers = read_row(rows + sequence * row_stride + group * ROW)
            base_here = gl.load(base + sequence)
            k_row, k_head = stored_place(k_begin + sequence * k_begin_stride + group, k_stride, D)
            v_row, v_head = stored_place(v_begin + sequence * v_begin_stride + group, v_stride, E)
            whole = RINGS and gl.load(ring + group) < NOWHERE
            last = start + gl.minimum(count, query + BLOCK_Q) - 1
            visits = walk(numbers, start + query, last, base_here, slots, whole, batch, sequence, head, start, BLOCK_K)
            for step in range(gl.maximum(visits[-1], 1)):
                begin = key_begin(visits, step, base_here, slots, BLOCK_K)
                begin = gl.where((begin < slots) & (begin > -BLOCK_K), begin, 0)  # where there is nothing, anything
                mbarrier.wait(k_empty.index(slot), phase)
                mbarrier.expect(k_full.index(slot), k_desc.block_type.nbytes)
                tma_load(k_desc, [k_row + begin, k_head, 0], k_full.index(slot), k_slots.index(slot))
                mbarrier.wait(v_empty.index(slot), phase)
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
                slot, phase = next_slot(slot, phase, SLOTS)
