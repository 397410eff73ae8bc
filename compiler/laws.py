"""Which laws a spec owes, and why not the others (docs/language.md, rule 7). The tests read this list."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from attnc.compiler.causality import causality, choices
from attnc.compiler.mixers import MIXERS
from attnc.compiler.spec import Attention, Choose, Mixer, Spec, When
from attnc.compiler.value import Value
from attnc.compiler.walk import children, kinds_within

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
    rules = {id(layer.mixer): layer.mixer for layer in spec.layers}  # layers of one rule share their mixer
    changes = next((reason for mixer in rules.values() for reason in _changes(mixer)), "")
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
            for one in (kind, *kinds_within(kind)):
                yield from MIXERS[one.kind].changes(one)
    for inner in children(mixer)[:1] if isinstance(mixer, Choose) else children(mixer):
        yield from _changes(inner)
