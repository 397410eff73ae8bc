"""What decoding keeps of each head group: the join over the key sets of a union, and over variants that a cache can reach."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from attnc.compiler.mixer import Kept, Kind
from attnc.compiler.mixers import MIXERS
from attnc.compiler.overlay import block_size
from attnc.compiler.value import Share, Tokens

if TYPE_CHECKING:  # the table of a spec is printed without networkx
    from attnc.compiler.graph import Guard, Mix


def kept_heads(mix: Mix) -> list[tuple[int, int, Kept]]:
    """(first, last, what is kept) of each run of KV groups of a mix that keep the same."""
    reachable = [variant for variant in mix.variants if not only_in_training(variant.guards)] or list(mix.variants)
    starts = sorted({group.first for variant in reachable for group in variant.groups})
    runs: list[tuple[int, int, Kept]] = []
    for first, following in zip(starts, [*starts[1:], mix.last + 1], strict=True):
        groups = [group for variant in reachable for group in variant.groups if group.first <= first <= group.last]
        kept = join(of_union(group.keys) for group in groups)
        if runs and runs[-1][2] == kept:
            runs[-1] = (runs[-1][0], following - 1, kept)
        else:
            runs.append((first, following - 1, kept))
    return runs


def only_in_training(guards: Sequence[Guard]) -> bool:
    """Whether a variant runs in training alone, so that no cache ever serves it."""
    phases = {"prefill", "decode"}
    for guard in guards:
        if guard.condition.left == "phase":
            right = {str(guard.condition.right)}
            phases = phases & right if guard.holds else phases - right
    return not phases


def of_union(keys: Iterable[Kind]) -> Kept:
    """What a union keeps; learned keys are in no cache."""
    found = [MIXERS[key.kind].kept(key) for key in keys if not MIXERS[key.kind].own_keys(key)]
    return join(kept for kept in found if kept is not None)


def join(found: Iterable[Kept]) -> Kept:
    """The least that serves all of `found`: everything, where two of them cannot be compared."""
    pinned: Tokens = 0
    recent: Tokens = 0
    chosen: Tokens = 0
    found = list(found)
    for kept in found:
        larger = None if kept.recent is None else _larger(recent, kept.recent)
        start = _larger(pinned, kept.pinned)
        picked = _larger(chosen, kept.chosen)
        if larger is None or start is None or picked is None:
            return Kept()
        recent, pinned, chosen = larger, start, picked
    by_query_head, drops = any(kept.by_query_head for kept in found), any(kept.drops for kept in found)
    return Kept(pinned=pinned, recent=recent, chosen=chosen, by_query_head=by_query_head, drops=drops)


def _larger(one: Tokens, other: Tokens) -> Tokens | None:
    """The larger count, or None where one is a share and the other a number of tokens."""
    if isinstance(one, Share) and isinstance(other, Share):
        return max(one, other, key=lambda share: share.percent)
    if isinstance(one, Share) or isinstance(other, Share):
        return one if other == 0 else other if one == 0 else None
    return max(one, other)


def chunk_size(mix: Mix) -> int:
    """The block size by which `positions = chunk` counts: that of the key sets of the union that have blocks."""
    keys = [key for variant in mix.variants for group in variant.groups for key in group.keys]
    sizes = {size for key in keys if (size := block_size(key)) is not None}
    assert len(sizes) == 1, "the checker lets only one block size number the chunks"
    (size,) = sizes
    assert isinstance(size, int), "chunks have a fixed size"
    return size
