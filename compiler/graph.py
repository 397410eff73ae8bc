"""The layer graph: what is computed and what feeds what, in head groups. No kernel is chosen yet.

    x -> Project -> Mix, one per head group and variant -> Combine(when) -> Combine(heads) -> y
    Project -> Select -> Mix                    where content chooses keys, after the passes
    x -> Apply -> y                             a kind that is a mixer by itself
    x -> parts -> Combine(sum | gate) -> y      parts in a row for a chain

Edges carry tensors; an edge labelled `qk` hands the q and k of one layer to a later one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import networkx as nx

from attnc.compiler import intervals as arithmetic
from attnc.compiler.attributes import Attributes
from attnc.compiler.head_states import Runs, head_states
from attnc.compiler.intervals import Intervals
from attnc.compiler.mixer import Kind
from attnc.compiler.mixers import MIXERS, stands
from attnc.compiler.spec import (
    Attention,
    Chain,
    Choose,
    Condition,
    Context,
    Gate,
    HeadCase,
    Heads,
    Layer,
    Mixer,
    Mixing,
    Model,
    Route,
    Spec,
    Sum,
    When,
)
from attnc.compiler.taking import lenders, resolved
from attnc.compiler.tuning import Router
from attnc.compiler.unbuilt import refuse_unbuilt
from attnc.compiler.value import Origin, Value
from attnc.compiler.walk import children, default, is_softmax


class Guard(Value):
    """A condition that must hold, or (`holds` false) must not."""

    condition: Condition
    holds: bool


class HeadGroup(Value):
    """KV groups first..last (both included) that see one union of key sets. `intervals` is None where it cannot be said so."""

    first: int
    last: int
    keys: tuple[Kind, ...]
    intervals: Intervals | None
    origin: Origin

    @property
    def choices(self) -> tuple[Kind, ...]:
        """Those that content chooses; `intervals` are of the others."""
        return tuple(key for key in self.keys if MIXERS[key.kind].chooses is not None)


class Variant(Value):
    """What a mix does while all guards hold: its head groups, in order."""

    guards: tuple[Guard, ...]
    groups: tuple[HeadGroup, ...]


class Project(Value):
    """x -> q, k, v of one set of projections. `qk_layer`: the earlier layer whose q and k are taken over.

    `chained`: the output gate reads what the chain reads that ends here.
    """

    layer: int
    scope: str
    attributes: Attributes
    qk_layer: int | None = None
    chained: bool = False


class Mix(Value):
    """q, k, v -> o for KV groups first..last; after the passes one launch."""

    layer: int
    scope: str
    first: int
    last: int
    attributes: Attributes
    variants: tuple[Variant, ...]


class Select(Value):
    """q, k -> lists of the keys that content chooses for a mix, in its variants that choose."""

    layer: int
    scope: str
    first: int
    last: int
    attributes: Attributes
    variants: tuple[Variant, ...]


class Condense(Value):
    """q, k, v -> o where `kind` stands for the keys that `group` does not show."""

    layer: int
    scope: str
    attributes: Attributes
    group: HeadGroup
    kind: Kind


class Smooth(Value):
    """x -> a moving average of it, which q and k are made of."""

    layer: int
    scope: str
    attributes: Attributes


class RouteTokens(Value):
    """Each token's key goes to one alternative; every query reads all of them, joined by learned weights."""

    layer: int
    scope: str
    attributes: Attributes
    router: Router
    names: tuple[str, ...]
    alternatives: tuple[tuple[Kind, ...], ...]
    origin: Origin


class Apply(Value):
    """A kind that is a mixer by itself, projections included. `chained`: as of `Project`.

    `runs`: the KV groups that it owns in a block of `heads`, under `name`; then q, k, v and o are the block's, and `attributes`
    are of its own heads.
    """

    layer: int
    scope: str
    kind: Kind
    attributes: Attributes
    origin: Origin
    chained: bool = False
    runs: Runs = ()
    name: str = ""


class Combine(Value):
    """Several tensors to one: the variants of a segment, the heads side by side (then o), or branches summed or gated."""

    layer: int
    scope: str
    how: Literal["when", "heads", "sum", "gate"]
    attributes: Attributes | None = None
    names: tuple[str, ...] = ()
    by: Literal["sigmoid", "softmax", "product"] | None = None
    shared: tuple[str, ...] = ()


Node = Project | Select | Mix | Condense | Smooth | RouteTokens | Apply | Combine


@dataclass(frozen=True)
class Graph:
    """`nodes[name]["node"]` holds each node; passes return new graphs and never change one."""

    network: nx.DiGraph[str]

    @property
    def model(self) -> Model:
        """The body around the mixers."""
        found: Model = self.network.graph["model"]
        return found

    def nodes(self, layer: int | None = None) -> Iterator[tuple[str, Node]]:
        """Nodes in execution order, of one layer or of all."""
        names = self.network.graph["order"] if layer is None else self._names.get(layer, [])
        for name in names:
            yield name, self.network.nodes[name]["node"]

    @cached_property
    def _names(self) -> dict[int, list[str]]:
        """The names of each layer's nodes."""
        names: dict[int, list[str]] = {}
        for name, node in self.nodes():
            names.setdefault(node.layer, []).append(name)
        return names

    def inputs(self, name: str) -> list[str]:
        """What a node reads, in order."""
        return sorted(self.network.predecessors(name), key=lambda source: int(self.network.edges[source, name]["place"]))


def build(spec: Spec) -> Graph:
    """The graph of a whole spec, before any pass. Raises SpecError where something of it is not built yet."""
    refuse_unbuilt(spec)
    return _Builder(replace(spec, layers=resolved(spec))).graph()


Segments = list[tuple[int, int, list[tuple[Attributes, tuple[Variant, ...]]]]]
"""KV groups first..last, and for each variant the attributes and what those groups do in it."""


class _Builder:
    """Holds the graph while one spec is walked."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.network: nx.DiGraph[str] = nx.DiGraph(order=[], model=spec.model)
        self.known: dict[int, tuple[Attributes, Segments]] = {}
        self.contexts: dict[int, Attention] = {}
        """For each mixer that the graph says with other key sets, these; kept, as what is known goes by identity."""
        self.groups: dict[tuple[int, ...], HeadGroup] = {}

    def graph(self) -> Graph:
        source = ""
        for layer in self.spec.layers:
            source = self.lower(layer.mixer, layer, "", source)
        for taker, lender in lenders(self.spec.layers).items():
            self.network.add_edge(
                _name(lender.layer.index, "", "project"), _name(taker, "", "project"), place=1, carries="choice"
            )
        return Graph(self.network)

    def add(self, name: str, node: Node, *sources: str) -> str:
        self.network.add_node(name, node=node)
        self.network.graph["order"].append(name)
        for place, source in enumerate(s for s in sources if s):
            self.network.add_edge(source, name, place=place, carries="tensor")
        return name

    def lower(self, mixer: Mixer, layer: Layer, scope: str, source: str, chained: bool = False) -> str:
        """Adds what `mixer` needs, reading from node `source`; returns the node with its output. `chained`: as of `Project`."""
        index = layer.index
        match mixer:
            case Sum(names=names, parts=parts) | Gate(names=names, parts=parts):
                outputs = [self.lower(p, layer, _join(scope, n), source) for n, p in zip(names, parts, strict=True)]
                how: Literal["sum", "gate"] = "sum" if isinstance(mixer, Sum) else "gate"
                by, shared = (None, ()) if isinstance(mixer, Sum) else (mixer.by, mixer.shared)
                node = Combine(layer=index, scope=scope, how=how, names=names, by=by, shared=shared)
                return self.add(_name(index, scope, how), node, *outputs)
            case Chain(names=names, parts=parts):
                for name, part in zip(names, parts, strict=True):
                    source = self.lower(part, layer, _join(scope, name), source, mixer.gated and part is parts[-1])
                return source
            case Context():
                return self.context(mixer, layer, scope or mixer.node, source)
            case Mixing(kind=kind, attributes=attributes, origin=origin):
                apply = Apply(layer=index, scope=scope, kind=kind, attributes=attributes, origin=origin, chained=chained)
                return self.add(_name(index, scope, kind.kind), apply, source)
            case Attention(keys=keys) if any(stands(key) for key in keys):
                return self.condense(mixer, index, scope, source, chained)
            case Route():
                return self.route(mixer, index, scope, source, chained)
            case Choose(alternatives=(first, *_)) if isinstance(default(mixer), Route):  # a route reads the block's projections
                return self.lower(first.mixer, layer, scope, source, chained)
            case Choose(alternatives=(first, *_)) if not is_softmax(default(mixer)):
                return self.lower(first.mixer, layer, _join(scope, first.name), source, chained)
            case _:
                return self.attend(mixer, index, scope, source, chained)

    def context(self, mixer: Context, layer: Layer, scope: str, source: str) -> str:
        """One set of projections over blocks of a segment; the memory, which it asks first, learns from what comes out."""
        index = layer.index
        if id(mixer) not in self.contexts:
            keys = [_made("block_local", mixer.segment)]
            keys += [_made("persistent", mixer.persistent)] if mixer.persistent else []
            self.contexts[id(mixer)] = Attention(keys=tuple(keys), attributes=mixer.attributes, origin=mixer.origin)
        heads = self.attend(self.contexts[id(mixer)], index, scope, source, chained=False)
        memory = self.lower(mixer.memory, layer, _join(scope, mixer.name), heads)
        names = ("attention", mixer.name)
        node = Combine(layer=index, scope=scope, how="gate", names=names, by="product")
        return self.add(_name(index, scope, "gate"), node, heads, memory)

    def route(self, mixer: Route, index: int, scope: str, source: str, chained: bool) -> str:
        leaves = [alternative.mixer for alternative in mixer.alternatives]
        assert mixer.per == "token", "only routes per token are built so far"
        assert mixer.router is not None, "a route per token has a router"
        attributes = next(leaf.attributes for leaf in leaves if isinstance(leaf, Attention))
        keys = tuple(leaf.keys for leaf in leaves if isinstance(leaf, Attention))
        names = tuple(alternative.name for alternative in mixer.alternatives)
        project = Project(layer=index, scope=scope, attributes=attributes, chained=chained)
        node = RouteTokens(
            layer=index,
            scope=scope,
            attributes=attributes,
            router=mixer.router,
            names=names,
            alternatives=keys,
            origin=mixer.origin,
        )
        top = self.add(_name(index, scope, "project"), project, source)
        middle = self.add(_name(index, scope, "route"), node, top)
        return self.add(
            _name(index, scope, "heads"), Combine(layer=index, scope=scope, how="heads", attributes=attributes), middle
        )

    def attend(self, mixer: Mixer, index: int, scope: str, source: str, chained: bool) -> str:
        """One set of projections with everything that shares it."""
        if id(mixer) not in self.known:  # layers of one rule hold the same mixer
            self.known[id(mixer)] = _segment_mixes(mixer, self.group)
        attributes, mixes = self.known[id(mixer)]
        from_layer = self.qk_source(index) if attributes.qk_from else None
        project = Project(layer=index, scope=scope, attributes=attributes, qk_layer=from_layer, chained=chained)
        top = self.add(_name(index, scope, "project"), project, source, self.smooth(attributes, index, scope, source))
        if from_layer is not None:
            self.network.add_edge(_name(from_layer, "", "project"), top, place=1, carries="qk")
        segments = []
        for first, last, choices in mixes:
            tops = []
            for place, (own, variant) in enumerate(choices):
                node = Mix(layer=index, scope=scope, first=first, last=last, attributes=own, variants=variant)
                label = f"mix.{first}-{last}" + (f".{place}" if len(choices) > 1 else "")
                tops.append(self.add(_name(index, scope, label), node, top))
            if len(tops) > 1:
                when = Combine(layer=index, scope=scope, how="when")
                tops = [self.add(_name(index, scope, f"when.{first}-{last}"), when, *tops)]
            segments += tops
        segments += self.states(mixer, index, scope, top)
        heads = Combine(layer=index, scope=scope, how="heads", attributes=attributes)
        return self.add(_name(index, scope, "heads"), heads, *segments)

    def states(self, mixer: Mixer, index: int, scope: str, source: str) -> Iterator[str]:
        """The kinds that keep states for some of the heads."""
        for name, mixing, runs in head_states(mixer):
            kind, attributes, origin = mixing.kind, mixing.attributes, mixing.origin
            node = Apply(layer=index, scope=scope, kind=kind, attributes=attributes, origin=origin, runs=runs, name=name)
            yield self.add(_name(index, scope, f"states.{name}"), node, source)

    def smooth(self, attributes: Attributes, index: int, scope: str, source: str) -> str:
        """What q and k are made of, if it is not the input itself."""
        if attributes.input_ema is None:
            return ""
        return self.add(_name(index, scope, "smooth"), Smooth(layer=index, scope=scope, attributes=attributes), source)

    def condense(self, mixer: Attention, index: int, scope: str, source: str, chained: bool) -> str:
        """A union in which a kind stands for what the others do not show."""
        attributes = mixer.attributes
        (kind,) = (key for key in mixer.keys if stands(key))
        if id(mixer) not in self.contexts:
            rest = tuple(key for key in mixer.keys if key is not kind)
            self.contexts[id(mixer)] = Attention(keys=rest, attributes=attributes, origin=mixer.origin)
        group = self.group(0, attributes.kv_heads - 1, self.contexts[id(mixer)])
        project = Project(layer=index, scope=scope, attributes=attributes, chained=chained)
        top = self.add(_name(index, scope, "project"), project, source, self.smooth(attributes, index, scope, source))
        node = Condense(layer=index, scope=scope, attributes=attributes, group=group, kind=kind)
        middle = self.add(_name(index, scope, kind.kind), node, top)
        heads = Combine(layer=index, scope=scope, how="heads", attributes=attributes)
        return self.add(_name(index, scope, "heads"), heads, middle)

    def group(self, first: int, last: int, leaf: Attention) -> HeadGroup:
        """What KV groups first..last see; rules that use one `mix` share what it says, and go on sharing it."""
        found = first, last, id(leaf.origin), leaf.attributes.causal, *map(id, leaf.keys)
        if found not in self.groups:
            seen = union(leaf.keys, leaf.attributes.causal)
            self.groups[found] = HeadGroup(first=first, last=last, keys=leaf.keys, intervals=seen, origin=leaf.origin)
        return self.groups[found]

    def qk_source(self, index: int) -> int:
        """The nearest earlier layer with q and k of its own."""
        for earlier in range(index - 1, -1, -1):
            name = _name(earlier, "", "project")
            if name in self.network and self.network.nodes[name]["node"].qk_layer is None:
                return earlier
        raise AssertionError("the checker lets no layer take q and k from nowhere")


def _segment_mixes(mixer: Mixer, group: Callable[[int, int, Attention], HeadGroup]) -> tuple[Attributes, Segments]:
    """(attributes of the projections, what each segment of the KV groups does in each variant).

    Segments have variants of their own: variants of all heads together would be as many as the product of their numbers.
    """
    segments: Segments = []
    starts = sorted(_starts(mixer))
    for first, following in zip(starts, [*starts[1:], _kv_heads(mixer)], strict=True):
        choices: list[tuple[Attributes, tuple[Variant, ...]]] = []
        for guards, leaf in _variants(mixer, first):
            if isinstance(leaf, Attention):  # others keep states, and are nodes of their own
                choices.append((leaf.attributes, (Variant(guards=guards, groups=(group(first, following - 1, leaf),)),)))
        if choices:
            segments.append((first, following - 1, choices))
    every = [attributes for _, _, choices in segments for attributes, _ in choices]
    logits = next((one.sink_logit for one in every if one.sink_logit), None)  # one tensor for all heads, if some need it
    return replace(every[0], sink_logit=logits), segments


def _starts(mixer: Mixer) -> set[int]:
    """The KV groups at which some case of `heads` begins."""
    if isinstance(mixer, Heads):
        return {case.first for case in mixer.cases}
    inner = children(mixer)[:1] if isinstance(mixer, Choose) else children(mixer)
    return {0}.union(*map(_starts, inner))


def _variants(mixer: Mixer, group: int) -> list[tuple[tuple[Guard, ...], Attention | Mixing]]:
    """All that a KV group may do, and when: the first whose guards hold."""
    match mixer:
        case Attention() | Mixing():
            return [((), mixer)]
        case Choose(alternatives=alternatives):
            return _variants(alternatives[0].mixer, group)
        case When(cases=cases):
            found = []
            before: tuple[Guard, ...] = ()
            for case in cases:
                here = before if case.condition is None else (*before, Guard(condition=case.condition, holds=True))
                found += [((*here, *guards), leaf) for guards, leaf in _variants(case.mixer, group)]
                if case.condition is not None:
                    before = (*before, Guard(condition=case.condition, holds=False))
            return found
        case Heads(cases=cases):
            return _variants(next(case.mixer for case in cases if case.first <= group <= case.last), group)
        case _:
            raise AssertionError(f"{mixer.node} does not share projections")


def union(keys: tuple[Kind, ...], causal: bool) -> Intervals | None:
    """The union of key sets in normal form, or None where one of them is no static set of positions.

    Learned keys of a kind's own are a part of their own beside the sequence's keys, so they do not count here; nor do keys that
    content chooses, which come as lists.
    """
    parts = [MIXERS[key.kind].intervals(key, causal) for key in keys if is_static(key)]
    known = [part for part in parts if part is not None]
    if len(known) < len(parts):
        return None
    return arithmetic.union(known) if known else Intervals(causal=causal)


def is_static(key: Kind) -> bool:
    """Whether a key set is made of the sequence's keys, by their positions alone."""
    mixer = MIXERS[key.kind]
    return mixer.chooses is None and not mixer.own_keys(key)


def _kv_heads(mixer: Mixer) -> int:
    match mixer:
        case Attention(attributes=attributes) | Mixing(attributes=attributes):
            return attributes.kv_heads
        case Choose(alternatives=(first, *_)):
            return _kv_heads(first.mixer)
        case When(cases=(case, *_)):
            return _kv_heads(case.mixer)
        case Heads(cases=(HeadCase(mixer=inner), *_)):
            return _kv_heads(inner)
        case _:
            raise AssertionError(f"{mixer.node} does not share projections")


def _made(kind: str, n: int) -> Kind:
    """A key set of one size."""
    numbers: Any = {"n": n}
    return MIXERS[kind].parameters(**numbers)


def _join(scope: str, name: str) -> str:
    return f"{scope}.{name}" if scope else name


def _name(layer: int, scope: str, what: str) -> str:
    return "/".join(part for part in (str(layer), scope, what) if part)
