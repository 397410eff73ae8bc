"""One softmax over keys that a union shows token by token and over what stands for the others, by plain PyTorch.

Keys are kept as they are projected and turned when they are read, since what stands for others is made of unturned ones.
Legend: N new tokens of a sequence after P earlier ones; H query heads, G KV heads, R = H / G; D, E widths; L known keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .autocast import cast, enabled, off
from .batch import Batch
from .call import Call
from .intervals import HeadGroup
from .plain import PlainLaunch
from .rotary import Rope, rotate
from .spans import Numbers, lower
from .storage import LayerCache

BLOCK = 64
"""Queries that are read for together."""

States = dict[str, Tensor]


@dataclass(frozen=True, eq=False)
class Text:
    """A sequence of a call.

    q       [N, H, D], unturned
    k, v    [L, G, width] of the keys that are known one by one, unturned: the first `head` ones, those from `start` on, the new
    past    P
    more    further tensors of the new tokens, and those that belong to the heads
    states  what earlier calls left; empty at a text's beginning without a cache
    kept    what stands for runs of keys, [G, runs, width], to read and to write
    learns  whether gradients are taken
    """

    q: Tensor
    k: Tensor
    v: Tensor
    head: int
    start: int
    past: int
    numbers: Numbers
    more: Sequence[Tensor]
    states: States
    kept: States
    sink_logit: Tensor | None
    learns: bool

    @property
    def end(self) -> int:
        """P + N."""
        return self.past + len(self.q)

    def first(self, i: int) -> int:
        """The first position that a query at i, or any later one, sees beside the first ones."""
        return max(0, min([lower(near, i) for near in self.numbers.nears], default=i))

    def positions(self) -> Tensor:
        """[L]."""
        device = self.k.device
        tail = self.start + torch.arange(len(self.k) - self.head, device=device)
        return torch.cat((torch.arange(self.head, device=device), tail))

    def shown(self, i: Tensor, j: Tensor) -> Tensor:
        """Whether query i [N, 1] sees key j [1, L] itself."""
        found = j < self.numbers.sink
        for near in self.numbers.nears:
            align, shift, back, _ = near
            found = found | (j >= torch.div(i + shift, align, rounding_mode="floor") * align - shift - back)
        return found & (j <= i)


class Condensed(PlainLaunch):
    """What the class of each kind shares.

    group   the keys that are shown
    every   tokens of a chunk by whose number keys are turned; 0: by their positions
    states  names of what a sequence keeps in fp32; `kept`: of what it keeps for runs of keys
    """

    states: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()

    def __init__(
        self, name: str, group: HeadGroup, *, scale: float, cap: float | None, rope: Rope | None, every: int, formula: Any
    ) -> None:
        super().__init__(name, {"torch": self._torch, "reference": self._reference})
        self.group, self.scale, self.cap, self.rope, self.every, self.formula = group, scale, cap, rope, every, formula

    def _torch(self, text: Text) -> tuple[Tensor, States]:
        raise NotImplementedError

    def _reference(self, text: Text) -> tuple[Tensor, States]:
        raise NotImplementedError

    def run(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        call: Call,
        slot: int,
        sink_logit: Tensor | None,
        tokens: Sequence[Tensor] = (),
        heads: Sequence[Tensor] = (),
    ) -> Tensor:
        """q [T, H, D], k [T, G, D], v [T, G, E] -> [T, H, E], one sequence after another; `tokens` are of tokens too.

        Raises ValueError for the cache of another model.
        """
        batch, cache = call.batch, call.slot(slot)
        if not batch.tokens:
            return v.new_zeros(0, q.shape[1], v.shape[2])
        if enabled(q):
            q, k, v = cast(q, k, v)
        if cache is not None:
            self._check(cache, k, v)
        wide, after, outputs = torch.promote_types(q.dtype, torch.float32), [], []
        sink = None if sink_logit is None else sink_logit.to(wide)
        split = [torch.split(x.to(wide), list(batch.sizes)) for x in (q, k, v, *tokens)]
        with off(q) if enabled(q) else nullcontext():
            for s, (q_s, k_s, v_s, *more) in enumerate(zip(*split, strict=True)):
                states = {name: cache.state(name, batch)[s].to(wide) for name in self.states} if cache is not None else {}
                kept = {name: cache.pooled(name, batch)[s] for name in self.kept} if cache is not None else {}
                numbers = Numbers.of(self.group, batch.totals[s], True)
                beside = [*more, *(x.to(wide) for x in heads)]
                learns = cache is None and torch.is_grad_enabled()
                known = self._known(k_s, v_s, batch, cache, s)
                text = Text(q_s, *known, batch.pasts[s], numbers, beside, states, kept, sink, learns)
                if len(q_s):
                    o, states = self.providers[batch.phase](text)
                    outputs.append(o)
                after.append(states)
        if cache is not None:
            cache.write(k, v, batch)
            for name in self.states:
                cache.set_state(name, torch.stack([one[name] for one in after]), batch)
        return torch.cat(outputs).to(q.dtype)

    def _check(self, cache: LayerCache, k: Tensor, v: Tensor) -> None:
        missing = [name for name in self.states if name not in cache.states]
        widths = (k.shape[2], v.shape[2])
        if missing or not cache.bands or (cache.k_width, cache.plan.value_width) != widths:
            raise ValueError(f"the cache is of another model: it keeps no keys of widths {widths} with {self.states}")

    def _known(self, k: Tensor, v: Tensor, batch: Batch, cache: LayerCache | None, s: int) -> tuple[Tensor, Tensor, int, int]:
        """k, v of the keys that are known one by one, with the new ones; how many are first ones, where the others begin."""
        past = batch.pasts[s]
        if cache is None or past == 0:
            return k, v, 0, 0
        runs = cache.part(batch, written=False).read(0, k.shape[1] - 1, s)
        heads = [run for run in runs if run.start == 0]
        gap = bool(heads) and len(runs) > 1 and runs[1].start > heads[0].k.shape[2]
        head = heads[0].k.shape[2] if gap else 0
        start = runs[1].start if gap else (runs[0].start if runs else past)
        old = [torch.cat([getattr(run, x)[0] for run in runs], 1).transpose(0, 1).to(k.dtype) for x in "kv"] if runs else []
        return (torch.cat((old[0], k)), torch.cat((old[1], v)), head, start) if runs else (k, v, 0, past)

    def turn(self, x: Tensor, positions: Tensor) -> Tensor:
        """x [L, heads, D] turned by positions [L]."""
        return rotate(x, positions // self.every if self.every else positions, self.rope)

    def score(self, q: Tensor, k: Tensor) -> Tensor:
        """Logits [G, R, N, L] of q [N, H, D] and k [L, G, D]."""
        heads = k.shape[1]
        rows = q.unflatten(1, (heads, -1)).permute(1, 2, 0, 3)  # type: ignore[no-untyped-call]
        logits: Tensor = rows @ k.permute(1, 2, 0).unsqueeze(1) * self.scale
        return logits if self.cap is None else self.cap * torch.tanh(logits / self.cap)


def read(columns: Sequence[tuple[Tensor, Tensor]], sink_logit: Tensor | None) -> Tensor:
    """One softmax over all columns, logits [G, R, N, C] with values [G, C, E] (or [G, 1, N, E] of one column) -> [N, H, E]."""
    logits = torch.cat([column for column, _ in columns], -1)
    groups, repeat, count, _ = logits.shape
    if not logits.shape[-1]:
        return logits.new_zeros(count, groups * repeat, columns[0][1].shape[-1])
    most = logits.amax(-1, keepdim=True)
    if sink_logit is not None:
        sink = sink_logit.view(groups, repeat, 1, 1)
        most = torch.maximum(most, sink)
    most = torch.where(most == -torch.inf, 0.0, most)
    weights = torch.exp(logits - most)
    total = weights.sum(-1, keepdim=True)
    if sink_logit is not None:
        total = total + torch.exp(sink - most)
    parts = torch.split(weights, [column.shape[-1] for column, _ in columns], -1)
    found = sum(
        part @ values.unsqueeze(1) if values.dim() == 3 else part * values
        for part, (_, values) in zip(parts, columns, strict=True)
    )
    o = found / total.clamp(min=torch.finfo(total.dtype).tiny)
    out: Tensor = o.permute(2, 0, 1, 3).reshape(count, groups * repeat, -1)
    return out


def blocks(tokens: int) -> list[tuple[int, int]]:
    """Queries that are read for together."""
    return [(begin, min(begin + BLOCK, tokens)) for begin in range(0, tokens, BLOCK)]
