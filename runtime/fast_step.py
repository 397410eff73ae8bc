"""One token of each sequence by the generated kernel of single steps: it reads what a cache holds where it lies.

A step is two launches: what nets return, and, at the call's end, what the cache keeps: until a chunk is whole its tokens, then
the weights that have learned them. So a call that fails leaves the cache as it was. Nothing is decided by numbers of the host,
so that a CUDA graph of a launch replays for other tokens and lengths.

Legend: T new tokens of S sequences, at most one each; H heads; D, E widths of keys and values.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from .batch import Batch
from .fast import Learned, Lessons, Rule, Stream, Teach
from .storage import LayerCache


class Given(NamedTuple):
    """What a kernel file reads of a step, and where it changes a cache.

    q, k, v  [T, H or a divisor of it, D or E]
    rates    lr, momentum, decay in fp32: [T, H], [H], or None
    norm     weight and bias [H, E] in fp32, or None
    weights, moments, starts  a net's maps in order: [S, H, outputs, inputs] of the cache, and as texts begin with them [H, ...]
    held_k, held_v, gates     of unfinished chunks, of the cache: [S, chunk - 1, ...], gates [S, gates, chunk - 1, H], or None
    places   [S], the cache's row of each sequence
    offsets, past             of the batch
    size     tokens of a chunk
    """

    q: Tensor
    k: Tensor
    v: Tensor
    rates: tuple[Tensor | None, ...]
    norm: tuple[Tensor | None, Tensor | None]
    weights: tuple[Tensor, ...]
    moments: tuple[Tensor, ...]
    starts: tuple[Tensor, ...]
    held_k: Tensor | None
    held_v: Tensor | None
    gates: Tensor | None
    places: Tensor
    offsets: Tensor
    past: Tensor
    size: int


Step = Callable[[Lessons, LayerCache, Batch, Rule], Tensor]
"""(what tokens bring, the cache, how they lie, how nets learn) -> o [T, H, E]; the cache learns at the call's end."""


@dataclass(frozen=True, eq=False)
class Stepping:
    """A `Teach` (fast.py) that takes single tokens of a cache's sequences in another way."""

    teach: Teach
    step: Step

    def __call__(self, rule: Rule, lessons: Lessons, before: Learned, stream: Stream) -> tuple[Tensor, Learned]:
        """By `teach`."""
        return self.teach(rule, lessons, before, stream)


def step_kernels(module: ModuleType) -> Step:
    """A `Step` of a kernel file."""

    def step(lessons: Lessons, cache: LayerCache, batch: Batch, rule: Rule) -> Tensor:
        given = _given(lessons, cache, batch, rule)
        o: Tensor = module.step(given, False)
        cache.later(lambda: module.step(given, True))
        return o

    return step


def _given(lessons: Lessons, cache: LayerCache, batch: Batch, rule: Rule) -> Given:
    states, names = cache.states, tuple(lessons.start)
    q, k, v = ((x if x.stride(-1) == 1 else x.contiguous()) for x in (lessons.q, lessons.k, lessons.v))
    if q.dtype == torch.float64:
        raise ValueError("generated kernels have no float64: use('torch')")
    return Given(
        q=q,
        k=k,
        v=v,
        rates=tuple(None if rate is None else rate.float().contiguous() for rate in lessons.rates),
        norm=(None, None) if lessons.norm is None else (lessons.norm[0].float(), lessons.norm[1].float()),
        weights=tuple(states[f"weight.{name}"] for name in names),
        moments=tuple(states[f"momentum.{name}"] for name in names) if rule.momentum else (),
        starts=tuple(w.detach().contiguous() for w in lessons.start.values()),
        held_k=states.get("k"),
        held_v=states.get("v"),
        gates=states.get("gates"),
        places=cache.places(batch),
        offsets=batch.offsets,
        past=batch.past,
        size=rule.chunk,
    )
