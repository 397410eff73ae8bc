"""Which KV heads of a block keep the same tokens: the join over all that may run with a cache."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import NamedTuple

from attnc.compiler.attributes import Attributes
from attnc.compiler.kept import join, of_union
from attnc.compiler.mixer import Kept, Kind
from attnc.compiler.spec import Attention, Mixer, Route
from attnc.compiler.value import Share, Tokens
from attnc.compiler.walk import Leaf, default_leaves

DECODE = frozenset({"decode"})


class Run(NamedTuple):
    """KV heads first..last (both included), what they keep, and the key sets that decode with them."""

    first: int
    last: int
    kept: Kept
    decoding: tuple[Kind, ...]


def runs(mixer: Mixer, attributes: Attributes, phases: frozenset[str]) -> list[Run]:
    """The runs of a mixer that a cache meets in `phases`.

    A route of keys keeps all of them. Where decoding drops keys it alone decides: prefill drops them when it is done.
    """
    last = attributes.kv_heads - 1
    every = list(default_leaves(mixer, 0, last, phases))
    decoding = _attentions(default_leaves(mixer, 0, last, DECODE & phases))
    cached = _attentions(every)
    if isinstance(mixer, Route) and mixer.per in ("token", "chunk"):
        return [Run(0, last, Kept(), _keys(decoding, 0))]
    starts = sorted({leaf.first for leaf in every})
    found: list[Run] = []
    for first, following in zip(starts, [*starts[1:], last + 1], strict=True):
        keys = _keys(decoding, first)
        alone = of_union(keys).drops
        here = [leaf for leaf in (decoding if alone else cached) if leaf.first <= first <= leaf.last]
        if not here:  # a kind with a state of its own
            continue
        kept = _kept(here, attributes.heads // attributes.kv_heads)
        if found and found[-1].last == first - 1 and found[-1].kept == kept and found[-1].decoding == keys:
            found[-1] = found[-1]._replace(last=following - 1)
        else:
            found.append(Run(first, following - 1, kept, keys))
    if attributes.kv_latent is not None and len(found) > 1:  # all heads read one latent
        keys = tuple(dict.fromkeys(kind for run in found for kind in run.decoding))
        return [Run(0, last, join(run.kept for run in found), keys)]
    return found


def _kept(found: list[Leaf], ratio: int) -> Kept:
    """What leaves of the same KV heads keep; where each query head drops for itself, a KV head keeps what any chose."""
    each = []
    for leaf in found:
        assert isinstance(leaf.mixer, Attention), "of other kinds the states are rows of their own"
        kept = of_union(leaf.mixer.keys)
        each.append(replace(kept, chosen=_times(kept.chosen, ratio if kept.by_query_head else 1)))
    return join(each)


def _attentions(found: Iterable[Leaf]) -> list[Leaf]:
    return [leaf for leaf in found if isinstance(leaf.mixer, Attention)]


def _keys(found: list[Leaf], head: int) -> tuple[Kind, ...]:
    """The kinds that KV head `head` decodes with, each once."""
    here = [leaf.mixer for leaf in found if leaf.first <= head <= leaf.last]
    return tuple(dict.fromkeys(kind for mixer in here if isinstance(mixer, Attention) for kind in mixer.keys))


def _times(tokens: Tokens, ratio: int) -> Tokens:
    if isinstance(tokens, Share):
        return Share(percent=min(100.0, tokens.percent * ratio))
    return tokens * ratio
