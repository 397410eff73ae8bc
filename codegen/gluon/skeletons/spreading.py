"""What far patterns ask of keys. Both are holes, filled by codegen/gluon/far.py."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl


@gluon.jit
def tell_spread(spread, place, numbers, x):
    """Tells of the keys at x their remainder by each stride and their quotient by each power's unit."""


@gluon.jit
def far_seen(numbers, i, j, spread, place, KEYS: gl.constexpr):
    """Whether the query at i sees the key at j, past or future, by a stride or a power, from what is told of j."""
    return i < j
