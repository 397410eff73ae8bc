"""Which laws a spec owes, and why not the others (docs/language.md, rule 7). The tests read this list."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from attnc.compiler.spec import Attention, Choose, Mixer, Spec, When
from attnc.compiler.value import Share, Value
from attnc.compiler.walk import children

Name = Literal["causal", "packed", "padded", "chunked", "decode", "prefix", "by_phase"]
Causality = Literal["strict", "none"]

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
    sees_ahead = causality(spec) != "strict"
    changes = next((reason for layer in spec.layers for reason in _changes(layer.mixer)), "")
    ahead = "`causal = false` sees later tokens" if sees_ahead else ""
    reasons: dict[Name, str] = {
        "causal": ahead,
        "packed": "",
        "padded": "",
        "chunked": ahead or changes,
        "decode": ahead or changes,
        "prefix": ahead or changes,
        "by_phase": ahead or ("" if changes else "every phase computes the same"),
    }
    return tuple(Law(name=name, sentence=SENTENCES[name], owed=not why, reason=why) for name, why in reasons.items())


def owed(spec: Spec) -> frozenset[Name]:
    """The names of the laws that the spec owes."""
    return frozenset(law.name for law in laws(spec) if law.owed)


def causality(spec: Spec) -> Causality:
    """`strict`: no choice of keys depends on later tokens. `none`: the spec sees later tokens anyway.

    Every kind built so far and `route(per = token)` decide from the token itself, so nothing lies between.
    """
    found = [one for layer in spec.layers for one in _leaves(layer.mixer)]
    return "strict" if all(one.attributes.causal for one in found if isinstance(one, Attention)) else "none"


def _leaves(mixer: Mixer) -> Iterator[Mixer]:
    inner = children(mixer)
    if not inner:
        yield mixer
    for one in inner:
        yield from _leaves(one)


def _changes(mixer: Mixer) -> Iterator[str]:
    """What makes results depend on phase or length, with `choose` at its default."""
    if isinstance(mixer, When):
        for case in mixer.cases:
            if case.condition is not None:
                yield f"`{case.condition.left}` decides between mixers"
    if isinstance(mixer, Attention) and any(isinstance(value, Share) for kind in mixer.keys for value in _sizes(kind)):
        yield "a key set is a share of the length"
    for one in children(mixer)[:1] if isinstance(mixer, Choose) else children(mixer):
        yield from _changes(one)


def _sizes(kind: Any) -> Iterator[Any]:
    """Sizes that count tokens of the sequence; a share in `shift` is of a block."""
    return (value for name, value in kind if name == "n")
