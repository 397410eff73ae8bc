"""The same weights with full attention: what a teacher is, and what a tuner compares with."""

from __future__ import annotations

from dataclasses import replace

from attnc.compiler.mixers import MIXERS
from attnc.compiler.spec import Attention, Chain, Choose, Gate, Heads, Mixer, Route, Sum, When
from attnc.compiler.walk import attentions, children, rebuilt


def full(mixer: Mixer) -> Mixer:
    """The mixer with a softmax over every key; names of weights stay.

    Of branches (`+`, `gate`) the first softmax stays, and the others are left out; of alternatives the first that is full.
    """
    match mixer:
        case Attention():
            return replace(mixer, keys=(MIXERS["full"].examples[0],))
        case Sum(names=names, parts=parts) | Gate(names=names, parts=parts):
            name, part = next((n, p) for n, p in zip(names, parts, strict=True) if attentions(p))
            return Sum(names=(name,), parts=(full(part),))
        case When() | Choose() | Route():
            softmaxes = [one for one in children(mixer) if attentions(one)]
            return full(next((one for one in softmaxes if is_full(one)), softmaxes[0]))
        case Heads() | Chain():
            return rebuilt(mixer, lambda one: full(one) if attentions(one) else one)
        case _:
            return mixer


def is_full(mixer: Mixer) -> bool:
    """Whether every softmax in it sees every key."""
    return all(key.kind == "full" for one in attentions(mixer) for key in one.keys)
