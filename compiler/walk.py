"""Walks over checked mixers: parts with weights of their own, and what shares one set of q, k, v and o."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

from attnc.compiler.attributes import Attributes
from attnc.compiler.mixer import Kind
from attnc.compiler.spec import (
    Alternative,
    Attention,
    Chain,
    Change,
    Choose,
    Context,
    Gate,
    HeadCase,
    Heads,
    Mixer,
    Mixing,
    Route,
    Select,
    Sum,
    When,
    WhenCase,
)
from attnc.compiler.value import Value

CACHED_PHASES = frozenset({"prefill", "decode"})


class Part(NamedTuple):
    """A mixer with weights of its own; `scope` is its place in the layer (`gate.window`), empty for the whole layer.

    A block stands for the softmax alternatives directly in it, which share one set of q, k, v and o; its other alternatives
    are parts of their own. A context stands for its softmax, and its memory is a part of its own.
    """

    scope: str
    mixer: Attention | Mixing | Heads | When | Choose | Route | Context
    phases: frozenset[str] = CACHED_PHASES
    """In which of them a cache may meet it, with every `choose` at its default."""


class Leaf(NamedTuple):
    """An attention or kind with the KV groups first..last (both included) that it owns."""

    first: int
    last: int
    mixer: Attention | Mixing


def parts(mixer: Mixer, scope: str = "", phases: frozenset[str] = CACHED_PHASES) -> Iterator[Part]:
    """The parts of a layer, in order."""
    match mixer:
        case Sum() | Chain() | Gate():
            for name, part in zip(mixer.names, mixer.parts, strict=True):
                yield from parts(part, joined(scope, name), phases)
        case Select(mixer=inner):
            yield from parts(inner, selected_scope(mixer, scope), phases)
        case Context(name=name, memory=memory):
            yield Part(scope, mixer, phases)
            yield from parts(memory, joined(scope, name), phases)
        case Heads() | When() | Choose() | Route():
            if any(isinstance(leaf, Attention) for leaf in leaves(mixer)):
                met = any(isinstance(leaf.mixer, Attention) for leaf in default_leaves(mixer, 0, 0, phases))
                yield Part(scope, mixer, phases if met else frozenset())
            for name, inner, left in dict.fromkeys(_with_own_weights(mixer, phases)):  # KV groups apart are one case
                yield from parts(inner, joined(scope, name), left)
        case Change():
            return
        case _:
            yield Part(scope, mixer, phases)


def joined(scope: str, name: str) -> str:
    """A part's place in a layer: `gate.window`."""
    return f"{scope}.{name}" if scope and name else scope or name


def selected_scope(select: Select, scope: str) -> str:
    """The place of what a `select` holds: its own, if that has parts."""
    several = isinstance(select.mixer, Sum | Chain | Gate | Context)
    return joined(scope, select.name) if several else scope


def is_softmax(mixer: Mixer) -> bool:
    """Whether an alternative shares its block's q, k, v and o, or is a block itself."""
    return isinstance(mixer, Attention | Heads | When | Choose | Route)


def default(mixer: Mixer) -> Mixer:
    """What a `choose` is until the tuner has decided, `choose` within `choose` included; any other mixer is itself."""
    while isinstance(mixer, Choose):
        mixer = mixer.alternatives[0].mixer
    return mixer


def _with_own_weights(mixer: Mixer, phases: frozenset[str]) -> Iterator[tuple[str, Mixer, frozenset[str]]]:
    """The alternatives of a block, and of blocks directly in it, that are no softmax: name, mixer, phases that meet it."""
    for name, inner, left in alternatives(mixer, phases):
        if is_softmax(inner) and not isinstance(inner, Attention):
            for further, own, least in _with_own_weights(inner, left):
                yield joined(name, further), own, least
        elif not isinstance(inner, Attention):
            yield name, inner, left


def alternatives(mixer: Mixer, phases: frozenset[str]) -> Iterator[tuple[str, Mixer, frozenset[str]]]:
    """What a block decides between: name, mixer, and the phases in which a cache may meet it."""
    match mixer:
        case Heads(cases=cases):
            for one in cases:
                yield one.name, one.mixer, phases
        case When(cases=branches):
            met = {id(branch): left for branch, left in reachable(branches, phases)}
            for branch in branches:
                yield branch.name, branch.mixer, met.get(id(branch), frozenset())
        case Choose() | Route():
            for index, alternative in enumerate(mixer.alternatives):
                here = isinstance(mixer, Route) or index == 0
                yield alternative.name, alternative.mixer, phases if here else frozenset()
        case _:
            return


def first_leaf(mixer: Mixer) -> Attention | Mixing | Context:
    """The first attention or kind of a mixer."""
    if isinstance(mixer, Attention | Mixing | Context):
        return mixer
    return first_leaf(next(one for one in children(mixer) if not isinstance(one, Change)))


def default_leaves(mixer: Mixer, first: int, last: int, phases: frozenset[str]) -> Iterator[Leaf]:
    """The leaves that may run in one of `phases`, with `choose` at its default; those of `when` overlap.

    What has several parts with weights of their own holds no leaf of this block.
    """
    match mixer:
        case Attention() | Mixing():
            yield Leaf(first, last, mixer)
        case Heads(cases=cases):
            for one in cases:
                yield from default_leaves(one.mixer, one.first, one.last, phases)
        case When(cases=cases):
            for case, left in reachable(cases, phases):
                yield from default_leaves(case.mixer, first, last, left)
        case Choose(alternatives=options):
            yield from default_leaves(options[0].mixer, first, last, phases)
        case Route(alternatives=options):
            for alternative in options:
                yield from default_leaves(alternative.mixer, first, last, phases)
        case _:
            return


def reachable(cases: tuple[WhenCase, ...], phases: frozenset[str]) -> Iterator[tuple[WhenCase, frozenset[str]]]:
    """The cases of a `when` that may be taken in one of `phases`, each with the phases left for it."""
    for case in cases:
        here, tests_phase = phases, case.condition is not None and case.condition.left == "phase"
        if tests_phase:
            assert case.condition is not None
            here = phases & {str(case.condition.right)}
            phases = phases - here
        if here:
            yield case, here


def children(mixer: Mixer) -> tuple[Mixer, ...]:
    """The mixers directly inside."""
    match mixer:
        case Attention() | Mixing():
            return ()
        case Sum() | Chain() | Gate():
            return mixer.parts
        case Heads() | When():
            return tuple(case.mixer for case in mixer.cases)
        case Choose() | Route():
            return tuple(alternative.mixer for alternative in mixer.alternatives)
        case Context(memory=memory):
            return (memory,)
        case Select(mixer=inner):
            return (inner,)
        case _:
            return ()


def rebuilt(mixer: Mixer, change: Callable[[Mixer], Mixer]) -> Mixer:
    """The mixer with `change` applied to each mixer directly inside."""
    update: dict[str, Any]
    if isinstance(mixer, Sum | Chain | Gate):
        update = {"parts": tuple(change(part) for part in mixer.parts)}
    elif isinstance(mixer, Heads | When):
        update = {"cases": tuple(_with_mixer(case, change(case.mixer)) for case in mixer.cases)}
    elif isinstance(mixer, Choose | Route):
        update = {"alternatives": tuple(_with_mixer(one, change(one.mixer)) for one in mixer.alternatives)}
    elif isinstance(mixer, Context):
        update = {"memory": change(mixer.memory)}
    elif isinstance(mixer, Select):
        update = {"mixer": change(mixer.mixer)}
    else:
        return mixer
    return replace(mixer, **update)


def _with_mixer(case: HeadCase | WhenCase | Alternative, mixer: Mixer) -> HeadCase | WhenCase | Alternative:
    return replace(case, mixer=mixer)


def leaves(mixer: Mixer) -> Iterator[Attention | Mixing]:
    """The attentions and kinds directly below heads, when, choose and route: those that share q, k, v and o."""
    match mixer:
        case Attention() | Mixing():
            yield mixer
        case Heads() | When() | Choose() | Route():
            for inner in children(mixer):
                yield from leaves(inner)
        case _:
            return


def attentions(mixer: Mixer) -> list[Attention]:
    """All attentions of a layer, in the order written."""
    if isinstance(mixer, Attention):
        return [mixer]
    return [one for inner in children(mixer) for one in attentions(inner)]


def every(mixer: Mixer) -> Iterator[Mixer]:
    """The mixer and all mixers inside it."""
    yield mixer
    for inner in children(mixer):
        yield from every(inner)


def kinds(mixer: Mixer) -> Iterator[tuple[Kind, Attributes | None]]:
    """All kinds in a mixer, with the attributes that hold for each; changes of the sequence have none."""
    for one in every(mixer):
        match one:
            case Attention(keys=keys, attributes=attributes):
                for kind in keys:
                    yield kind, attributes
            case Mixing(kind=kind, attributes=attributes):
                yield kind, attributes
            case Change(kind=kind):
                yield kind, None
            case _:
                pass


def kinds_within(value: Any) -> Iterator[Kind]:
    """The kinds that stand as arguments in a kind or value, however deep."""
    for inner in vars(value).values():
        for one in inner if isinstance(inner, tuple) else (inner,):
            if isinstance(one, Kind):
                yield one
            if isinstance(one, Value):
                yield from kinds_within(one)
