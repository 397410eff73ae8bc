"""What every file of compiler/mixers says about its kind: one value `MIXER`, read by all stages, docs and tests."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from attnc.compiler.data import named_class
from attnc.compiler.intervals import Intervals
from attnc.compiler.value import Broken, Share, Tokens, Value

if TYPE_CHECKING:  # a spec is checked without them
    from attnc.compiler.families import Selector
    from attnc.compiler.plain import Plain
    from attnc.compiler.scanned import Scanned
    from attnc.compiler.spaced import Spaced
    from attnc.compiler.taught import Taught


class Kind(Value):
    """Parameters of one kind, as written in a spec; each subclass has a field `kind: Literal[...]` with the kind's word."""

    kind: str

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        """Where any kind is wanted, data becomes the class that its word names."""
        return named_class(Kind, _parameters, handler) if cls is Kind else handler(source)


def _parameters(word: str) -> type[Kind] | None:
    from attnc.compiler.mixers import MIXERS  # each kind's file imports this one

    return MIXERS[word].parameters if word in MIXERS else None


class Kept(Value):
    """What decoding must keep of a key set: the first `pinned` tokens and the last `recent`; `recent = None` keeps all.

    `chosen`: so many more that content picks; `by_query_head`: each query head picks for itself.
    `drops`: all others are dropped for good, so that nothing which ran before decoding can ask for them.
    """

    pinned: Tokens = 0
    recent: Tokens | None = None
    chosen: Tokens = 0
    by_query_head: bool = False
    drops: bool = False


Spread = tuple[
    Literal["even", "log_even", "count", "identity", "orthogonal"], float, float, Literal["plain", "log", "inverse_softplus"]
]
"""Numbers drawn evenly between two, or with even logarithms, or counted along the last axis from the first in steps of the
second; what is stored is them, their logarithms, or what softplus makes them of. `identity`: the second on the diagonal of the
last two axes; `orthogonal`: normal rows, as many of them orthogonal as there are columns.
"""


class Weight(Value):
    """A learned tensor: name, shape, and how it starts: filled with a number, (mean, deviation) of normal numbers, or a
    `Spread`. `learned` false: it stays as it starts.
    """

    name: str
    shape: tuple[int, ...]
    start: float | tuple[float, float] | Spread = (0.0, 0.02)
    learned: bool = True


def convolution(name: str, width: int, n: int) -> Weight:
    """The taps [width, n] of a convolution a channel, which start as those of `torch.nn.Conv1d`: even within 1 / sqrt(n).

    As small as a projection's they would leave next to nothing of what passes through them.
    """
    return Weight(name=f"{name}.weight", shape=(width, n), start=("even", -(n**-0.5), n**-0.5, "plain"))


class Growing(Value):
    """What decoding keeps of every run of `span` tokens, one begun every `step`: a tensor [runs, *shape].

    `step` 0: one for the whole sequence. `dtype`: a number format of its own; None: the model's.
    `of`: another kind, which keeps the same where the layer has it.
    """

    name: str
    shape: tuple[int, ...]
    span: int = 1
    step: int = 1
    dtype: Literal["float32", "int32", "uint16", "uint8"] | None = None
    of: Kind | None = None


Causality = Literal["strict", "block", "sequence", "none"]
"""Which later tokens decide what a query sees: see compiler/causality.py."""

CLASSES: tuple[Causality, ...] = ("strict", "block", "sequence", "none")
"""From the one that promises most."""


class Selection(NamedTuple):
    """The class of a choice of keys and why; `multiple`: of how many tokens chunks must be multiples for it to be the same.

    `accepted`: the spec accepts that it looks ahead; `drops`: keys that it leaves are dropped.
    """

    causality: Causality
    reason: str = ""
    multiple: int | None = None
    accepted: bool = False
    drops: bool = False


class Lacking(NamedTuple):
    """Something that is declared and not built: what, what is, and what to write instead."""

    what: str
    expected: str
    help: str


class Scores(NamedTuple):
    """A module that scores by weights of its own: its name, class and file in the runtime, what the class is made with, and
    whether it reads the layer's input (else the queries and keys of the attention). `rotated`: how many channels of what it
    makes are turned; for one that reads q and k, whether any are (-1: by the module itself). `chooses`: whether what it makes
    is a choice's scores, which attention can teach.
    """

    module: str
    made: str
    file: str
    arguments: tuple[object, ...]
    reads_input: bool
    rotated: int = 0
    chooses: bool = True


KindClass = type[Kind]


def _no_intervals(_kind: Any, _causal: bool) -> Intervals | None:
    return None


def _share_of_length(kind: Any) -> Iterable[str]:
    """A size `n` that counts tokens may be a share; one in `shift` is of a block."""
    if isinstance(vars(kind).get("n"), Share):
        yield "a key set is a share of the length"


def _no_keys(_kind: Any) -> int:
    return 0


@dataclass(frozen=True)
class Mixer:
    """A kind of the language.

    `mask`       key sets: mask(i, j, *, causal, ...) -> bool, the formula on position tensors, imports only torch; its keyword
                 arguments after `causal` are the kind's sizes as numbers of tokens. Copied into a built folder's reference.py.
    `sizes`      sizes(kind, length) -> the keyword arguments of `mask` for a sequence of that length.
    `intervals`  key sets: the same keys in the form that kernels understand, or None where they cannot be said so.
    `chooses`    key sets that content chooses: the selector that says how, for kernels; chooses(kind).
    `formulas`   the same in plain tensors, functions that import only torch; the last one is called.
    `whole_layer` whether a choice can be made for all heads of a layer alone, as far as it is built: whole_layer(kind).
    `scores`     the module by whose weights a choice scores: scores(kind, attributes, model) -> Scores, or None where q and k
                 of the attention score.
    `own_scores` whether a choice scores by keys of its own, which a cache must hold: own_scores(kind).
    `lent`       a choice that takes another over, in its words: lent(kind, the other or None for that of a `full` layer).
    `decodes`    whether a choice can be made while decoding, as far as it is built: decodes(kind).
    `unbuilt`    what of the kind is declared and not built, beyond single values: unbuilt(kind) -> a Lacking for each.
    `kept`       what decoding keeps.
    `reference`  mixers: the formula, imports only torch; see compiler/mixers/conv.py for the pattern.
    `weights`    learned tensors beside q, k, v and o: weights(kind, attributes, model).
    `state`      what decoding carries of a sequence of any length, name -> shape: state(kind, attributes, model).
    `own_keys`   key sets: learned keys of its own, which stand before the sequence's and have no position.
    `rules`      what holds between parameters beyond their own bounds: rules(kind) -> a Broken for each rule that does not.
    `per_head`   mixers: one state a head, from the layer's q, k and v, so that head groups and routed keys may go to it.
    `fits`       what holds between parameters, attributes and model: fits(kind, attributes, model) -> a Broken for each.
    `looks_back` looks_back(kind): defined looking back only, so `causal = false` is a mistake.
    `takes`      mixers: takes(kind) -> the attributes in braces that mean something for it; `causal` and shapes too.
    `growing`    what decoding keeps of every so many tokens beside keys and values: growing(kind, attributes, model).
    `recent`     the last inputs that decoding keeps beside the state, in the model's number format; as `state`.
    `float32_state`  mixers: the state is kept in float32 (float64 in a float64 model) in any format, as key sets' are.
    `scanned`    mixers: how the kind becomes a launch of matrix states: scanned(kind, attributes, model); its class in model.py
                 is then written from that, and q, k, v and o are of their own.
    `spaced`     mixers: how the kind becomes a state space with a launch of states: spaced(kind, attributes, model); its class
                 in model.py is then written from that.
    `taught`     mixers: how the kind becomes a launch of nets that learn while they read: taught(kind, attributes, model); its
                 class in model.py is then written from that, and q, k, v and o are of their own.
    `plain`      mixers: how the kind becomes a launch that plain PyTorch alone runs: plain(kind, attributes, model); its class
                 in model.py is then written from that.
    `condensed`  key sets that stand for what the rest of the union does not show: how they become a launch with it that plain
                 PyTorch alone runs: condensed(kind, attributes, model).
    `stands`     key sets with `condensed`: whether that holds for a value of the kind: stands(kind).
    `beside`     what of it is declared and not built beside the other key sets of a union: beside(kind, those).
    `selection`  key sets that choose by content: selection(kind, class of the choice that it may take over).
    `changes`    changes(kind) -> why results depend on the length or on the step beyond causality; keys within count apart.
    `slots`      changes: slots(kind) -> tokens of the new sequence for each of the old one.
    `make_examples`  values for goldens, docs and smoke tests, made when first used.
    """

    name: str
    type: Literal["keys", "mixer", "change"]
    parameters: KindClass
    make_examples: Callable[[], tuple[Kind, ...]]
    mask: Callable[..., Any] | None = None
    sizes: Callable[[Any, Any], dict[str, Any]] = lambda _kind, _length: {}
    intervals: Callable[[Any, bool], Intervals | None] = _no_intervals
    chooses: Callable[[Any], Selector] | None = None
    formulas: tuple[Callable[..., Any], ...] = ()
    whole_layer: Callable[[Any], bool] = lambda _kind: False
    scores: Callable[[Any, Any, Any], Scores | None] = lambda _kind, _attributes, _model: None
    own_scores: Callable[[Any], bool] = lambda _kind: False
    lent: Callable[[Any, Any], Any] = lambda kind, _other: kind
    decodes: Callable[[Any], bool] = lambda _kind: True
    unbuilt: Callable[[Any], Iterable[Lacking]] = lambda _kind: ()
    kept: Callable[[Any], Kept] = lambda _kind: Kept()
    reference: Callable[..., Any] | None = None
    weights: Callable[..., tuple[Weight, ...]] = lambda _kind, _attributes, _model: ()
    state: Callable[..., dict[str, tuple[int, ...]]] = lambda _kind, _attributes, _model: {}
    own_keys: Callable[[Any], int] = _no_keys
    rules: Callable[[Any], Iterable[Broken]] = lambda _kind: ()
    per_head: bool = False
    fits: Callable[..., Iterable[Broken]] = lambda _kind, _attributes, _model: ()
    looks_back: Callable[[Any], bool] = lambda _kind: False
    takes: Callable[[Any], frozenset[str]] | None = None
    slots: Callable[[Any], float] = lambda _kind: 1.0
    growing: Callable[..., tuple[Growing, ...]] = lambda _kind, _attributes, _model: ()
    recent: Callable[..., dict[str, tuple[int, ...]]] = lambda _kind, _attributes, _model: {}
    float32_state: bool = False
    scanned: Callable[..., Scanned] | None = None
    spaced: Callable[..., Spaced] | None = None
    taught: Callable[..., Taught] | None = None
    plain: Callable[..., Plain] | None = None
    condensed: Callable[..., Plain] | None = None
    stands: Callable[[Any], bool] = lambda _kind: True
    beside: Callable[..., Iterable[Lacking]] = lambda _kind, _rest: ()
    selection: Callable[[Any, Causality], Selection | None] = lambda _kind, _earlier: None
    changes: Callable[[Any], Iterable[str]] = _share_of_length

    @cached_property
    def examples(self) -> tuple[Kind, ...]:
        """Values for goldens, docs and smoke tests."""
        return self.make_examples()

    @property
    def positional(self) -> bool:
        """Whether a key set is decided by positions alone, and shows tokens or learned keys one by one."""
        return self.chooses is None and self.condensed is None

    @property
    def built(self) -> bool:
        """Whether this version builds the kind, or only declares it: what it means, and how kernels are told."""
        if self.chooses is not None or self.condensed is not None:
            return True
        if self.type == "keys":
            return self.mask is not None and (self.intervals is not _no_intervals or self.own_keys is not _no_keys)
        return self.reference is not None
