"""Which later tokens decide what `routed` chooses, and what makes its choice depend on the length or the step."""

from __future__ import annotations

import math
from collections.abc import Iterator

from attnc.compiler.mixer import CLASSES, Causality, Selection
from attnc.compiler.mixers.routed.choice import Last, LogGaussian, QueryBlock, Sublinear
from attnc.compiler.mixers.routed.kind import Routed
from attnc.compiler.mixers.routed.units import Clusters, Mean
from attnc.compiler.print_value import print_value
from attnc.compiler.value import Share


def selection(kind: Routed, earlier: Causality) -> Selection:
    """The worst of what decides; `earlier` is the class of the choice which `from = previous` takes over."""
    found = _taken_over(earlier) if kind.from_ is not None else _own(kind, earlier)
    return found._replace(accepted=kind.selection == "noncausal", drops=kind.evict)


def _taken_over(earlier: Causality) -> Selection:
    return Selection(earlier, "`from = previous` takes over a choice that looks ahead" if earlier != "strict" else "")


def _own(kind: Routed, earlier: Causality) -> Selection:
    found = list(_ahead(kind))
    found += [selection(part, earlier) for part in kind.within or () if isinstance(part, Routed)]
    found = [one for one in found if one.causality != "strict"]
    if not found:
        return Selection("strict")
    first = max(found, key=lambda one: CLASSES.index(one.causality))
    multiples = [one.multiple for one in found if one.multiple is not None]
    return first._replace(multiple=math.lcm(*multiples) if len(multiples) == len(found) else None)


def _ahead(kind: Routed) -> Iterator[Selection]:
    """What looks ahead: units that are not complete are no candidates, so all else looks back."""
    if isinstance(kind.unit, Clusters):
        yield Selection("sequence", "clusters take their best tokens of the whole sequence")
    if isinstance(kind.queries, QueryBlock) and kind.queries.n > 1:
        n = kind.queries.n
        yield Selection("block", f"`queries = {print_value(kind.queries)}`: a block of {n} queries asks as one", n)
    if isinstance(kind.queries, Last):
        yield Selection("sequence", f"`queries = {print_value(kind.queries)}`: the last queries decide for all")
    if isinstance(kind.keys, Mean) and kind.keys.chunks is not None:
        yield Selection("block", "`chunks = predicted(...)`: where a chunk ends depends on the tokens after it")


def changes(kind: Routed) -> Iterator[str]:
    """What makes the choice another one at another length, or leaves keys out for good or for a while."""
    if isinstance(kind.top_k, Share | Sublinear | LogGaussian):
        yield f"`top_k = {print_value(kind.top_k)}` depends on the length"
    if isinstance(kind.dense_queries, Last):
        yield f"`dense_queries = {print_value(kind.dense_queries)}` depends on the length"
    if kind.evict:
        yield "`evict` drops keys for good"
    if kind.refresh != "always":
        yield f"`refresh = {print_value(kind.refresh)}` keeps a choice for several steps"
