"""The narrow waist between kinds and machines: families of kernels, and what is fixed when one of a family is emitted.

A kind of the language names a family and fills in these values; a backend writes kernels for them. Neither knows the other,
and neither ever sees text of a spec: everything here is a bounded number or a truth value.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from attnc.compiler.value import Share

if TYPE_CHECKING:
    from attnc.compiler.intervals import Intervals


@dataclass(frozen=True)
class Softmax:
    """One kernel of the softmax family: o_i = softmax_j(adjust(scale q_i . k_j), where j is kept) v_j over intervals of keys.

    Fixed here is what changes the code; lengths, windows, sinks, strides and batch sizes are numbers of the launch, and one
    kernel serves every head whose key set has at most these parts.

    nears, strides, powers  how many parts of each sort a row of numbers holds (compiler/intervals.py says what they mean)
    causal                  whether a query sees nothing after itself
    head_width, value_width of a query or key and of a value, 1..256
    group                   query heads for each KV head
    cap                     whether scores pass a soft cap, c tanh(s / c)
    sink_logit              whether each head has one more logit without a value
    exponent                None: a softmax; else weights are softplus masses, re-weighted to this power, 1..64, and the numbers
                            of a query are found by a kernel of `masses`, whose exponent is 0
    chunks                  None: keys are tokens; else (span, step): one key for every complete chunk of `span` tokens, begun
                            every `step`. A query sees those that it has read whole and of which its row shows no token
    """

    nears: int
    strides: int = 0
    powers: int = 0
    causal: bool = True
    head_width: int = 64
    value_width: int = 64
    group: int = 1
    cap: bool = False
    sink_logit: bool = False
    exponent: float | None = None
    chunks: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        limits = (
            *((count, 0, 64) for count in (self.nears, self.strides, self.powers)),
            *((width, 1, 256) for width in (self.head_width, self.value_width)),
            (self.group, 1, 1024),
        )
        assert all(type(number) is int and least <= number <= most for number, least, most in limits), self
        assert all(type(flag) is bool for flag in (self.causal, self.cap, self.sink_logit)), self
        if self.exponent is not None:
            assert type(self.exponent) is float, self
            assert self.exponent == 0 or 1 <= self.exponent <= 64, self
            assert not self.sink_logit, "a sink logit has no meaning among softplus masses"
        if self.chunks is not None:
            span, step = self.chunks
            assert type(span) is type(step) is int, self
            assert 1 <= step <= span <= 65536, self
            assert self.causal, "a chunk has been read"
            assert (self.far, self.exponent) == (0, None), "what is seen lies between first and near tokens"

    @classmethod
    def of(
        cls,
        unions: Iterable[Intervals],
        head_width: int,
        value_width: int,
        group: int,
        cap: bool,
        sink_logit: bool,
        exponent: float | None = None,
    ) -> Softmax:
        """The smallest kernel that serves all of `unions`."""
        parts = tuple(unions)
        causal = {union.causal for union in parts}
        assert len(causal) == 1, "the heads of one launch are all causal or none is"
        return cls(
            nears=max(len(union.near) for union in parts),
            strides=max(len(union.strides) for union in parts),
            powers=max(len(union.powers) for union in parts),
            causal=causal.pop(),
            head_width=head_width,
            value_width=value_width,
            group=group,
            cap=cap,
            sink_logit=sink_logit,
            exponent=exponent,
        )

    @property
    def masses(self) -> Softmax:
        """The kernel that sums a query's softplus masses; a key's first channel stands for its value, which nobody reads."""
        assert self.exponent, "re-weighted masses have a sum"
        return replace(self, exponent=0.0, value_width=1)

    @property
    def far(self) -> int:
        """How many parts reach back without end but with gaps."""
        return self.strides + self.powers


@dataclass(frozen=True)
class Recurrence:
    """One kernel of the family of matrix states. For every token of a head, with a state S [K, V] in fp32, in this order:

        S <- exp(decay) S                                    decay <= 0, a logarithm: by row of S where it is a vector
        S <- S + k (write * v - S^T (erase * k))^T           the delta rule; `add`: S <- S + k v^T
        o  = scale S^T q                                     `normalize`: S^T q / (z . q), z the same sum of keys alone

    Fixed here is what changes the code; lengths, batch sizes, numbers of heads and decays are numbers of the launch.

    decay           none; `head`: a number for each head; `scalar`, `vector`: of the token, one a head or one for each of K
    update          `add` or `delta`
    erase, write    delta: strengths of the token, one a head or one for each of K (erase) and V (write)
    normalize       add: whether the output is divided by the sum of its weights
    key_width, value_width  K and V, 1..1024; kernels take K up to 256
    """

    decay: Literal["none", "head", "scalar", "vector"] = "none"
    update: Literal["add", "delta"] = "add"
    erase: Literal["scalar", "vector"] = "scalar"
    write: Literal["scalar", "vector"] = "scalar"
    normalize: bool = False
    key_width: int = 64
    value_width: int = 64

    def __post_init__(self) -> None:
        assert self.decay in ("none", "head", "scalar", "vector"), self
        assert self.update in ("add", "delta"), self
        assert {self.erase, self.write} <= {"scalar", "vector"}, self
        assert type(self.normalize) is bool, self
        assert not (self.normalize and self.update == "delta"), "the delta rule has no sum to divide by"
        assert all(type(width) is int and 1 <= width <= 1024 for width in (self.key_width, self.value_width)), self


@dataclass(frozen=True)
class Channels:
    """One kernel of the family of channel states. For every token of a channel, with M numbers h in fp32:

        h[m] <- exp(step rates[m]) h[m] + write[m] u         rates of the channel; step, u of token and channel
        y    =  Re(sum over m of weights[m] read[m] h[m])    write, read of the token; weights of the channel

    step, write, read, weights  whether there is such a thing; else it is 1
    complex_states  whether rates, weights and h are complex
    state           M, 1..1024; kernels take up to 256
    """

    step: bool = True
    write: bool = True
    read: bool = True
    weights: bool = False
    complex_states: bool = False
    state: int = 16

    def __post_init__(self) -> None:
        flags = (self.step, self.write, self.read, self.weights, self.complex_states)
        assert all(type(flag) is bool for flag in flags), self
        assert type(self.state) is int, self
        assert 1 <= self.state <= 1024, self


RateOf = Literal["none", "number", "head", "token"]


@dataclass(frozen=True)
class FastWeights:
    """One kernel of the family of nets that learn while they read. For every token of a head, with a net M of weights W in
    fp32, momentum S of the same shapes, and W_0 what W was when the token's chunk began, in this order:

        u = gradient of |M(k) - v|^2 at W_0              `after_decay`: at W_0 decayed up to the token
        S <- momentum S - lr u;  W <- (1 - decay) W + S
        o = M(q) at W_0                                  `after_write`: at W

    Before a chunk writes, rows of W get the norms that they began with (`weight_norm`); W_0 is read as it was.

    Fixed here is what changes the code; lengths, chunks, batch sizes, numbers of heads and rates are numbers of the launch.

    gated           M is down(silu(gate x) * up x); else `depth` maps with GELU between them
    hidden          the width inside, 0 where there is one map
    norm, residual  M ends with a layer norm of each head; x is added
    lr, momentum, decay  none, a number, one for each head, or a gate of the token
    key_width, value_width  of k and q, and of v
    """

    gated: bool = False
    depth: int = 1
    hidden: int = 0
    norm: bool = False
    residual: bool = False
    lr: RateOf = "token"
    momentum: RateOf = "none"
    decay: RateOf = "none"
    after_write: bool = False
    after_decay: bool = False
    weight_norm: bool = False
    key_width: int = 64
    value_width: int = 64

    def __post_init__(self) -> None:
        flags = (self.gated, self.norm, self.residual, self.after_write, self.after_decay, self.weight_norm)
        assert all(type(flag) is bool for flag in flags), self
        assert {self.lr, self.momentum, self.decay} <= {"none", "number", "head", "token"}, self
        sizes = ((self.depth, 1, 4), (self.hidden, 0, 8192), (self.key_width, 1, 1024), (self.value_width, 1, 1024))
        assert all(type(size) is int and least <= size <= most for size, least, most in sizes), self
        assert (self.hidden == 0) == (self.depth == 1 and not self.gated), self
        assert not (self.residual and self.key_width != self.value_width), self

    @property
    def numbers(self) -> int:
        """Numbers of one net."""
        if self.gated:
            return self.hidden * (2 * self.key_width + self.value_width)
        if self.depth == 1:
            return self.key_width * self.value_width
        return self.hidden * (self.key_width + (self.depth - 2) * self.hidden + self.value_width)


@dataclass(frozen=True)
class Sublinear:
    """`k`, and k (length / start)^exponent for sequences of more than `start` tokens."""

    k: int
    start: int
    exponent: float


@dataclass(frozen=True)
class Selector:
    """One choice by content: which of the units that it has read whole a query keeps, beside the intervals of its launch.

    What is chosen is data of the launch that reads it: for each query, or block of queries, and each chooser a number of units
    and their indices in rising order. runtime/selector.py has the same fields, and says what they mean.

    Fixed here is what changes code: all up to `asks`. The rest are numbers.
    """

    unit: int = 1
    diagonals: bool = False
    keys: Literal["own", "mean", "bounds", "joined", "indexer", "learned", "summary", "chunks"] = "own"
    span: int = 1
    step: int = 1
    score: Literal["dot", "softmax"] = "dot"
    lse: tuple[int, int] | None = None
    shared: Literal["head", "group", "layer"] = "group"
    heads: Literal["sum", "max", "mean", "min"] = "sum"
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

    def __post_init__(self) -> None:
        sizes = (self.unit, self.span, self.step, self.many, self.every, self.at_least, *(self.lse or ()))
        assert all(type(number) is int and 1 <= number <= 2**24 for number in sizes), self
        assert self.step <= self.span, "runs leave no key out"
        assert sum(given is not None for given in (self.top_k, self.top_p, self.threshold)) == 1, self

    def kept(self, length: int) -> int:
        """Tokens that a query keeps at most, in a sequence of so many."""
        units = -(-length // self.unit)
        wanted = units if self.top_k is None else _amount(self.top_k, length, self.unit)
        most = units if self.at_most is None else self.at_most
        return min(units, most, max(wanted, self.at_least)) * self.unit

    def rows(self, queries: int) -> int:
        """Queries that score, of so many: those of a block ask as one."""
        blocks = -(-queries // self.many)
        return {"each": queries, "block": blocks, "last": min(queries, self.many)}[self.asks]

    def choosers(self, kv_heads: int, ratio: int) -> int:
        """How many choose for themselves, of so many KV heads and query heads of each."""
        return {"head": kv_heads * ratio, "group": kv_heads, "layer": 1}[self.shared]

    def runs(self, length: int) -> int:
        """Runs of keys that are scored, coarser ones included, in a sequence of so many tokens."""
        sizes = ((self.span, self.step), *((self.lse,) if self.lse else ()))
        return sum((length - span) // step + 1 for span, step in sizes if length >= span)


@dataclass(frozen=True)
class Listed:
    """One kernel of softmax attention over lists of units that content chose, beside the intervals of `softmax`.

    softmax    what the launch would be without lists; causal, and without an exponent
    unit       keys of a unit, 1..65536
    each_head  whether every query head has lists of its own; else those of a KV head share one
    distances  of listed units, only keys at chosen distances back from the query are read
    beside     keys of a unit of another list, which another kernel reads with the intervals; what is in it is left out. 0: none
    """

    softmax: Softmax
    unit: int
    each_head: bool
    distances: bool = False
    beside: int = 0

    def __post_init__(self) -> None:
        assert self.softmax.causal, "what is chosen has been read"
        assert self.softmax.exponent is None, self
        assert type(self.unit) is int, self
        assert 1 <= self.unit <= 65536, self
        assert type(self.each_head) is type(self.distances) is bool, self
        assert type(self.beside) is int, self
        assert 0 <= self.beside <= 65536, self

    @property
    def members(self) -> int:
        """Query heads that share a list."""
        return 1 if self.each_head else self.softmax.group


def _amount(top_k: int | Share | Sublinear, length: int, unit: int) -> int:
    match top_k:
        case Share():
            return top_k.of(length // unit)
        case Sublinear():
            return top_k.k if length <= top_k.start else int(top_k.k * (length / top_k.start) ** top_k.exponent)
        case _:
            return top_k


BACKWARD = ("softmax_backward_queries", "softmax_backward_keys")
"""The softmax family's backward pass: for queries, then for keys and values."""

FAMILIES = {
    "softmax": ("softmax_prefill", "softmax_decode", *BACKWARD),
    "recurrence": (
        "scan_chunks",
        "scan_forward",
        "scan_outputs",
        "scan_step",
        "scan_backward",
        "scan_values",
        "scan_gradients",
        "scan_flows",
    ),
    "fast": ("fast_linear", "fast_maps", "fast_step"),
}
"""Each family's kernels. Softmax: for many new queries of a sequence, for a few, and the backward pass of the first. Matrix
states: what chunks need before a state passes, tokens chunk by chunk, and one by one; back along the states, the gradients of
what tokens bring, and those within chunks where channels decay. Fast weights: chunk by chunk, of one map or of several; and
token by token.
"""
