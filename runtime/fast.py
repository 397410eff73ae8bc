"""What launches of fast weights take and give; compiler/families.py says what such a launch computes.

Legend: T new tokens of S sequences, packed; H heads with a net each; D width of keys, E of values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .batch import Batch, lay_out

Weights = Mapping[str, Tensor]
"""A net's weights in order: name -> [H, outputs, inputs], or [S, H, outputs, inputs] of every sequence."""


@dataclass(frozen=True)
class Rule:
    """How nets learn and are read: see `fast_weights` in reference.py.

    momentum  whether the gradients' momentum is a state
    """

    chunk: int
    gated: bool = False
    momentum: bool = False
    after_write: bool = False
    after_decay: bool = False
    weight_norm: bool = False
    residual: bool = False


@dataclass(frozen=True, eq=False)
class Lessons:
    """What tokens bring, and what belongs to the heads.

    q      [T, H, D], of new tokens
    k, v   [L, any divisor of H, D or E], of the tokens of unfinished chunks and the new ones (`Stream`)
    rates  lr, momentum, decay, each 0..1: [L, H], [H] for all tokens, or None (1, 0, 0)
    start  weights as every text begins with
    norm   weight and bias [H, E] of the layer norm, or None
    keep   whether anybody asks for what is learned of the last tokens
    """

    q: Tensor
    k: Tensor
    v: Tensor
    rates: tuple[Tensor | None, Tensor | None, Tensor | None]
    start: Weights
    norm: tuple[Tensor, Tensor] | None = None
    keep: bool = True

    @property
    def heads(self) -> int:
        """H."""
        return self.q.shape[1]


@dataclass(frozen=True, eq=False)
class Learned:
    """What every sequence has learned up to its last whole chunk, in fp32 at least; moment None: there is no momentum."""

    weights: Weights
    moment: Weights | None = None

    def mapped(self, change: Callable[[Tensor], Tensor]) -> Learned:
        """Every tensor changed."""
        return Learned.of([self], change)

    @classmethod
    def of(cls, several: Sequence[Learned], join: Callable[..., Tensor]) -> Learned:
        """Every tensor made of those of several."""
        weights = {name: join(*(one.weights[name] for one in several)) for name in several[0].weights}
        moments = [one.moment for one in several if one.moment is not None]
        return cls(weights, {name: join(*(one[name] for one in moments)) for name in weights} if moments else None)


@dataclass(frozen=True, eq=False)
class Stream:
    """The tokens of each sequence from the beginning of its unfinished chunk on: those of earlier calls, then the new ones.

    new       how the new tokens lie
    batch     how all of them lie, L tokens
    waiting   [S], how many of each sequence are of earlier calls
    """

    new: Batch
    batch: Batch
    waiting: Tensor

    @classmethod
    def of(cls, new: Batch, chunk: int) -> Stream:
        """The stream of a call."""
        return new.once(("stream", chunk), lambda: cls._of(new, chunk))

    @classmethod
    def _of(cls, new: Batch, chunk: int) -> Stream:
        waiting = new.past % chunk
        before = tuple(past % chunk for past in new.pasts)
        if not any(before):
            return cls(new, new, waiting)
        sizes = tuple(size + more for size, more in zip(new.sizes, before, strict=True))
        pasts = tuple(past - more for past, more in zip(new.pasts, before, strict=True))
        shape, device = (1, sum(sizes)), new.offsets.device
        return cls(new, lay_out(sizes, pasts, new.totals, new.phase, shape, device, new.past - waiting), waiting)

    def joined(self, waiting: Tensor, x: Tensor) -> Tensor:
        """waiting [S, chunk - 1, ...], of which the first ones count, and x [T, ...] of new tokens -> [L, ...]."""
        if self.batch is self.new:
            return x
        sequence = self.batch.sequence
        place = self.batch.positions - self.batch.past[sequence]
        later = place - self.waiting[sequence]
        held = waiting[sequence, place.clamp(max=waiting.shape[1] - 1)].to(x.dtype)
        come = x[(self.new.offsets[sequence] + later).clamp(min=0)]
        return torch.where((later < 0).view(-1, *[1] * (x.dim() - 1)), held, come)

    def rest(self, x: Tensor, chunk: int) -> Tensor:
        """x [L, ...] of the tokens behind the last whole chunk, [S, chunk - 1, ...], then zeros."""
        spots, there = self.batch.once(("rest", chunk), lambda: self._left(chunk))
        return torch.where(there.view(*there.shape, *[1] * (x.dim() - 1)), x[spots], 0.0)

    def _left(self, chunk: int) -> tuple[Tensor, Tensor]:
        """(where those tokens stand, whether they are there) [S, chunk - 1]."""
        ends = self.batch.offsets[1:]
        left = ((ends - self.batch.offsets[:-1]) % chunk).unsqueeze(1)
        lanes = torch.arange(chunk - 1, device=ends.device)
        return (ends.unsqueeze(1) - left + lanes).clamp(max=self.batch.tokens - 1), lanes < left

    @property
    def spots(self) -> Tensor:
        """[T], where the new tokens stand among all."""
        sequence = self.new.sequence
        before = self.batch.offsets[sequence] + self.waiting[sequence]
        return before + self.new.positions - self.new.past[sequence]


Teach = Callable[[Rule, Lessons, Learned, Stream], tuple[Tensor, Learned]]
"""A provider: (rule, what tokens bring, what sequences have learned, how they lie) -> (o [T, H, E] of the new tokens, what they
have learned after their last whole chunk).

Gradients reach every tensor of `Lessons` and what was learned before, from the outputs and from what was learned after.
"""


def start_of(lessons: Lessons, rule: Rule, sequences: int) -> Learned:
    """What texts have learned before they begin."""
    wide = torch.promote_types(lessons.q.dtype, torch.float32)
    weights = {name: w.to(wide).expand(sequences, *w.shape) for name, w in lessons.start.items()}
    return Learned(weights, {name: torch.zeros_like(w) for name, w in weights.items()} if rule.momentum else None)
