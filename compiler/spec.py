"""The checked specification: every name resolved, every number bounded, every layer and head owned once.

    Spec = Model + one Layer per layer; a Layer holds one Mixer expression

A Mixer expression is one of the classes below. Key sets and other kinds (`Kind`) are declared in compiler/mixers.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Literal

from attnc.compiler.attributes import Attributes
from attnc.compiler.data import ToldApart
from attnc.compiler.mixer import Kind
from attnc.compiler.recipe import Recipe, Retrieve
from attnc.compiler.tuning import Divergence, Gumbel, Method, Router
from attnc.compiler.value import Origin, Share, Value

if TYPE_CHECKING:
    from attnc.compiler.cache_spec import CacheRow

SCHEMA_VERSION = 1

Phase = Literal["train", "prefill", "decode"]
PHASES: tuple[Phase, ...] = ("train", "prefill", "decode")
DECODE_TOKENS = 16
"""A call with at most this many new tokens on a non-empty cache is a decode step; a ring cache has room for them."""


class FeedForward(Value):
    """`swiglu(5632)`: activation(gate(x)) * up(x) for swiglu and geglu; activation(up(x)) for gelu and relu."""

    kind: Literal["swiglu", "geglu", "gelu", "relu"]
    width: int


class Norm(Value):
    """`rms(1e-6, centre = 1)` multiplies by (centre + weight); `layer(1e-5)` has weight and bias."""

    kind: Literal["rms", "layer"]
    epsilon: float
    centre: Literal[0, 1] = 0


class Model(Value):
    """Everything around the mixers. `context`: the trained length."""

    name: str
    vocab: int
    dim: int
    layers: int
    context: int | None = None
    feed_forward: FeedForward | None = None
    norm: Norm
    norm_place: Literal["pre", "sandwich"] = "pre"
    tie: bool = False
    bias: Literal["qkv", "all"] | None = None
    embedding_scale: float = 1.0
    residual_scale: float = 1.0
    logit_scale: float = 1.0
    logit_cap: float | None = None
    score_cap: float | None = None
    score_scale: float | None = None


class Attention(Value):
    """Softmax (or another score) over a union of key sets."""

    node: Literal["attention"] = "attention"
    keys: tuple[Kind, ...]
    attributes: Attributes
    origin: Origin


class Mixing(Value):
    """A kind that is a mixer by itself: conv, linear, ssm, memory, ..."""

    node: Literal["mixing"] = "mixing"
    kind: Kind
    attributes: Attributes
    origin: Origin


class Sum(Value):
    """`A + B`: each part has projections of its own; `names` name them in checkpoints."""

    node: Literal["sum"] = "sum"
    names: tuple[str, ...]
    parts: tuple[Mixer, ...]


class Chain(Value):
    """`A >> B`: each part reads the output of the one before.

    `gated`: the last part's output gate is that of braces around the chain, and reads what the chain reads.
    """

    node: Literal["chain"] = "chain"
    names: tuple[str, ...]
    parts: tuple[Mixer, ...]
    gated: bool = False


class Gate(Value):
    """`gate(A, B, by =, shared =)`."""

    node: Literal["gate"] = "gate"
    names: tuple[str, ...]
    parts: tuple[Mixer, ...]
    by: Literal["sigmoid", "softmax", "product"] = "sigmoid"
    shared: tuple[Literal["q", "k", "v"], ...] = ()
    origin: Origin


class HeadCase(Value):
    """KV groups first..last (both included) of the layer. `name` is for weights of the case's own."""

    first: int
    last: int
    mixer: Mixer
    name: str = ""


class Heads(Value):
    """`heads { }`: the cases cover every KV group once, in order; they share q, k, v and o."""

    node: Literal["heads"] = "heads"
    cases: tuple[HeadCase, ...]


Sign = Literal["<", "<=", ">", ">=", "=="]


class Condition(Value):
    """`length < 8192` or `phase == train`. `dim` is decided by the checker and never gets here."""

    left: Literal["length", "phase"]
    operator: Sign
    right: int | Phase


class WhenCase(Value):
    """`condition: mixer`; no condition means `else`. `name` is for weights of the case's own."""

    condition: Condition | None
    mixer: Mixer
    name: str = ""


class When(Value):
    """`when { }`: the first case whose condition holds, per call and sequence; the cases share weights."""

    node: Literal["when"] = "when"
    cases: tuple[WhenCase, ...]


class Alternative(Value):
    """`name: mixer` of a choose or route."""

    name: str
    mixer: Mixer


class Choose(Value):
    """`choose`: the tuner decides once, by its method or by search; until then the first alternative holds."""

    node: Literal["choose"] = "choose"
    per: Literal["layer", "head"]
    by: Method | None = None
    alternatives: tuple[Alternative, ...]


class Route(Value):
    """`route`: decided while running; per token each key goes to one alternative and every query reads all."""

    node: Literal["route"] = "route"
    per: Literal["layer", "head", "token", "chunk"]
    chunk: int | None = None
    by: Router | Divergence
    alternatives: tuple[Alternative, ...]
    origin: Origin

    @property
    def router(self) -> Router | None:
        """The router, where none of the rules decides."""
        return self.by if isinstance(self.by, Router) else None


class Change(Value):
    """A kind that makes a new sequence, which the rest of its chain and all later layers work on."""

    node: Literal["change"] = "change"
    kind: Kind
    origin: Origin


class Context(Value):
    """`context(M, segment =, persistent =)`: softmax over persistent keys, what M returns, and the segment; M learns from it.

    `attributes` are those of the softmax.
    """

    node: Literal["context"] = "context"
    name: str
    memory: Mixing
    segment: int
    persistent: int
    attributes: Attributes
    origin: Origin


class Select(Value):
    """`select(A, keep =, by =)`: the chosen share of the tokens goes through A, the rest passes by."""

    node: Literal["select"] = "select"
    name: str
    mixer: Mixer
    keep: Share
    by: Gumbel
    origin: Origin


Mixer = Annotated[
    Attention | Mixing | Sum | Chain | Gate | Heads | When | Choose | Route | Context | Select | Change,
    ToldApart("node"),
]
"""A Change stands at the start of a layer's Chain alone."""


class Layer(Value):
    """One row of the resolved table. Layers resolved from the same rule hold the same mixer object."""

    index: int
    mixer: Mixer
    origin: Origin


class BudgetSite(Value):
    """A `budget(lo..hi, default = x)`: where it stands (`layers.all.sink.n`), and what the tuner may do with it."""

    path: str
    low: float
    high: float
    default: float
    share: bool = False
    when: Literal["tuned", "training"]
    per: Literal["layer", "head"] | None = None
    by: Method | None = None
    origin: Origin


class Spec(Value):
    """A spec that passed the checker. `text` is the canonical text (as `attnc fmt` prints it), kept in built folders.

    `defaults`: the attributes that the model gives a key set; None where they alone do not fit together.
    `reduced`: the length that `attnc.compiler.reduce` made it small for; `text` is then that of the spec before.
    """

    schema_version: int = SCHEMA_VERSION
    model: Model
    defaults: Attributes | None = None
    layers: tuple[Layer, ...]
    budgets: tuple[BudgetSite, ...] = ()
    recipe: Recipe | None = None
    driver: Retrieve | None = None
    file: str
    text: str
    reduced: int | None = None

    def __post_init__(self) -> None:
        """Layers read from JSON hold one mixer object where they are equal, as layers of one rule do."""
        known: dict[Mixer, Mixer] = {}
        seen: dict[int, Mixer] = {}
        for layer in self.layers:
            if id(layer.mixer) not in seen:
                seen[id(layer.mixer)] = known.setdefault(layer.mixer, layer.mixer)
        if any(layer.mixer is not seen[id(layer.mixer)] for layer in self.layers):
            vars(self)["layers"] = tuple(replace(layer, mixer=seen[id(layer.mixer)]) for layer in self.layers)

    def cache_spec(self, dtype: str = "bfloat16") -> tuple[CacheRow, ...]:
        """What decoding keeps of one sequence, a row for each head group; `dtype`: float64, float32, bfloat16 or float16."""
        from attnc.compiler.cache_spec import cache_spec  # it reads specs

        return cache_spec(self, dtype)
