"""Key sets as arithmetic: the form in which the softmax family's kernels understand every static union of key sets.

A union is `sink` (the first keys), some `Near` intervals that hold the query itself, and some far patterns. Whatever the
union, a kernel walks key blocks and asks one predicate; nothing here or there is ever of size T x T.

    lower(i) = floor((i + shift) / align) * align - shift - back
    upper(i) = i + 1                                                       causal
             = (floor((i + shift) / align) + 1) * align - shift + ahead    otherwise
    visible(i, j) = j in [lower(i), upper(i))  for any Near
                  or j < sink
                  or (i - j) % n == 0          for any stride n
                  or |floor(i / n) - floor(j / n)| in {0, 1, 2, 4, ...}    for any power_of_two n
    and j <= i if causal
"""

from __future__ import annotations

from attnc.compiler.value import Share, Tokens, Value

UNBOUNDED = 2**30
"""More tokens than any sequence has; a Near interval with this `back` reaches the first key."""


class Near(Value):
    """An interval of keys around the query: its block of `align` (blocks begin `shift` earlier), `back` more before, `ahead` after.

    `align`, `back` and `ahead` count tokens or are shares of the length; `shift` is a share of `align`.
    """

    align: Tokens = 1
    shift: Share | None = None
    back: Tokens = 0
    ahead: Tokens = 0


class Intervals(Value):
    """One union of static key sets, in normal form: no part is contained in another, parts are sorted."""

    sink: Tokens = 0
    near: tuple[Near, ...] = ()
    strides: tuple[int, ...] = ()
    powers: tuple[int, ...] = ()
    causal: bool = True
