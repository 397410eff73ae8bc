"""The provider `torch` of fast weights: all tokens of a chunk at once, chunk after chunk; plain PyTorch, differentiable.

What goes from chunk to chunk is a `Sweep` (fast_sweep.py). All else is done for many chunks side by side: a token that reads
what its own chunk wrote reads W_t x, layer by layer, as attention without softmax over a and d, so no token has weights of
its own. Chunks go in groups. With gradients, a group's numbers are computed again on the way back, so that a text keeps what
comes in, what goes out, and the weights before each group.

All is computed in fp32, in float64 where q is. Legend: R rows, the chunks of C tokens of several sequences; H heads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from . import nets
from .chunks import Chunks, between
from .fast import Learned, Lessons, Rule, Stream, Teach, Weights
from .fast_sweep import BLOCK, Sweep, Tokens, amounts_of, begun, slopes_of, torch_sweep, written
from .nets import Norm

GROUP = 2048
"""Tokens of a group, at least, four times as many without gradients; long texts have as many chunks in a group as there are
groups.
"""


class _Group(NamedTuple):
    """Some chunks: their tokens, as given; queries, which may be none; how many sequences have each; how many are learned."""

    tokens: Tokens
    queries: Tensor | None
    counts: tuple[int, ...]
    learns: int


Reader = Callable[[Rule, Learned, Tokens, Tensor, Norm], Tensor | None]
"""(rule, what is known before each chunk, tokens, queries, norm) -> outputs; None: plain PyTorch is to find them."""


def teach_by(sweep: Sweep, group_tokens: int | None = None, reader: Reader | None = None) -> Teach:
    """A `Teach` (fast.py) of a way from chunk to chunk, in groups of so many tokens instead of GROUP's."""

    def teach(rule: Rule, lessons: Lessons, before: Learned, stream: Stream) -> tuple[Tensor, Learned]:
        wide = torch.promote_types(lessons.q.dtype, torch.float32)
        norm = None if lessons.norm is None else (lessons.norm[0].to(wide), lessons.norm[1].to(wide))
        now, longest = before.mapped(lambda w: w.to(wide)), stream.batch.max_new
        o = None
        if not rule.after_write and longest <= rule.chunk:  # no new token sees a write of this call
            o = _read_now(rule, lessons.q.to(wide), now.weights, norm, stream)
            if longest < rule.chunk or not lessons.keep:
                return o, now
        chunks = Chunks.of(stream.batch, min(rule.chunk, longest))
        start = {name: w.to(wide) for name, w in lessons.start.items()}
        known, found = now.mapped(chunks.sorted), []
        least = (GROUP if torch.is_grad_enabled() else 4 * GROUP) if group_tokens is None else group_tokens
        groups = list(_groups(rule, lessons, wide, chunks, stream, o is None, least))
        again = len(groups) > 1 and torch.is_grad_enabled() and not torch.compiler.is_compiling()
        for group in groups:
            given = (sweep, reader, rule, start, known, group, norm)
            if again:
                read, known = checkpoint(_taught, *given, use_reentrant=False, preserve_rng_state=False)
            else:
                read, known = _taught(*given)
            found += [] if read is None else [read]
        if o is None:
            o = chunks.tokens_of(torch.cat(found))
            o = o if stream.batch is stream.new else o[stream.spots]
        return o, known.mapped(chunks.unsorted)

    return teach


torch_teach = teach_by(torch_sweep)
"""A `Teach` (fast.py)."""


def _read_now(rule: Rule, q: Tensor, weights: Weights, norm: Norm, stream: Stream) -> Tensor:
    """Every new token reads the weights of its sequence."""
    chunks = Chunks.of(stream.new, stream.new.max_new)
    (count,) = chunks.counts
    own = {name: chunks.sorted(w)[:count] for name, w in weights.items()}
    return chunks.tokens_of(nets.forward(tuple(own), nets.plain(own), chunks.rows(q), rule, norm))


def _groups(
    rule: Rule, lessons: Lessons, wide: torch.dtype, chunks: Chunks, stream: Stream, reads: bool, least: int
) -> Iterator[_Group]:
    """What tokens bring, in groups of chunks of at least so many tokens; a place without a token counts for nothing."""
    counts, given = chunks.counts, _given(lessons, wide)
    if reads:
        q = lessons.q
        given.append(
            q if stream.batch is stream.new else q.new_zeros(len(lessons.k), *q.shape[1:]).index_copy(0, stream.spots, q)
        )
    whole = [stream.batch.sizes[s] // rule.chunk for s in chunks.order]
    last = len(counts) - (not (lessons.keep and max(whole) == len(counts)))
    each = max(math.isqrt(len(counts) - 1) + 1, least // (chunks.index.shape[1] * counts[0]), 1)
    sizes = [sum(counts[c : c + each]) for c in range(0, len(counts), each)]
    rows = [[None] * len(sizes) if x is None else torch.split(chunks.rows(x), sizes) for x in given]
    full: list[Tensor | None] = [None] * len(sizes)
    if any(c >= whole[s] for c, count in enumerate(counts[:last]) for s in range(count)):
        full = list(torch.split(chunks.index[:, -1] < len(lessons.k), sizes))
    for at, here in enumerate(range(0, len(counts), each)):
        k, v, lr, stays, momentum, *queries = (x[at] for x in rows)
        assert k is not None, "there are keys"
        assert v is not None, "and values"
        assert lr is not None, "and steps"
        own = counts[here : here + each]
        tokens = Tokens(k, v, lr, stays, momentum, full[at])
        yield _Group(tokens, queries[0] if queries else None, own, min(len(own), last - here))


def _given(lessons: Lessons, wide: torch.dtype) -> list[Tensor | None]:
    """Keys, values, steps, and logarithms of 1 - decay and of the momentum."""
    shape, tiny = (len(lessons.k), lessons.heads), torch.finfo(wide).tiny
    lr, momentum, decay = lessons.rates

    def log(x: Tensor) -> Tensor:
        return x.to(wide).clamp(min=tiny).log().expand(shape)

    return [
        lessons.k,
        lessons.v,
        torch.ones(shape, dtype=wide, device=lessons.k.device) if lr is None else lr.to(wide).expand(shape),
        None if decay is None else log(1 - decay.to(wide)),
        None if momentum is None else log(momentum),
    ]


def _taught(
    sweep: Sweep, reader: Reader | None, rule: Rule, start: Weights, known: Learned, group: _Group, norm: Norm
) -> tuple[Tensor | None, Learned]:
    """(outputs of the tokens of a group, what is known after it)."""
    wide = group.tokens.lr.dtype

    def repeated(x: Tensor) -> Tensor:
        return x.to(wide).repeat_interleave(group.tokens.lr.shape[1] // x.shape[1], dim=1)

    narrow = group.tokens.k.element_size() == 2
    tokens = group.tokens._replace(k=repeated(group.tokens.k), v=repeated(group.tokens.v), narrow=narrow)
    before, after = sweep(rule, start, known, tokens, group.counts, group.learns, norm)
    if group.queries is None:
        return None, after
    q = group.queries.to(wide)
    read = None if reader is None else reader(rule, before, tokens, q, norm)
    return _read(rule, start, before, tokens, q, norm) if read is None else read, after


def _read(rule: Rule, start: Weights, before: Learned, tokens: Tokens, q: Tensor, norm: Norm) -> Tensor:
    """What tokens read of the weights before their chunks, or after their own writes."""
    names, w = tuple(start), before.weights
    if not rule.after_write:
        return nets.forward(names, nets.plain(w), q, rule, norm)
    now, outputs, size = Learned(begun(rule, start, w), before.moment), [], q.shape[2]
    slopes = slopes_of(rule, now.weights, tokens, norm)
    for begin in range(0, size, BLOCK):
        here = slice(begin, begin + BLOCK)
        part, own = tokens.block(here), {name: (d[:, :, here], a[:, :, here]) for name, (d, a) in slopes.items()}
        outputs.append(nets.forward(names, _reading(now, part, own), q[:, :, here], rule, norm))
        if here.stop < size:
            now = written(now, amounts_of(part), own)
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=2)


def within(tokens: Tokens) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Of the tokens of a block: what each finds of the others' writes [R, H, C, C], what is left of the weights before it and
    how much of the momentum has been added [R, H, C, 1], or None.
    """
    size = tokens.lr.shape[-1]
    lower = tokens.lr.new_ones(size, size).tril() if tokens.stays is None else between(tokens.stays)
    kept = None if tokens.stays is None else tokens.stays.cumsum(-1).exp().unsqueeze(-1)
    speed = None
    if tokens.momentum is not None:
        speed = lower @ tokens.momentum.cumsum(-1).exp().unsqueeze(-1)
        lower = lower @ between(tokens.momentum)
    return lower * tokens.lr.unsqueeze(-2), kept, speed


def _reading(known: Learned, tokens: Tokens, slopes: dict[str, tuple[Tensor, Tensor]]) -> nets.Apply:
    """Each token of a block reads the weights after its own write."""
    w, s = known.weights, known.moment
    writes, kept, speed = within(tokens)

    def apply(name: str, x: Tensor) -> Tensor:
        d, a = slopes[name]
        y = x @ w[name].transpose(-1, -2)
        y = y if kept is None else kept * y
        if speed is not None and s is not None:
            y = y + speed * (x @ s[name].transpose(-1, -2))
        return y - ((x @ a.transpose(-1, -2)) * writes) @ d

    return apply
