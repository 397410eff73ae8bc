"""How programs share the queries of a launch, and how parties count through the slots of a ring."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier


@gluon.jit
def queries_of(number, sequence, batch, BLOCK_Q: gl.constexpr):
    """A sequence's tile by its number: its first query, and one past the last query that tiles like it hold."""
    offsets = batch[0]
    count = (gl.load(offsets + sequence + 1) - gl.load(offsets + sequence)).to(gl.int32)
    return number * BLOCK_Q, count


@gluon.jit
def tile(t, batch, keys, GROUP: gl.constexpr, BLOCK_Q: gl.constexpr):
    """Of tile t: sequence, KV head, query head; its first query, as a row and in its sequence; one past the last query that it
    may hold; the sequence's past, its slots. The heads of a group side by side, as they read the same keys; the last queries,
    which see most, first.
    """
    offsets, past, sequences, kv_heads, blocks = batch[0], batch[1], batch[2], batch[3], batch[4]
    rows, row_stride, stored, base, pinned, ring = keys
    member = t % GROUP
    group = t // GROUP % kv_heads
    sequence = t // (GROUP * kv_heads) % sequences
    query, count = queries_of(blocks - 1 - t // (GROUP * kv_heads * sequences), sequence, batch, BLOCK_Q)
    begin = gl.load(offsets + sequence)
    start = gl.load(past + sequence).to(gl.int32)
    slots = gl.minimum(gl.load(stored + sequence), gl.load(pinned + group) + gl.load(ring + group))
    return sequence, group, group * GROUP + member, begin.to(gl.int32) + query, query, count, start, slots


@gluon.jit
def next_slot(slot, phase, SLOTS: gl.constexpr):
    """The slot after this one in a ring, and its phase."""
    slot += 1
    if slot == SLOTS:
        slot = 0
        phase ^= 1
    return slot, phase


@gluon.jit
def slot_after(count, SLOTS: gl.constexpr):
    """The slot in a ring of what comes after so many, and its phase: one number to keep in place of two."""
    return count % SLOTS, count // SLOTS & 1


@gluon.jit
def barriers(SLOTS: gl.constexpr, FILLERS: gl.constexpr, READERS: gl.constexpr):
    """Of a ring: which slots are full, which may be overwritten; and how many arrivals end a phase of each."""
    full = gl.allocate_shared_memory(gl.int64, [SLOTS, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [SLOTS, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(SLOTS):
        mbarrier.init(full.index(i), count=FILLERS)
        mbarrier.init(empty.index(i), count=READERS)
    return full, empty
