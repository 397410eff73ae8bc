"""Walks over checked mixers: parts with weights of their own, and what shares one set of q, k, v and o."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from attnc.compiler.spec import Attention, Chain, Choose, Gate, Heads, Mixer, Mixing, Route, Sum, When, WhenCase

CACHED_PHASES = frozenset({"prefill", "decode"})


class Part(NamedTuple):
    """A mixer with weights of its own; `scope` is its place in the layer (`gate.window`), empty for the whole layer."""

    scope: str
    mixer: Attention | Mixing | Heads | When | Choose | Route


class Leaf(NamedTuple):
    """An attention or kind with the KV groups first..last (both included) that it owns."""

    first: int
    last: int
    mixer: Attention | Mixing


def parts(mixer: Mixer, scope: str = "") -> Iterator[Part]:
    """The parts of a layer, in order."""
    if isinstance(mixer, Sum | Chain | Gate):
        for name, part in zip(mixer.names, mixer.parts, strict=True):
            yield from parts(part, f"{scope}.{name}" if scope else name)
    else:
        yield Part(scope, mixer)


def first_leaf(mixer: Mixer) -> Attention | Mixing:
    """The first attention or kind of a mixer."""
    match mixer:
        case Sum() | Chain() | Gate():
            return first_leaf(mixer.parts[0])
        case Heads() | When():
            return first_leaf(mixer.cases[0].mixer)
        case Choose() | Route():
            return first_leaf(mixer.alternatives[0].mixer)
        case _:
            return mixer


def default_leaves(mixer: Mixer, first: int, last: int, phases: frozenset[str]) -> Iterator[Leaf]:
    """The leaves that may run in one of `phases`, with `choose` at its default; those of `when` overlap."""
    match mixer:
        case Attention() | Mixing():
            yield Leaf(first, last, mixer)
        case Heads(cases=cases):
            for one in cases:
                yield from default_leaves(one.mixer, one.first, one.last, phases)
        case When(cases=cases):
            for case, left in reachable(cases, phases):
                yield from default_leaves(case.mixer, first, last, left)
        case Choose(alternatives=alternatives):
            yield from default_leaves(alternatives[0].mixer, first, last, phases)
        case Route(alternatives=alternatives):
            for alternative in alternatives:
                yield from default_leaves(alternative.mixer, first, last, phases)
        case _:
            raise AssertionError(f"{mixer.node} has parts with weights of their own")


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
        case Sum() | Chain() | Gate():
            return mixer.parts
        case Heads() | When():
            return tuple(case.mixer for case in mixer.cases)
        case Choose() | Route():
            return tuple(alternative.mixer for alternative in mixer.alternatives)
        case _:
            return ()


def rebuilt(mixer: Mixer, change: Callable[[Mixer], Mixer]) -> Mixer:
    """The mixer with `change` applied to each mixer directly inside."""
    update: dict[str, object]
    if isinstance(mixer, Sum | Chain | Gate):
        update = {"parts": tuple(change(part) for part in mixer.parts)}
    elif isinstance(mixer, Heads | When):
        update = {"cases": tuple(case.model_copy(update={"mixer": change(case.mixer)}) for case in mixer.cases)}
    elif isinstance(mixer, Choose | Route):
        update = {"alternatives": tuple(one.model_copy(update={"mixer": change(one.mixer)}) for one in mixer.alternatives)}
    else:
        return mixer
    return mixer.model_copy(update=update)


def leaves(mixer: Mixer) -> Iterator[Attention | Mixing]:
    """The attentions and kinds that share one set of q, k, v and o: those below heads, when, choose and route."""
    match mixer:
        case Attention() | Mixing():
            yield mixer
        case Heads() | When():
            for case in mixer.cases:
                yield from leaves(case.mixer)
        case Choose() | Route():
            for alternative in mixer.alternatives:
                yield from leaves(alternative.mixer)
        case _:
            return


def attentions(mixer: Mixer) -> list[Attention]:
    """All attentions of a layer, in the order written."""
    if isinstance(mixer, Sum | Chain | Gate):
        return [one for part in mixer.parts for one in attentions(part)]
    return [leaf for leaf in leaves(mixer) if isinstance(leaf, Attention)]
