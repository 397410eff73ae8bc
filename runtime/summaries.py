"""Chunks that stand for their tokens, pooled by a query's softmax or by a recurrence: Combiner (arXiv 2107.05768), CCA
(arXiv 2412.12465), RAT (arXiv 2507.04416). Other pools go as choices of all chunks (chunk_pool.py).

Legend: as condensed.py; C chunks of n tokens, one begun every `stride`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .call import Call
from .condensed import Condensed, States, Text, blocks, read
from .intervals import HeadGroup
from .pooled import runs

REDUCE = {"mean": torch.sum, "sum": torch.sum, "max": torch.amax}
"""How what is pooled without weights is gathered; a mean is divided at the end."""


class Summaries(Condensed):
    """`pool` of keys and `value_pool`: mean, sum, max, last_query, attention; or recurrence for both."""

    kept = ("k", "v")

    def __init__(self, name: str, group: HeadGroup, *, n: int, stride: int, pool: str, value_pool: str, **options: Any) -> None:
        super().__init__(name, group, **options)
        self.n, self.stride, self.pool, self.value_pool = n, stride, pool, value_pool
        self.recurs = pool == "recurrence"
        self.asks = "attention" in (pool, value_pool)
        self.states = ("k", "v") if self.recurs else ("q",) if self.asks else ()

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, call: Call, slot: int, *gate: Tensor, sink_logit: Tensor | None = None
    ) -> Tensor:
        """gate [T, G D] of a recurrence, before its sigmoid."""
        own = [one.view(len(one), k.shape[1], -1) for one in gate]
        return self.run(q, k, v, call, slot, sink_logit, tokens=own)

    def _torch(self, text: Text) -> tuple[Tensor, States]:
        begun, end = (runs(tokens, self.n, self.stride) for tokens in (text.past, text.end))
        if self.recurs:
            every, states = self._running(text)
            last = (torch.arange(begun, end, device=text.q.device) + 1) * self.n - 1 - text.past
            new = tuple(one[last] for one in every)
        else:
            every, (new, states) = None, self._pooled(text, begun, end)
        chunks = []
        for name, one in zip(self.kept, new, strict=True):
            if name not in text.kept:
                chunks.append(one)
                continue
            text.kept[name][:, begun:end] = one.transpose(0, 1).to(text.kept[name].dtype)
            chunks.append(text.kept[name][:, :end].transpose(0, 1).to(one.dtype))
        outputs, many = [], len(text.q) > blocks(len(text.q))[0][1]
        for first, last_ in blocks(len(text.q)):
            given = (text, chunks, None if every is None else [one[first:last_] for one in every], first, last_)
            again = text.learns and many
            o = checkpoint(self._block, *given, use_reentrant=False, preserve_rng_state=False) if again else self._block(*given)
            outputs.append(o)
        return torch.cat(outputs), states

    def _block(self, text: Text, chunks: list[Tensor], running: list[Tensor] | None, first: int, last: int) -> Tensor:
        """Queries first..last - 1 of the new ones: over tokens that are shown, chunks of which none is, and their own chunk."""
        q, device = text.q[first:last], text.q.device
        i = text.past + torch.arange(first, last, device=device)
        turned, columns = self.turn(q, i), []
        at = text.positions()
        near = ((at >= text.first(text.past + first)) | (at < text.numbers.sink)) & (at < text.past + last)
        spots = near.nonzero().squeeze(1)
        if len(spots) and (text.numbers.nears or text.numbers.sink):
            logits = self.score(turned, self.turn(text.k[spots], at[spots]))
            seen = text.shown(i[:, None], at[spots][None])
            columns.append((logits.masked_fill(~seen, -torch.inf), text.v[spots].transpose(0, 1)))
        begins = torch.arange(len(chunks[0]), device=device) * self.stride
        ends = begins + self.n - 1
        if running is not None:  # the own chunk is read as it stands
            own = (turned.unflatten(1, (running[0].shape[1], -1)) * self.turn(running[0], i).unsqueeze(2)).sum(-1)  # type: ignore[no-untyped-call]
            own = own * self.scale
            own = own if self.cap is None else self.cap * torch.tanh(own / self.cap)
            columns.append((own.permute(1, 2, 0).unsqueeze(-1), running[1].transpose(0, 1).unsqueeze(1)))
            seen = ends[None] < i[:, None] // self.n * self.n
        else:
            seen = (ends[None] <= i[:, None]) & (begins[None] >= text.numbers.sink)
            for align, shift, back, _ in text.numbers.nears:
                low = torch.div(i + shift, align, rounding_mode="floor") * align - shift - back
                seen = seen & (ends[None] < low[:, None])
        logits = self.score(turned, self.turn(chunks[0], ends)).masked_fill(~seen, -torch.inf)
        columns.append((logits, chunks[1].transpose(0, 1)))
        return read(columns, text.sink_logit)

    def _pooled(self, text: Text, begun: int, end: int) -> tuple[tuple[Tensor, Tensor], States]:
        """A key and a value of each chunk that the call completes, and queries of those that it does not."""
        groups = text.k.shape[1]
        asked = text.q.unflatten(1, (groups, -1)).mean(2)  # type: ignore[no-untyped-call]  # [N, G, D]
        skip = text.head + begun * self.stride - text.start
        windows = [self._windows(x[skip:], end - begun) for x in (text.k, text.v)]  # [C, G, width, n]
        weights = {}
        if "last_query" in (self.pool, self.value_pool):
            last = torch.arange(begun, end, device=asked.device) * self.stride + self.n - 1 - text.past
            weights["last_query"] = self._weights(asked[last], windows[0])
        states: States = {}
        if self.asks:
            queries, states = self._queries(text, asked, begun, end)
            weights["attention"] = self._weights(queries, windows[0])
        found = []
        for x, pool in zip(windows, (self.pool, self.value_pool), strict=True):
            if pool in weights:
                found.append((x * weights[pool].unsqueeze(2)).sum(-1))
            else:
                found.append(REDUCE[pool](x, -1) / (self.n if pool == "mean" else 1))  # type: ignore[operator]
        return (found[0], found[1]), states

    def _windows(self, x: Tensor, count: int) -> Tensor:
        """The first chunks [C, G, width, n] of x [L, G, width]."""
        if not count:
            return x.new_zeros(0, *x.shape[1:], self.n)
        return x.unfold(0, self.n, self.stride)[:count]

    def _weights(self, q: Tensor, windows: Tensor) -> Tensor:
        """Softmax over the tokens of each chunk, [C, G, n], of queries q [C, G, D]."""
        return torch.softmax(self.scale * torch.einsum("cgd,cgdn->cgn", q, windows), -1)

    def _queries(self, text: Text, asked: Tensor, begun: int, end: int) -> tuple[Tensor, States]:
        """What the queries of each chunk that ends are pooled to [C, G, D], and what those of the others are so far."""
        pool = self.pool if self.pool in REDUCE else "mean"
        slots = -(-self.n // self.stride)
        before = text.states.get("q", asked.new_zeros(slots, *asked.shape[1:]))
        found, after = [], [torch.zeros_like(before[0])] * slots
        stop, inside = -(-text.end // self.stride), max(begun, -(-text.past // self.stride))
        for number in sorted(
            {*range(begun, min(inside, stop)), *range(end, stop)}
        ):  # begun before the call, or not ended by it
            begin = number * self.stride
            own = REDUCE[pool](asked[max(0, begin - text.past) : begin + self.n - text.past], 0)  # type: ignore[operator]
            if begin < text.past:
                old = before[number % slots]
                own = torch.maximum(old, own) if pool == "max" else old + own
            if number < end:
                found.append(own.unsqueeze(0))
            else:
                after[number % slots] = own
        first = min(max(inside, begun), end)
        whole = self._windows(asked[first * self.stride - text.past :], end - first) if end > first else None
        if whole is not None:
            found.append(REDUCE[pool](whole, -1))  # type: ignore[operator]
        pooled = torch.cat(found) if found else asked[:0]
        return pooled / (self.n if pool == "mean" else 1), {"q": torch.stack(after)}

    def _running(self, text: Text) -> tuple[list[Tensor], States]:
        """h <- g h + (1 - g) x over keys and values, anew with each chunk: what every token has, [N, G, D] each."""
        gate = torch.sigmoid(text.more[0])
        tokens, begin = len(gate), text.past % self.n
        after = -(begin + tokens) % self.n
        new = slice(len(text.k) - tokens, None)
        found = []
        for name, x in (("k", text.k[new]), ("v", text.v[new])):
            pad = (0, 0, 0, 0, begin, after)
            keep = torch.nn.functional.pad(gate, pad, value=1.0).view(-1, self.n, *gate.shape[1:])
            rows = torch.nn.functional.pad((1 - gate) * x, pad).view(keep.shape)
            h = rows.new_zeros(rows.shape[0], *rows.shape[2:])
            if begin:
                h = torch.cat((text.states[name].unsqueeze(0), h[1:]))
            steps = []
            for t in range(self.n):
                h = keep[:, t] * h + rows[:, t]
                steps.append(h)
            found.append(torch.stack(steps, 1).flatten(0, 1)[begin : begin + tokens])
        return found, {"k": found[0][-1], "v": found[1][-1]}

    def _reference(self, text: Text) -> tuple[Tensor, States]:
        begun = runs(text.past, self.n, self.stride)
        done = [text.kept[name][:, :begun].transpose(0, 1).to(text.q.dtype) if text.kept else text.k[:0] for name in self.kept]
        done[1] = done[1] if text.kept else text.v[:0]
        rule = (self.n, self.stride, self.pool, self.value_pool)
        o, chunks, states = self.formula(text, rule, done, text.states, self.group.visible, self.turn, self.scale, self.cap)
        for name, one in zip(self.kept, chunks, strict=True):
            if text.kept:
                text.kept[name][:, begun : len(one)] = one[begun:].transpose(0, 1).to(text.kept[name].dtype)
        return o, states
