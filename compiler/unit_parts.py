"""Parts of a layer that may be decided apart, the `choose` in each, and the part with every one decided."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from attnc.compiler.spec import (
    Alternative,
    Attention,
    Chain,
    Change,
    Choose,
    Gate,
    Heads,
    Mixer,
    Mixing,
    Select,
    Sum,
    When,
    WhenCase,
)
from attnc.compiler.walk import children, is_softmax, joined, rebuilt, selected_scope


def pieces(mixer: Mixer, scope: str = "") -> Iterator[tuple[str, Mixer]]:
    """The parts of a layer that may be decided apart, each with its scope."""
    match mixer:
        case Sum() | Chain() | Gate():
            for name, part in zip(mixer.names, mixer.parts, strict=True):
                yield from pieces(part, joined(scope, name))
        case Select(mixer=inner):
            yield from pieces(inner, selected_scope(mixer, scope))
        case Change():
            return
        case _:
            yield scope, mixer


def with_pieces(mixer: Mixer, made: Mapping[str, Mixer], scope: str = "") -> Mixer:
    """The layer with some of its parts replaced, by scope."""
    match mixer:
        case Sum() | Chain() | Gate():
            parts = zip(mixer.names, mixer.parts, strict=True)
            return replace(mixer, parts=tuple(with_pieces(part, made, joined(scope, name)) for name, part in parts))
        case Select(mixer=inner):
            return replace(mixer, mixer=with_pieces(inner, made, selected_scope(mixer, scope)))
        case _:
            return made.get(scope, mixer)


def chooses(mixer: Mixer, path: str = "") -> Iterator[tuple[str, Choose]]:
    """Every `choose` of a part and its place: numbers of cases and names of alternatives, joined by dots."""
    if isinstance(mixer, Choose):
        yield path, mixer
        for alternative in mixer.alternatives:
            yield from chooses(alternative.mixer, joined(path, alternative.name))
    else:
        for number, inner in enumerate(children(mixer)):
            yield from chooses(inner, joined(path, str(number)))


def chooses_met(mixer: Mixer, words: Mapping[str, str], path: str = "") -> Iterator[tuple[str, Choose]]:
    """Those that still decide something with these alternatives."""
    if isinstance(mixer, Choose):
        yield path, mixer
        for alternative in mixer.alternatives:
            if alternative.name == words.get(path, mixer.alternatives[0].name):
                yield from chooses_met(alternative.mixer, words, joined(path, alternative.name))
    else:
        for number, inner in enumerate(children(mixer)):
            yield from chooses_met(inner, words, joined(path, str(number)))


def resolved(mixer: Mixer, words: Mapping[str, str], path: str = "") -> Mixer:
    """The mixer with an alternative in place of each `choose`: the first one where `words` says nothing.

    An alternative with weights of its own stays the only one of its `choose`, whose name is part of the weights' names.
    """
    if isinstance(mixer, Choose):
        wanted = words.get(path, mixer.alternatives[0].name)
        taken = next(one for one in mixer.alternatives if one.name == wanted)
        inner = resolved(taken.mixer, words, joined(path, wanted))
        return inner if is_softmax(inner) else replace(mixer, alternatives=(Alternative(name=wanted, mixer=inner),))
    count = iter(range(len(children(mixer))))
    return rebuilt(mixer, lambda one: resolved(one, words, joined(path, str(next(count)))))


def onto(mixer: Mixer, group: int) -> Mixer:
    """What one KV group of a block does."""
    match mixer:
        case Heads(cases=cases):
            return onto(next(case.mixer for case in cases if case.first <= group <= case.last), group)
        case When(cases=branches):
            made: tuple[WhenCase, ...] = tuple(replace(one, mixer=onto(one.mixer, group)) for one in branches)
            return replace(mixer, cases=made)
        case _:
            assert isinstance(mixer, Attention | Mixing | Choose), "what is decided for each head is made of heads"
            return mixer
