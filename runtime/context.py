"""Memory as context (Titans, arXiv 2501.00663): segments that read what a memory returned for them, and that it learns from.

A call is cut where segments of its sequences begin; all sequences go through their next piece together. What goes from piece
to piece carries gradients: it lies in a `Held`, which is to the launches of a piece what a cache is to those of a call.

Legend: T tokens of S sequences; G KV heads; D, E widths of keys and values; W model width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any, cast

import torch
from torch import Tensor

from .batch import Batch, lay_out
from .cache import Cache
from .call import Call
from .fast import Stream, Weights
from .keys import KeyPart, packed_keys
from .learning import FastWeights
from .mix import Mix
from .storage import LayerCache, LayerPlan

BEGUN = "begun."
"""How the names begin of the memory's weights as the segment began."""


class Held:
    """States of a call's sequences, name -> [S, ...], which each piece reads and replaces.

    direct  whether they are those of a cache, where they lie: so it is in a call of one piece
    """

    def __init__(self, states: dict[str, Tensor], direct: bool) -> None:
        self.states, self.direct = states, direct
        self.changes: list[Callable[[], object]] = []

    def later(self, change: Callable[[], object]) -> None:
        """As of a `LayerCache`."""
        self.changes.append(change)

    def places(self, batch: Batch) -> Tensor:
        """As of a `LayerCache`."""
        return torch.arange(batch.sequences, device=batch.offsets.device)

    def state(self, name: str, batch: Batch) -> Tensor:  # noqa: ARG002 (a piece has all sequences)
        """As of a `LayerCache`."""
        return self.states[name]

    def set_state(self, name: str, value: Tensor, batch: Batch) -> None:  # noqa: ARG002 (a piece has all sequences)
        """As of a `LayerCache`, at once."""
        self.states[name] = value

    def layer(self, index: int) -> Held:  # noqa: ARG002 (names of launches differ)
        """As of a `Cache`."""
        return self


@dataclass(frozen=True, eq=False)
class Piece:
    """A piece of a segment of every sequence, perhaps of no tokens. `call`: its tokens, and `held` as its cache; `spots`: which
    of the call's tokens they are, None: all.
    """

    call: Call
    held: Held
    stream: Stream
    spots: Tensor | None

    def turned(self, turn: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Cosines and sines of the piece's positions, twice: of what the memory returned and of the piece."""
        cos, sin = turn
        return torch.cat((cos, cos)), torch.cat((sin, sin))

    def attend(
        self,
        mix: Mix,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        persistent: KeyPart | None = None,
        sink_logit: Tensor | None = None,
    ) -> Tensor:
        """One softmax over learned keys, what the memory returned for the segment's tokens so far, and these: [T, H, E].

        q [T, H, D]; k [2 T, G, D] and v [2 T, G, E], first of what the memory returned.
        """
        batch, whole = self.call.batch, self.stream.batch
        halves = {name: x.view(2, -1, *x.shape[1:]) for name, x in (("segment_k", k), ("segment_v", v))}
        found = [
            {name: self.stream.joined(self.held.states[name][:, place], x[place]) for name, x in halves.items()}
            for place in (0, 1)
        ]
        for name in halves:
            size = self.held.states[name].shape[2] + 1
            rest = torch.stack([self.stream.rest(one[name], size) for one in found], 1)
            self.held.set_state(name, rest, batch)
        lies = (whole.offsets, whole.sizes, whole.past, whole.pasts)
        parts = [packed_keys(one["segment_k"], one["segment_v"], *lies) for one in found]
        return mix.over(q, (*parts, *([] if persistent is None else [persistent])), batch, sink_logit)


class Segments:
    """Cuts calls into pieces. `size`: tokens of a segment, a multiple of the memory's chunk."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(
        self, x: Tensor, call: Call, plans: Iterable[tuple[int, LayerPlan]], memory: Any
    ) -> Iterator[tuple[Tensor, Piece]]:
        """(x [T', W], the piece) of each piece in turn; after the last one the states are stored.

        plans   slot -> what is kept there, of the softmax and of the memory
        memory  its class in model.py
        """
        chunk, batch, plans = memory.scan.rule.chunk, call.batch, list(plans)
        if self.size % chunk:
            raise ValueError(f"segments of {self.size} tokens are no multiple of the memory's chunk, {chunk}")
        if not batch.tokens:
            return
        kept = [(call.slot(slot), plan) for slot, plan in plans]
        states = {}
        for storage, plan in kept:
            for one in plan.states:
                if storage is None:
                    dtype = torch.promote_types(x.dtype, one.dtype or x.dtype)
                    states[one.name] = x.new_zeros((batch.sequences, *one.shape), dtype=dtype)
                else:
                    check(storage, one.name, one.shape)
                    states[one.name] = storage.state(one.name, batch)
        direct = all(storage is not None for storage, _ in kept) and batch.rows is None and batch.max_new == 1
        held, spots = Held(states, direct), []
        alarms: list[tuple[object, Tensor, list[Tensor]]] = []
        for sub, index in pieces(batch, self.size):
            self._begin(held, sub, memory.net())
            own = replace(call, batch=sub, cache=cast("Cache", held), turns={}, alarms=[])
            yield (x if index is None else x[index]), Piece(own, held, Stream.of(sub, self.size), index)
            alarms += own.alarms
            spots.append(index)
        self._report(call, alarms, spots)
        for storage, plan in kept:
            if storage is not None:
                for one in plan.states:
                    storage.set_state(one.name, held.states[one.name], batch)
        for change in held.changes:
            call.slot(plans[-1][0]).later(change)  # type: ignore[union-attr]

    def _begin(self, held: Held, sub: Batch, start: Weights) -> None:
        """Sequences at the beginning of a segment keep what the memory has learned so far."""
        if not any(size and past % self.size == 0 for size, past in zip(sub.sizes, sub.pasts, strict=True)):
            return
        new, first = (sub.past % self.size == 0).view(-1, 1, 1, 1), (sub.past == 0).view(-1, 1, 1, 1)
        for name, w in start.items():
            known = held.states[f"weight.{name}"]
            now = torch.where(first, w.to(known.dtype), known)
            held.states[f"{BEGUN}{name}"] = torch.where(new, now, held.states[f"{BEGUN}{name}"])

    def _report(self, call: Call, alarms: list[tuple[object, Tensor, list[Tensor]]], spots: list[Tensor | None]) -> None:
        """What must be finite, as the call's launches say it: outputs in the order of its tokens, and the last weights."""
        if alarms:
            outputs = joined([(o, spot) for (_, o, _), spot in zip(alarms, spots, strict=True)], alarms[0][1])
            call.alarms.append((alarms[0][0], outputs, alarms[-1][2]))


def joined(found: Sequence[tuple[Tensor, Tensor | None]], x: Tensor) -> Tensor:
    """Rows of pieces [T', ...], each with the places of its tokens, in the call's order; x where there are none."""
    if not found:
        return x
    whole = torch.cat([y for y, _ in found])
    places = [spot for _, spot in found if spot is not None]
    return torch.empty_like(whole).index_copy(0, torch.cat(places), whole) if places else whole


def pieces(batch: Batch, size: int) -> Iterator[tuple[Batch, Tensor | None]]:
    """(how the tokens of each piece lie, which of the call's they are; None: all)."""
    left = [size - past % size for past in batch.pasts]
    done = [0] * batch.sequences
    starts = [0, *accumulate(batch.sizes)]
    device, first = batch.offsets.device, True
    while first or any(d < n for d, n in zip(done, batch.sizes, strict=True)):
        sizes = tuple(min(a, n - d) for a, n, d in zip(left, batch.sizes, done, strict=True))
        if sizes == batch.sizes:
            yield batch, None
            return
        spots = [torch.arange(starts[s] + done[s], starts[s] + done[s] + n, device=device) for s, n in enumerate(sizes)]
        past = batch.past + torch.tensor(done, dtype=torch.int64, device=device)
        pasts = tuple(p + d for p, d in zip(batch.pasts, done, strict=True))
        yield lay_out(sizes, pasts, batch.totals, batch.phase, (1, sum(sizes)), device, past), torch.cat(spots)
        done = [d + n for d, n in zip(done, sizes, strict=True)]
        left, first = [size] * batch.sequences, False


def check(storage: LayerCache, name: str, shape: tuple[int, ...]) -> None:
    """Raises ValueError where a cache keeps no such state."""
    held = storage.states.get(name)
    if held is None or tuple(held.shape[1:]) != tuple(shape):
        got = "nothing" if held is None else str(list(held.shape[1:]))
        raise ValueError(f"the cache is of another model: {name} is {list(shape)}, it keeps {got}")


def retrieve(scan: FastWeights, q: Tensor, call: Call, slot: int, norm: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """q [T, H, D] -> what the nets return at the weights that the segment began with, [T, H, E]; nothing is learned."""
    held = cast("Held", call.slot(slot))
    weights = {name.removeprefix(BEGUN): w for name, w in held.states.items() if name.startswith(BEGUN)}
    return scan.read(q, weights, call.batch, norm)
