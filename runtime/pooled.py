"""What stands for runs of keys when units are scored: means and bounds, kept in the cache as tokens arrive.

Legend: G KV heads; L keys of a sequence, from position 0 on; M runs; D key width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from .batch import Batch
from .chunks_pooled import ChunkPool
from .keys import KeyPart, Run
from .scorers import Indexed, LearnedPool, Net
from .selector import Selector

if TYPE_CHECKING:
    from .sources import Source
    from .storage import LayerCache

Pool = Literal["mean", "min", "max", "indexer", "learned", "k", "v"]


@dataclass(frozen=True)
class Pooled:
    """KV heads first..last keep the pooled key of every run of `span` tokens, one begun every `step`."""

    name: str
    first: int
    last: int
    width: int
    span: int
    step: int
    pool: Pool = "mean"

    @property
    def heads(self) -> int:
        """How many KV heads."""
        return self.last - self.first + 1


def runs(tokens: int, span: int, step: int) -> int:
    """How many runs of a text of so many tokens are complete."""
    return (tokens - span) // step + 1 if tokens >= span else 0


def pool_runs(k: Tensor, span: int, step: int, pool: Pool) -> Tensor:
    """Keys k [G, L, D] -> the pooled key of every complete run, [G, M, D], in k's dtype; means are taken in fp32 (float64)."""
    if k.shape[1] < span:
        return k.new_zeros(k.shape[0], 0, k.shape[2])
    cut = k.unfold(1, span, step)  # [G, M, D, span]
    if pool == "mean":
        return cut.mean(-1, dtype=torch.promote_types(k.dtype, torch.float32)).to(k.dtype)
    return cut.amin(-1) if pool == "min" else cut.amax(-1)


def text_keys(parts: tuple[KeyPart, ...], first: int, last: int, s: int) -> tuple[Tensor, Tensor, int]:
    """k [G, L, D] and v [G, L, E] of KV heads first..last of sequence s, the learned first; how many are learned."""
    found = _runs_of(parts, first, last, s)
    heads = last - first + 1
    if not found:
        return parts[0].k.new_zeros(heads, 0, parts[0].k_width), parts[0].v.new_zeros(heads, 0, parts[0].v_width), 0
    k, v, learned = [], [], 0
    begin = min(found[0].start, 0)
    for run in found:
        if run.start > begin:  # what a ring has lost: nobody sees it
            k.append(run.k.new_zeros(heads, run.start - begin, run.k.shape[3]))
            v.append(run.v.new_zeros(heads, run.start - begin, run.v.shape[3]))
        k.append(run.k[0])
        v.append(run.v[0])
        begin = run.start + run.k.shape[2]
        learned += run.k.shape[2] if run.start < 0 else 0
    return (torch.cat(k, dim=1), torch.cat(v, dim=1), learned) if len(k) > 1 else (k[0], v[0], learned)


def _runs_of(parts: tuple[KeyPart, ...], first: int, last: int, s: int) -> list[Run]:
    """The stretches of sequence s in rising order of position, the learned first."""
    ordered = sorted((part for part in parts if part.counts[s]), key=lambda part: part.bases[s])
    return sorted((run for part in ordered for run in part.read(first, last, s)), key=lambda run: run.start)


def stretch(parts: tuple[KeyPart, ...], first: int, last: int, s: int, begin: int, end: int) -> tuple[Tensor, Tensor]:
    """k [G, end - begin, D] and v [G, end - begin, E] of the tokens at those positions, which are all there."""
    k, v = [], []
    for run in _runs_of(parts, first, last, s):
        low, high = max(begin - run.start, 0), min(end - run.start, run.k.shape[2])
        if run.start >= 0 and low < high:
            k.append(run.k[0][:, low:high])
            v.append(run.v[0][:, low:high])
    found = (torch.cat(k, dim=1), torch.cat(v, dim=1)) if len(k) != 1 else (k[0], v[0])
    assert found[0].shape[1] == end - begin, "a ring keeps what its chunks are made of"
    return found


def keep(cache: LayerCache, parts: tuple[KeyPart, ...], batch: Batch, net: Net | None = None) -> None:
    """Pool the runs that this call's tokens complete, into the cache; `parts` hold the text up to the call's end.

    `net`: the keys of an indexer, which are kept as they are.
    """
    for one in cache.plan.pooled:
        storage = cache.pooled(one.name, batch)
        if one.pool == "indexer":
            assert isinstance(net, Indexed), "an indexer brings its keys"
            for s, new in enumerate(net.split(batch.sizes)):
                storage[s][:, batch.pasts[s] : batch.pasts[s] + len(new.k)] = new.k.transpose(0, 1).to(storage[s].dtype)
            continue
        for s, (past, size) in enumerate(zip(batch.pasts, batch.sizes, strict=True)):
            begun, done = runs(past, one.span, one.step), runs(past + size, one.span, one.step)
            if done > begun:
                at = begun * one.step
                fresh, values = stretch(parts, one.first, one.last, s, at, (done - 1) * one.step + one.span)
                if isinstance(net, LearnedPool) and one.pool == "learned":
                    found = net.keys(fresh, at, one.span, one.first)
                elif isinstance(net, ChunkPool) and one.pool in ("k", "v"):
                    found = net.keys(fresh, at) if one.pool == "k" else net.values(values)
                else:
                    found = pool_runs(fresh, one.span, one.step, one.pool)
                storage[s][:, begun:done] = found.to(storage[s].dtype)


@dataclass(frozen=True, eq=False)
class RunKeys:
    """What scores: k [G, M, D]; of bounds the lower ones, and the upper ones in `upper`. `lse`: coarser keys, or None."""

    k: Tensor
    upper: Tensor | None = None
    lse: Tensor | None = None

    def of(self, selector: Selector, tokens: int) -> RunKeys:
        """The runs within the first so many tokens."""
        many = runs(tokens, selector.span, selector.step)
        upper = None if self.upper is None else self.upper[:, :many]
        coarse = self.lse if self.lse is None or selector.lse is None else self.lse[:, : runs(tokens, *selector.lse)]
        return RunKeys(self.k[:, :many], upper, coarse)


def run_keys(selector: Selector, k: Tensor, first: int, last: int, s: int, batch: Batch, cache: LayerCache | None) -> RunKeys:
    """The runs of sequence s for KV heads first..last, whose keys are k [G, L, D]: from the cache where that holds them."""

    def of(name: str, pool: Pool, span: int, step: int) -> Tensor:
        if cache is None or not selector.held:
            return pool_runs(k, span, step, pool)
        plan = next(
            one
            for one in cache.plan.pooled
            if one.name.startswith(f"{selector.held}.{name}") and one.first <= first <= one.last
        )
        held: Tensor = cache.pooled(plan.name, batch)[s]
        return held[first - plan.first : last - plan.first + 1, : runs(k.shape[1], span, step)]

    span, step = selector.span, selector.step
    coarse = None if selector.lse is None else of("lse", "mean", *selector.lse)
    if selector.keys == "own":
        return RunKeys(k, lse=coarse)
    if selector.keys == "indexer":
        return RunKeys(indexer_keys(selector, k.shape[1], s, batch, cache))
    if selector.keys == "joined":
        return RunKeys(k[:, : k.shape[1] // span * span].reshape(len(k), -1, span * k.shape[2]))
    if selector.keys == "summary":
        assert selector.source is not None, "another branch lends its summary"
        return RunKeys(chunk_keys(selector.source, first, last, s, batch))
    if selector.keys == "learned":
        assert isinstance(selector.net, LearnedPool), "learned keys have maps"
        held = cache is not None and bool(selector.held)
        return RunKeys(of("learned", "learned", span, step) if held else selector.net.keys(k, 0, span, first))
    if selector.keys == "mean":
        return RunKeys(of("mean", "mean", span, step), lse=coarse)
    return RunKeys(of("min", "min", span, step), of("max", "max", span, step), coarse)


def indexer_keys(selector: Selector, tokens: int, s: int, batch: Batch, cache: LayerCache | None) -> Tensor:
    """The keys [1, tokens, D] that an indexer has made of all tokens of sequence s so far."""
    assert isinstance(selector.net, Indexed), "an indexer brings its keys"
    if cache is None or not selector.held:
        assert batch.pasts[s] == 0, "what an indexer made of earlier tokens is in the cache"
        return selector.net.split(batch.sizes)[s].k.transpose(0, 1)
    plan = next(one for one in cache.plan.pooled if one.name.startswith(f"{selector.held}.indexer"))
    return cache.pooled(plan.name, batch)[s][:, :tokens]


def chunk_keys(source: Source, first: int, last: int, s: int, batch: Batch) -> Tensor:
    """The keys [G, M, D] of the complete chunks of sequence s, in a branch that lends its summary."""
    return chunks(source.parts, source.net, source.cache, source.held, first, last, s, batch)[0]


def chunks(
    parts: tuple[KeyPart, ...],
    net: Net | None,
    cache: LayerCache | None,
    held: str,
    first: int,
    last: int,
    s: int,
    batch: Batch,
) -> tuple[Tensor, Tensor]:
    """Keys [G, M, D] and values [G, M, E] of the complete chunks of sequence s: from the cache where that holds them."""
    assert isinstance(net, ChunkPool), "chunks have pools"
    if cache is None or not held:
        k, v, learned = text_keys(parts, first, last, s)
        return net.keys(k[:, learned:], 0), net.values(v[:, learned:])
    found = []
    done = runs(batch.pasts[s] + batch.sizes[s], net.span, net.step)
    for word in ("k", "v"):
        plan = next(
            one
            for one in cache.plan.pooled
            if one.name.startswith(f"{held}.{word}.") and one.first <= first and last <= one.last
        )
        found.append(cache.pooled(plan.name, batch)[s][first - plan.first : last - plan.first + 1, :done])
    return found[0], found[1]
