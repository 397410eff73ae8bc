"""What decides a `choose`, a `budget`, a `route` or a `select`: methods, routers and rules, and the arguments of blocks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Annotated, Literal

from attnc.compiler.declare import Bounds, NotBuilt, Positional
from attnc.compiler.value import Broken, Share, Value

Data = Literal["passkey", "tasks"]


class TrainedGate(Value):
    """`trained_gate(data = passkey, loss = hidden_mse, l1 = 0.05, share = 50%)` (DuoAttention, arXiv 2410.10819)."""

    word: Literal["trained_gate"] = "trained_gate"
    data: Data
    loss: Literal["hidden_mse"] = "hidden_mse"
    l1: Annotated[float, Bounds(0, 100)] = 0.05
    share: Share = Share(percent=50)


class RetrievalScore(Value):
    """`retrieval_score(threshold = 0.1)` or `(share = 25%)`: how often a head copies (arXiv 2404.15574)."""

    word: Literal["retrieval_score"] = "retrieval_score"
    threshold: Annotated[float | None, Bounds(0, 1)] = None
    share: Share | None = None

    def broken(self) -> Iterator[Broken]:
        """Heads are picked by their score or by their rank."""
        if (self.threshold is None) == (self.share is None):
            both = "takes `threshold` or `share`, not both" if self.share else "needs `threshold` or `share`"
            help_line = "leave one out" if self.share else "write `retrieval_score(threshold = 0.1)`"
            yield Broken("share", f"`retrieval_score` {both}", "exactly one of `threshold` and `share`", help_line)


class Similarity(Value):
    """`similarity(threshold = 0.85, dense = 0%, anchors = 100%)`: how alike the choices of neighbouring layers are."""

    word: Literal["similarity"] = "similarity"
    threshold: Annotated[float, Bounds(0, 1)]
    dense: Share = Share(percent=0)
    anchors: Share = Share(percent=100)


class Coverage(Value):
    """`coverage(90%, rows = 0)`: attention mass recovered, in rows from there on; without a share, as much as possible."""

    word: Literal["coverage"] = "coverage"
    share: Annotated[Share | None, Positional(), Bounds(0, 0, share_low=0.1)] = None
    rows: Annotated[int, Bounds(0, 2**24)] = 0


class RecallDrop(Value):
    """`recall_drop(share = 25%)`: what a layer is worth to recall, beside what it is worth to all text (arXiv 2601.22156)."""

    word: Literal["recall_drop"] = "recall_drop"
    share: Share = Share(percent=25)


class Loss(Value):
    """`loss(data = tasks, worst = false)`: end to end; with `worst` the worst task counts."""

    word: Literal["loss"] = "loss"
    data: Data
    worst: bool = False


Method = TrainedGate | RetrievalScore | Similarity | Coverage | RecallDrop | Loss
"""By what a `choose` or a `budget` is decided."""

SEARCHED = (Loss, type(None))
"""Methods that leave the decision to a search within limits; the others decide by themselves."""


class BudgetArguments(Value):
    """`budget(lo..hi, default = x, per = head, by = METHOD)`, without range and default."""

    word: Literal["budget"] = "budget"
    per: Literal["layer", "head"] | None = None
    by: Method | None = None

    def broken(self) -> Iterator[Broken]:
        """A budget is moved towards a share of the mass."""
        if isinstance(self.by, Coverage) and self.by.share is None:
            message = "a budget that is moved by `coverage` needs the share to reach"
            yield Broken("by", message, "`coverage(SHARE)`", "write `by = coverage(90%)`")


class ChooseArguments(Value):
    """`choose(per = layer | head, by = METHOD)`; without `by` the tuner searches."""

    word: Literal["choose"] = "choose"
    per: Literal["layer", "head"]
    by: Method | None = None


class Ends(Value):
    """`ends(100)`: the mean of the first and the last n tokens."""

    word: Literal["ends"] = "ends"
    n: Annotated[int, Positional(), Bounds(1, 65536)]


class Router(Value):
    """`router(linear | mlp, pool = mean | ends(n), init = [...], estimator = gumbel | straight_through)`.

    Where a route decides about several tokens, `pool` None is their mean. `init`: the logits that it starts with.
    """

    word: Literal["router"] = "router"
    network: Annotated[Literal["linear", "mlp"], Positional(), NotBuilt("mlp")]
    pool: Annotated[Literal["mean"] | Ends | None, NotBuilt()] = None
    init: Annotated[tuple[float, ...], Bounds(-100, 100), NotBuilt()] = ()
    estimator: Literal["gumbel", "straight_through"] = "gumbel"


class LastQueries(Value):
    """`last(128)`."""

    word: Literal["last"] = "last"
    n: Annotated[int, Positional(), Bounds(1, 65536)]


class Divergence(Value):
    """`divergence(threshold = 0.1, queries = last(128))` (FlexPrefill): the first case whose estimate holds."""

    word: Literal["divergence"] = "divergence"
    threshold: Annotated[float, Bounds(0, 1)]
    queries: LastQueries


class Chunk(Value):
    """`chunk(64)`."""

    word: Literal["chunk"] = "chunk"
    n: Annotated[int, Positional(), Bounds(1, 65536)]


class RouteArguments(Value):
    """`route(per = layer | head | token | chunk(n), by = ROUTER)`."""

    word: Literal["route"] = "route"
    per: Literal["layer", "head", "token"] | Chunk
    by: Router | Divergence

    def broken(self) -> Iterator[Broken]:
        """A prompt is pooled for one decision about it, and a rule looks at a prompt."""
        each = self.per if isinstance(self.per, str) else "chunk(n)"
        pooled = self.per in ("layer", "head")
        if isinstance(self.by, Divergence) and not pooled:
            message = f"`divergence` looks at a whole prompt, but the route is per {each}"
            yield Broken("by", message, "`per = layer` or `per = head`", "write `by = router(linear)`, or another `per`")
        elif isinstance(self.by, Router):
            if self.per == "token" and self.by.pool is not None:
                message = "`pool` has no meaning for a route per token, which looks at the token alone"
                yield Broken("by", message, "a router without `pool`", "leave `pool` out")
            if isinstance(self.by.pool, Ends) and isinstance(self.per, Chunk):
                message = "`pool = ends(n)` pools the ends of a prompt, but the route is per chunk(n)"
                yield Broken("by", message, "`pool = mean`", "write `pool = mean`")


class GateArguments(Value):
    """`gate(A, B, by = sigmoid | softmax | product, shared = [q, k, v])`, without the branches."""

    word: Literal["gate"] = "gate"
    by: Literal["sigmoid", "softmax", "product"] = "sigmoid"
    shared: tuple[Literal["q", "k", "v"], ...] = ()

    def broken(self) -> Iterable[Broken]:
        """Each projection is named once."""
        return twice("shared", self.shared)


class ContextArguments(Value):
    """`context(M, segment = n, persistent = 0)`, without the memory (Titans, arXiv 2501.00663)."""

    word: Literal["context"] = "context"
    segment: Annotated[int, Bounds(1, 65536)]
    persistent: Annotated[int, Bounds(0, 4096)] = 0


class Gumbel(Value):
    """`gumbel(ema = 0.99)`: scores of an EMA copy of the mixer, with Gumbel noise (Selective S4, arXiv 2303.14526)."""

    word: Literal["gumbel"] = "gumbel"
    ema: Annotated[float, Bounds(0, 1)] = 0.99


class SelectArguments(Value):
    """`select(A, keep = 50%, by = gumbel(ema = 0.99))`, without the mixer."""

    word: Literal["select"] = "select"
    keep: Annotated[Share, Bounds(0, 0, share_low=0.1)]
    by: Gumbel


def twice(key: str, words: Iterable[str]) -> Iterator[Broken]:
    """A word that a list names again."""
    seen: set[str] = set()
    for word in words:
        if word in seen:
            yield Broken(key, f"`{key}` names `{word}` twice", "each word once", f"remove one `{word}`", "A106")
            return
        seen.add(word)
