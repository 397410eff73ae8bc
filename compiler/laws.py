"""Which laws a spec owes, and why not the others (docs/language.md, rule 7). The tests read this list."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from attnc.compiler.causality import causality, choices
from attnc.compiler.mixer import Kind
from attnc.compiler.mixers.routed.choice import LogGaussian, Sublinear
from attnc.compiler.mixers.routed.kind import Routed
from attnc.compiler.print_value import print_value
from attnc.compiler.spec import Attention, Choose, Mixer, Spec, When
from attnc.compiler.value import Share, Value
from attnc.compiler.walk import children

Name = Literal["causal", "packed", "padded", "chunked", "decode", "prefix", "by_phase"]

SENTENCES: dict[Name, str] = {
    "causal": "later tokens change no earlier output",
    "packed": "a sequence among packed ones gives what it gives alone",
    "padded": "left padding changes nothing",
    "chunked": "a prompt in chunks gives what it gives whole, and what training gives",
    "decode": "decoding token by token gives what one prefill gives",
    "prefix": "a prefix gives what it gives within a longer text",
    "by_phase": "each phase gives what its own reference gives, decoding step by step",
}


class Law(Value):
    """One law, and whether the spec owes it; `reason` says what in the spec decides against it."""

    name: Name
    sentence: str
    owed: bool
    reason: str = ""


def laws(spec: Spec) -> tuple[Law, ...]:
    """All laws, in one order, each owed or not."""
    ahead = next((one.reason for one in choices(spec) if one.causality != "strict"), "")
    changes = next((reason for layer in spec.layers for reason in _changes(layer.mixer)), "")
    encoder = ahead if causality(spec) == "none" else ""
    reasons: dict[Name, str] = {
        "causal": ahead,
        "packed": "",
        "padded": "",
        "chunked": ahead or changes,
        "decode": ahead or changes,
        "prefix": ahead or changes,
        "by_phase": encoder or ("" if ahead or changes else "every phase computes the same"),
    }
    return tuple(Law(name=name, sentence=SENTENCES[name], owed=not why, reason=why) for name, why in reasons.items())


def owed(spec: Spec) -> frozenset[Name]:
    """The names of the laws that the spec owes."""
    return frozenset(law.name for law in laws(spec) if law.owed)


def _changes(mixer: Mixer) -> Iterator[str]:
    """What makes results depend on phase or length, with `choose` at its default."""
    if isinstance(mixer, When):
        for case in mixer.cases:
            if case.condition is not None:
                yield f"`{case.condition.left}` decides between mixers"
    if isinstance(mixer, Attention):
        for kind in mixer.keys:
            yield from _of_routed(kind) if isinstance(kind, Routed) else _of_static(kind)
    for one in children(mixer)[:1] if isinstance(mixer, Choose) else children(mixer):
        yield from _changes(one)


def _of_static(kind: Kind) -> Iterator[str]:
    """Sizes that count tokens of the sequence; a share in `shift` is of a block."""
    if any(isinstance(value, Share) for name, value in kind if name == "n"):
        yield "a key set is a share of the length"


def _of_routed(kind: Routed) -> Iterator[str]:
    """What makes the choice another one at another length, or leaves keys out for good or for a while."""
    if isinstance(kind.top_k, Share | Sublinear | LogGaussian):
        yield f"`top_k = {print_value(kind.top_k)}` depends on the length"
    if kind.dense_queries is not None and kind.dense_queries.word == "last":
        yield f"`dense_queries = {print_value(kind.dense_queries)}` depends on the length"
    if kind.evict:
        yield "`evict` drops keys for good"
    if kind.refresh != "always":
        yield f"`refresh = {print_value(kind.refresh)}` keeps a choice for several steps"
    for part in kind.within or ():
        yield from _of_routed(part) if isinstance(part, Routed) else _of_static(part)
