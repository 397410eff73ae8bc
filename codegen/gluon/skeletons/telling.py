"""What the party that plans tells the others in shared memory: the numbers of a tile, and which keys its steps walk."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

WORDS = gl.constexpr(12)  # of a tile, in this order
STEPS_AT = gl.constexpr(0)  # how many, at least 1; 0: there are no more tiles
ROW_AT = gl.constexpr(1)  # of its first query
HEAD_AT = gl.constexpr(2)
LEFT_AT = gl.constexpr(3)  # queries of its sequence from its first one on
FIRST_AT = gl.constexpr(4)  # position of its first query
SLOTS_AT = gl.constexpr(5)
NUMBERS_AT = gl.constexpr(6)  # where the row of numbers is
K_ROW_AT = gl.constexpr(7)  # where the keys begin, as the copies count
K_HEAD_AT = gl.constexpr(8)
V_ROW_AT = gl.constexpr(9)
V_HEAD_AT = gl.constexpr(10)
LISTED_AT = gl.constexpr(11)  # steps of a list, which are walked first; below 0 where no list could be made

# What is told of a step, for each party: whether it sees all keys, or has to look at what is told of each.
WHOLE = gl.constexpr(0)
MASKED = gl.constexpr(1)


@gluon.jit
def tell(words, place, number):
    """Writes one number; by one warp."""
    LINE: gl.constexpr = gl.BlockedLayout([1], [32], [1], [0])
    words.index(place).store(gl.full([1], number, gl.int32, LINE))


@gluon.jit
def told(words, place, WARPS: gl.constexpr):
    """One number, as a party of so many warps reads it."""
    LINE: gl.constexpr = gl.BlockedLayout([1], [32], [WARPS], [0])
    return gl.sum(words.index(place).load(LINE), 0)
