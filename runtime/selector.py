"""One choice of units by content, as numbers and words; compiler/families.py says which of them change code.

Legend: T new tokens; C choosers: query heads, KV heads, or one for the layer; m the most units that any of them keeps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from torch import Tensor

from .sizes import Share

if TYPE_CHECKING:
    from .scorers import Net
    from .sources import Source

Pool = Literal["sum", "max", "mean", "min"]


@dataclass(frozen=True)
class Sublinear:
    """`k` units, and k (length / start)^exponent in a sequence of more than `start` tokens, rounded down."""

    k: int
    start: int
    exponent: float

    def of(self, length: int) -> int:
        """The number for a sequence of `length` tokens."""
        return self.k if length <= self.start else int(self.k * (length / self.start) ** self.exponent)


@dataclass(frozen=True)
class Selector:
    """Which units of `unit` tokens a query keeps. A unit is a candidate as soon as all of it has been read.

    diagonals   a unit is no token but a distance back from the query
    keys        what scores: each token's `own` key, the `mean` of every run of `span` tokens, its `bounds` in each channel, or
                its keys `joined` to one, which as many queries score, joined in reverse; a run begins every `step` tokens.
                `indexer`: queries and keys of its own; `learned`: pooled keys and queries through maps; `summary`: the
                keys of another branch's chunks. `chunks`: nothing is chosen, every run is one key and value
                (chunks_pooled.py)
    score       `dot`: the product with the query (of bounds: the largest that a key within them could have); `softmax`: its
                share of the mass of all runs that have been read, or of coarser ones, lse = (span, step)
    shared      who shares a choice: nobody (`head`), a KV head's query heads (`group`) or all (`layer`); `heads`: how their
                scores become one
    fold        how the scores of the runs that touch a unit become one
    asks        `each` query for itself; a `block` of `many` by the mean of every `every`-th of its queries; the `last` of so
                many for all, their scores added
    top_k, top_p, threshold  one of them: so many units, or a share of them; units with that share (0..1) of the mass; units
                with more than that score. `at_least`, `at_most` bound their number
    refresh     decoding keeps a choice for so many steps, or (cosine, steps): looks every so many steps whether the query still
                has that cosine with the one that chose; the first to fire. Tokens after a choice stay visible until the next
    dense       the step that chooses sees everything
    all_seen    (`first` or `last`, n): so many queries of a text that see everything
    previous    the queries and keys of the nearest earlier layer that hands its own on score
    overlap     units of which the intervals of the group show all that the query may see compete (`ranked`), come first
                (`counted`), or are left out (`excluded`)
    held        the name below which a cache holds the runs' keys; empty where they are made anew
    reference   the same in plain tensors, from reference.py: see `Reference`
    net, source  what a call brings: what scores by weights of its own, and whose queries and keys score
    """

    unit: int = 1
    diagonals: bool = False
    keys: Literal["own", "mean", "bounds", "joined", "indexer", "learned", "summary", "chunks"] = "own"
    span: int = 1
    step: int = 1
    score: Literal["dot", "softmax"] = "dot"
    lse: tuple[int, int] | None = None
    shared: Literal["head", "group", "layer"] = "group"
    heads: Pool = "sum"
    fold: Literal["max", "sum"] = "max"
    asks: Literal["each", "block", "last"] = "each"
    many: int = 1
    every: int = 1
    top_k: int | Share | Sublinear | None = None
    top_p: float | None = None
    threshold: float | None = None
    at_least: int = 1
    at_most: int | None = None
    overlap: Literal["ranked", "counted", "excluded"] = "ranked"
    refresh: tuple[int | tuple[float, int], ...] = ()
    dense: bool = False
    all_seen: tuple[Literal["first", "last"], int] | None = None
    previous: bool = False
    held: str = ""
    reference: Callable[..., tuple[Tensor, ...]] | None = field(default=None, compare=False)
    net: Net | None = field(default=None, compare=False)
    source: Source | None = field(default=None, compare=False)

    def most(self, length: int, units: int) -> int:
        """How many units a query keeps at most, of so many in a sequence of `length` tokens."""
        bound = units if self.at_most is None else min(units, self.at_most)
        wanted = self.wanted(length)
        return bound if wanted is None else min(bound, max(wanted, self.at_least))

    def wanted(self, length: int) -> int | None:
        """The number that `top_k` asks for, or None where content decides about the number."""
        match self.top_k:
            case Share():
                return self.top_k.of(length // self.unit)
            case Sublinear():
                return self.top_k.of(length)
            case _:
                return self.top_k


@dataclass(frozen=True, eq=False)
class Lists:
    """What the queries of one sequence keep: data of a launch, beside its intervals. r rows, T queries.

    index  [C, r, m] int32, numbers of units in rising order; from count on anything
    count  [C, r] int32; -1 where a candidate's score is NaN: then nothing can be chosen, and the output is NaN too
    row    [T], the row of each query; None: its own
    since  [T], each query sees all tokens after this one too; None: of none
    """

    selector: Selector
    index: Tensor
    count: Tensor
    row: Tensor | None = None
    since: Tensor | None = None

    def of(self, begin: int, end: int) -> Lists:
        """The lists of some of the queries, a row each."""
        since = None if self.since is None else self.since[begin:end]
        row = slice(begin, end) if self.row is None else self.row[begin:end]
        return Lists(self.selector, self.index[:, row], self.count[:, row], since=since)
