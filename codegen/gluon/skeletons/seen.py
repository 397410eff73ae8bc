"""Which queries see a block of keys, and how programs share the keys of a launch. Most are holes, as those of seeing.py."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from attnc.codegen.gluon.skeletons.seeing import NOWHERE, read_row


@gluon.jit
def seen_from(numbers, j):
    """The first query that sees key j, and no later one than for the next key."""
    return j


@gluon.jit
def seen_until(numbers, j):
    """One past the last query near key j that sees it."""
    sink, align, shift, back, ahead = numbers
    return ((j + shift + back) // align + 1) * align - shift


@gluon.jit
def visit_queries(numbers, first, last, start, count, BLOCK_Q: gl.constexpr):
    """Which query blocks see the keys at first..last: the first one, how many in all."""
    begin = gl.minimum(gl.maximum(seen_from(numbers, first) - start, 0), count)
    until = gl.where(first < numbers[0], NOWHERE, seen_until(numbers, last))
    end = gl.minimum(gl.maximum(until - start, 0), count)
    return begin // BLOCK_Q, gl.where(begin < end, gl.cdiv(end, BLOCK_Q) - begin // BLOCK_Q, 0)


@gluon.jit
def query_block_of(visits, step, count, BLOCK_Q: gl.constexpr):
    """The query block of a step."""
    first_block, steps = visits
    return first_block + step


@gluon.jit
def key_tile(batch, keys, pieces, ROW: gl.constexpr, GROUP: gl.constexpr, BLOCK_Q: gl.constexpr, BLOCK_K: gl.constexpr):
    """What a program works on: sequence, KV head, piece; its first key's slot and how many slots there are; the sequence's
    first row, its queries and its past; the position of slot 0; the row of numbers; the query blocks; whether others share the
    keys; its turns, each a query block of one head. The first keys, which most queries see, first, and their pieces before all.
    """
    offsets, past, sequences, kv_heads = batch
    rows, row_stride, stored, base = keys
    program = gl.program_id(0)
    group = program % kv_heads
    sequence = program // kv_heads % sequences
    piece = gl.minimum(program // (kv_heads * sequences), pieces - 1)
    begin = (program // (kv_heads * sequences) - piece) * BLOCK_K
    slots = gl.load(stored + sequence)
    first_row = gl.load(offsets + sequence)
    count = (gl.load(offsets + sequence + 1) - first_row).to(gl.int32)
    numbers = read_row(rows + sequence * row_stride + group * ROW)
    start = gl.load(past + sequence).to(gl.int32)
    origin = gl.load(base + sequence)
    last = origin + gl.minimum(slots, begin + BLOCK_K) - 1
    visits = visit_queries(numbers, origin + begin, last, start, count, BLOCK_Q)
    shared_out = (pieces > 1) & (begin == 0) & (origin < numbers[0])
    turns = gl.where(shared_out | (begin > 0) | (piece == 0), visits[-1] * GROUP, 0)
    from_turn = gl.where(shared_out, turns * piece // pieces, 0)
    to_turn = gl.where(shared_out, turns * (piece + 1) // pieces, turns)
    place = (sequence, group, piece, begin, slots, first_row.to(gl.int32), count, start, origin)
    return place, numbers, visits, shared_out, from_turn, to_turn
