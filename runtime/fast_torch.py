"""The provider `torch` of fast weights: all tokens of a chunk at once, chunk after chunk; plain PyTorch, differentiable.

Gradients of a chunk are taken at the weights W that it began with, so those of its tokens are outer products u_j = d_j a_j^T
that are known together. With M(t, j) the product of the momenta, and B(t, j) that of 1 - decay, after token j up to t, and
S the momentum before the chunk, both recurrences are sums (arXiv 2501.00663; G = B M diag(lr)):

    W_t = B(t, 0) W + f_t S - sum_j G_tj u_j,      f_t = sum_k B(t, k) M(k, 0)
    S_t = M(t, 0) S - sum_j M(t, j) lr_j u_j

So reading W_t x, layer by layer, is attention without softmax over a and d, and no token has weights of its own. All is
computed in fp32, in float64 where q is. Legend: N chunks of C tokens; n sequences that have a chunk; H heads.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from . import nets
from .chunks import Chunks, between, passed
from .fast import Learned, Lessons, Rule, Stream, Weights
from .nets import Norm

BLOCK = 64
"""Tokens among which sums are taken pair by pair."""


class _Tokens(NamedTuple):
    """Of n sequences: k [n, H, C, D]; v [n, H, C, E]; lr [n, H, C]; logarithms of 1 - decay and of the momentum [n, H, C], or
    None.
    """

    k: Tensor
    v: Tensor
    lr: Tensor
    stays: Tensor | None
    momentum: Tensor | None

    def part(self, here: slice) -> _Tokens:
        """Those of some chunks."""
        return _Tokens(*(None if x is None else x[here] for x in self))  # type: ignore[arg-type]

    def block(self, here: slice) -> _Tokens:
        """Those at some places of their chunks."""
        return _Tokens(*(None if x is None else x[:, :, here] for x in self))  # type: ignore[arg-type]


def torch_teach(rule: Rule, lessons: Lessons, before: Learned, stream: Stream) -> tuple[Tensor, Learned]:
    """A `Teach` (fast.py)."""
    wide = torch.promote_types(lessons.q.dtype, torch.float32)
    q, norm = lessons.q.to(wide), None if lessons.norm is None else (lessons.norm[0].to(wide), lessons.norm[1].to(wide))
    now, longest = before.mapped(lambda w: w.to(wide)), stream.batch.max_new
    o = None
    if not rule.after_write and longest <= rule.chunk:  # no new token sees a write of this call
        o = _read_now(rule, q, now.weights, norm, stream)
        if longest < rule.chunk or not lessons.keep:
            return o, now
    chunks = Chunks.of(stream.batch, min(rule.chunk, longest))
    tokens, queries = _tokens(lessons, wide, chunks), None
    if o is None:
        spread = q if stream.batch is stream.new else q.new_zeros(len(lessons.k), *q.shape[1:]).index_copy(0, stream.spots, q)
        queries = chunks.rows(spread)
    start = {name: w.to(wide) for name, w in lessons.start.items()}
    found, after = _taught(rule, start, now, tokens, queries, norm, chunks, lessons.keep, stream)
    if o is None:
        o = chunks.tokens_of(torch.cat(found))
        o = o if stream.batch is stream.new else o[stream.spots]
    return o, after


def _read_now(rule: Rule, q: Tensor, weights: Weights, norm: Norm, stream: Stream) -> Tensor:
    """Every new token reads the weights of its sequence."""
    chunks = Chunks.of(stream.new, stream.new.max_new)
    (count,) = chunks.counts
    own = {name: chunks.sorted(w)[:count] for name, w in weights.items()}
    return chunks.tokens_of(nets.forward(tuple(own), nets.plain(own), chunks.rows(q), rule, norm))


def _tokens(lessons: Lessons, wide: torch.dtype, chunks: Chunks) -> _Tokens:
    """What tokens bring, in chunks; a place without a token counts for nothing."""
    k, v = (x.to(wide).repeat_interleave(lessons.heads // x.shape[1], dim=1) for x in (lessons.k, lessons.v))
    tiny, shape = torch.finfo(wide).tiny, k.shape[:2]

    def rows(x: Tensor | None) -> Tensor | None:
        return None if x is None else chunks.rows(x.to(wide).expand(shape))

    lr, momentum, decay = lessons.rates
    stays = None if decay is None else (1 - decay.to(wide)).clamp(min=tiny).log()
    moment = None if momentum is None else momentum.to(wide).clamp(min=tiny).log()
    steps = rows(k.new_ones(shape) if lr is None else lr)
    assert steps is not None, "there are steps"
    return _Tokens(chunks.rows(k), chunks.rows(v), steps, rows(stays), rows(moment))


def _taught(
    rule: Rule,
    start: Weights,
    before: Learned,
    tokens: _Tokens,
    queries: Tensor | None,
    norm: Norm,
    chunks: Chunks,
    keep: bool,
    stream: Stream,
) -> tuple[list[Tensor], Learned]:
    """(outputs of each chunk, what is learned after the last whole one), chunk after chunk, of all sequences that have one."""
    now, begin = before.mapped(chunks.sorted), 0
    outputs: list[Tensor] = []
    done: list[Learned] = []
    sizes = [stream.batch.sizes[s] for s in chunks.order]
    for c, count in enumerate(chunks.counts):
        here, stay = slice(begin, begin + count), count
        done.append(now.mapped(lambda w, stay=stay: w[stay:]))  # type: ignore[misc]
        now = now.mapped(lambda w, stay=stay: w[:stay])  # type: ignore[misc]
        full = [size >= (c + 1) * rule.chunk for size in sizes[:count]]
        write = any(full) and (keep or c + 1 < len(chunks.counts))
        own = None if queries is None else queries[here]
        o, then = _chunk(rule, start, now, tokens.part(here), own, norm, write)
        outputs += [] if o is None else [o]
        if write and not all(full):
            whole = torch.tensor(full, device=tokens.k.device).view(-1, 1, 1, 1)
            then = Learned.of([then, now], lambda new, old, whole=whole: torch.where(whole, new, old))
        now = then if write else now
        begin += count
    return outputs, Learned.of([now, *reversed(done)], lambda *parts: chunks.unsorted(torch.cat(parts)))


def _chunk(
    rule: Rule, start: Weights, before: Learned, tokens: _Tokens, q: Tensor | None, norm: Norm, write: bool
) -> tuple[Tensor | None, Learned]:
    """(outputs of a chunk's tokens where q is given, what is learned after it where it is to `write`)."""
    names, w, s = tuple(start), before.weights, before.moment
    outputs = []
    if q is not None and not rule.after_write:
        outputs.append(nets.forward(names, nets.plain(w), q, rule, norm))
    if not write and not rule.after_write:
        return (outputs[0] if outputs else None), before
    if rule.weight_norm:
        tiny = torch.finfo(tokens.k.dtype).tiny
        w = {name: w[name] * (_rows(start[name]) / _rows(w[name]).clamp(min=tiny)) for name in names}
    kept = tokens.stays.cumsum(-1).exp().unsqueeze(-1) if rule.after_decay and tokens.stays is not None else None
    slopes = nets.gradients(w, kept, tokens.k, tokens.v, rule, norm)
    size = tokens.lr.shape[-1]
    for begin in range(0, size, BLOCK if rule.after_write else size):
        here = slice(begin, begin + BLOCK if rule.after_write else size)
        part, own = tokens.block(here), {name: (d[:, :, here], a[:, :, here]) for name, (d, a) in slopes.items()}
        if rule.after_write and q is not None:
            outputs.append(nets.forward(names, _reading(w, s, part, own), q[:, :, here], rule, norm))
        if write or here.stop < size:
            w, s = _written(w, s, part, own)
    return (torch.cat(outputs, dim=2) if outputs else None), Learned(w, s)


def _rows(w: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(w, dim=-1, keepdim=True)
    return norms


def _reading(w: Weights, s: Weights | None, tokens: _Tokens, slopes: dict[str, tuple[Tensor, Tensor]]) -> nets.Apply:
    """Each token of a block reads the weights after its own write."""
    size = tokens.lr.shape[-1]
    lower = tokens.lr.new_ones(size, size).tril() if tokens.stays is None else between(tokens.stays)
    kept = None if tokens.stays is None else tokens.stays.cumsum(-1).exp().unsqueeze(-1)
    speed = None
    if tokens.momentum is not None:
        speed = lower @ tokens.momentum.cumsum(-1).exp().unsqueeze(-1)
        lower = lower @ between(tokens.momentum)
    writes = lower * tokens.lr.unsqueeze(-2)

    def apply(name: str, x: Tensor) -> Tensor:
        d, a = slopes[name]
        y = x @ w[name].transpose(-1, -2)
        y = y if kept is None else kept * y
        if speed is not None and s is not None:
            y = y + speed * (x @ s[name].transpose(-1, -2))
        return y - ((x @ a.transpose(-1, -2)) * writes) @ d

    return apply


def _written(
    w: Weights, s: Weights | None, tokens: _Tokens, slopes: dict[str, tuple[Tensor, Tensor]]
) -> tuple[Weights, Weights | None]:
    """Weights and momentum after a block."""
    stays, momentum, lr = tokens.stays, tokens.momentum, tokens.lr
    reach = torch.ones_like(lr) if stays is None else passed(stays.unsqueeze(-1)).squeeze(-1).exp()
    total = None if stays is None else stays.sum(-1).exp()[..., None, None]
    if momentum is None or s is None:
        return {name: _less(w[name], total, lr * reach, *slopes[name]) for name in w}, s
    reach, speed = _gathered(reach, momentum)
    late = lr * passed(momentum.unsqueeze(-1)).squeeze(-1).exp()
    slower = momentum.sum(-1).exp()[..., None, None]
    after = {name: _less(w[name], total, lr * reach, *slopes[name]) + speed[..., None, None] * s[name] for name in w}
    return after, {name: _less(s[name], slower, late, *slopes[name]) for name in w}


def _less(x: Tensor, factor: Tensor | None, amounts: Tensor, d: Tensor, a: Tensor) -> Tensor:
    """factor x - sum_j amounts_j d_j a_j^T."""
    return (x if factor is None else factor * x) - (amounts.unsqueeze(-1) * d).transpose(-1, -2) @ a


def _gathered(reach: Tensor, momentum: Tensor) -> tuple[Tensor, Tensor]:
    """(c [n, H, C], c_0 [n, H]): c_j the sum over k >= j of reach_k times the momenta after j up to k, block by block."""
    found: list[Tensor] = []
    carried = None
    for begin in reversed(range(0, reach.shape[-1], BLOCK)):
        own = momentum[..., begin : begin + BLOCK]
        c = (reach[..., begin : begin + BLOCK].unsqueeze(-2) @ between(own)).squeeze(-2)
        if carried is not None:
            c = c + passed(own.unsqueeze(-1)).squeeze(-1).exp() * carried.unsqueeze(-1)
        carried = own[..., 0].exp() * c[..., 0]
        found.insert(0, c)
    assert carried is not None, "a chunk has tokens"
    return torch.cat(found, dim=-1), carried
