"""Kinds with a state a head as cases of `heads`: the KV groups of each, beside softmaxes whose projections it shares."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

from attnc.compiler.attributes import Attributes
from attnc.compiler.part_names import part_names
from attnc.compiler.spec import Choose, Heads, Mixer, Mixing

Runs = tuple[tuple[int, int], ...]
"""KV groups first..last, both included, in order."""


class HeadStates(NamedTuple):
    """A case: its name, the kind with the attributes of its own heads alone, and where these lie in the layer."""

    name: str
    mixing: Mixing
    runs: Runs


def head_states(mixer: Mixer) -> tuple[HeadStates, ...]:
    """The kinds of a block of `heads` that keep states, with `choose` at its default; none where it has softmaxes alone.

    A case whose selector names groups apart is one kind with one set of weights.
    """
    found: dict[tuple[str, Mixing], Runs] = {}
    for name, mixing, run in _owners(mixer, "", None):
        found[name, mixing] = (*found.get((name, mixing), ()), run)
    names = part_names([name for name, _ in found])
    return tuple(
        HeadStates(name, replace(mixing, attributes=of_groups(mixing.attributes, size(runs))), runs)
        for name, ((_, mixing), runs) in zip(names, found.items(), strict=True)
    )


def size(runs: Runs) -> int:
    """How many KV groups they are."""
    return sum(last - first + 1 for first, last in runs)


def of_groups(attributes: Attributes, groups: int) -> Attributes:
    """The same attributes for some of the KV heads."""
    if groups == attributes.kv_heads:
        return attributes
    share = {key: max(1, getattr(attributes, key) * groups // attributes.kv_heads) for key in ("heads", "qk_heads")}
    return replace(attributes, **share, kv_heads=groups)


def _owners(mixer: Mixer, name: str, run: tuple[int, int] | None) -> Iterator[tuple[str, Mixing, tuple[int, int]]]:
    match mixer:
        case Heads(cases=cases):
            for case in cases:
                yield from _owners(case.mixer, case.name, (case.first, case.last))
        case Choose(alternatives=(first, *_)):
            yield from _owners(first.mixer, name or first.name, run)
        case Mixing() if run is not None:
            yield name, mixer, run
        case _:
            return
