"""What decides a `choose`, a `budget` or a `route`: methods, routers and rules, and the blocks' arguments."""

from __future__ import annotations

from typing import Annotated, Literal

from attnc.compiler.declare import Bounds, NotBuilt, Positional
from attnc.compiler.value import Share, Value

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


class Similarity(Value):
    """`similarity(threshold = 0.85, dense = 0%, anchors = 100%)`: how alike the choices of neighbouring layers are."""

    word: Literal["similarity"] = "similarity"
    threshold: Annotated[float, Bounds(0, 1)]
    dense: Share = Share(percent=0)
    anchors: Share = Share(percent=100)


class Coverage(Value):
    """`coverage(90%, rows = 0)`: attention mass recovered, in rows from there on."""

    word: Literal["coverage"] = "coverage"
    share: Annotated[Share | None, Positional()] = None
    rows: Annotated[int, Bounds(0, 2**24)] = 0


class Loss(Value):
    """`loss(data = tasks, worst = false)`: end to end; with `worst` the worst task counts."""

    word: Literal["loss"] = "loss"
    data: Data
    worst: bool = False


Method = TrainedGate | RetrievalScore | Similarity | Coverage | Loss


class BudgetArguments(Value):
    """`budget(lo..hi, default = x, per = head, by = METHOD)`, without range and default."""

    word: Literal["budget"] = "budget"
    per: Literal["layer", "head"] | None = None
    by: Method | None = None


class ChooseArguments(Value):
    """`choose(per = layer | head, by = METHOD)`; without `by` the tuner searches."""

    word: Literal["choose"] = "choose"
    per: Literal["layer", "head"]
    by: Method | None = None


class Ends(Value):
    """`ends(100)`: the mean of the first and the last n tokens."""

    word: Literal["ends"] = "ends"
    n: Annotated[int, Positional(), Bounds(1, 65536)]


class RouterNetwork(Value):
    """`router(linear | mlp, pool = mean | ends(n), init = [...], estimator = gumbel | straight_through)`."""

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
    per: Annotated[Literal["layer", "head", "token"] | Chunk, NotBuilt("layer", "head", Chunk)]
    by: Annotated[RouterNetwork | Divergence, NotBuilt(Divergence)]


class GateArguments(Value):
    """`gate(A, B, by = sigmoid | softmax | product, shared = [q, k, v])`, without the branches."""

    word: Literal["gate"] = "gate"
    by: Literal["sigmoid", "softmax", "product"] = "sigmoid"
    shared: tuple[Literal["q", "k", "v"], ...] = ()
