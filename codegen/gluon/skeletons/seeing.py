"""Which keys a query sees, and which blocks of keys are walked for it.

Most are holes, filled from the numbers that a row holds, by the texts of Triton's kernels in Gluon's names.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from attnc.codegen.gluon.skeletons.spreading import far_seen
from attnc.codegen.gluon.skeletons.telling import FIRST_AT, NUMBERS_AT, told

HIDDEN = gl.constexpr(float("-inf"))  # score of a key that is not seen
NOWHERE = gl.constexpr(2**30)  # position of a slot that holds no key; also "no bound"
SHARE = gl.constexpr(64)  # queries of one party that attends


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
    return gl.where((slot >= 0) & (slot < slots), base + j, NOWHERE)


@gluon.jit
def walk(numbers, first, last, base, slots, whole, batch, sequence, head, start, BLOCK_K: gl.constexpr):
    """What a tile of queries first..last walks; how many steps, last. The head and the sequence's past say nothing here."""
    return visit(numbers, first, last, base, slots, whole, BLOCK_K)


@gluon.jit
def key_begin(visits, step, base, slots, BLOCK_K: gl.constexpr):
    """The first slot of a step's keys, the last step first; one past all keys where nothing is to be seen."""
    block = block_of(visits, gl.maximum(visits[-1] - 1 - step, 0), base, slots, BLOCK_K)
    return gl.where(visits[-1] > 0, block, gl.cdiv(slots, BLOCK_K)) * BLOCK_K


@gluon.jit
def listed(visits):
    """Steps of a list; there is none."""
    return 0


@gluon.jit
def sees_all(
    visits, step, numbers, first, begin, base, ring, slots, RINGS: gl.constexpr, BLOCK_K: gl.constexpr
):  # fmt: skip
    """Whether the party whose first query stands at `first` sees all keys of a step, which begin at this slot."""
    whole = solid(numbers, first, first + SHARE - 1, base + begin, base + begin + BLOCK_K) & (begin + BLOCK_K <= slots)
    if RINGS:
        whole &= ring == NOWHERE
    return whole


@gluon.jit
def shown(numbers, i, j, spread, place, FAR: gl.constexpr, KEYS: gl.constexpr):
    """Whether the query at i sees the key at j, of which far patterns know what is told from `place` on."""
    seen = (j < numbers[0]) | ((j >= lower(numbers, i)) & (j < upper(numbers, i)))
    if FAR:
        seen |= far_seen(numbers, i, j, spread, place, KEYS)
    return seen & (j < horizon(i))


@gluon.jit
def hide(
    score, step, party, rows, words, at, spread, place, FAR: gl.constexpr, SCORES: gl.constexpr
):  # fmt: skip
    """HIDDEN for keys that are not seen. A tile's words stand from `at` on, and what is told of keys from `place` on. All are
    read here alone: blocks all of whose keys are seen come by without them, and nothing of them stays in registers.
    """
    KEYS: gl.constexpr = gl.SliceLayout(0, SCORES)
    numbers = read_row(rows + told(words, at + NUMBERS_AT, 4))
    i = told(words, at + FIRST_AT, 4) + party * SHARE + gl.arange(0, SHARE, layout=gl.SliceLayout(1, SCORES))[:, None]
    j = spread.index(place).load(KEYS)[None, :]
    return gl.where(shown(numbers, i, j, spread, place + 1, FAR, KEYS), score, HIDDEN)
