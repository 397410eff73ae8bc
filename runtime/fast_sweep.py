"""How much each token of a chunk adds to weights and momentum, and plain PyTorch's way from chunk to chunk.

Gradients of a chunk are taken at the weights W that it began with, so those of its tokens are outer products u_j = d_j a_j^T
that are known together. With M(t, j) the product of the momenta, and B(t, j) that of 1 - decay, after token j up to t, and
S the momentum before the chunk, both recurrences are sums (arXiv 2501.00663; G = B M diag(lr)):

    W_t = B(t, 0) W + f_t S - sum_j G_tj u_j,      f_t = sum_k B(t, k) M(k, 0)
    S_t = M(t, 0) S - sum_j M(t, j) lr_j u_j

Legend: R rows, the chunks of C tokens of several sequences, first ones before second ones; H heads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from . import nets
from .chunks import between, passed
from .fast import Learned, Rule, Weights
from .nets import Norm

BLOCK = 64
"""Tokens among which sums are taken pair by pair."""


class Tokens(NamedTuple):
    """k [R, H, C, D]; v [R, H, C, E]; lr [R, H, C]; logarithms of 1 - decay and of the momentum [R, H, C], or None.

    whole   [R], which chunks have all of their tokens and are written; None: all
    narrow  whether keys and values came in 16 bits
    """

    k: Tensor
    v: Tensor
    lr: Tensor
    stays: Tensor | None = None
    momentum: Tensor | None = None
    whole: Tensor | None = None
    narrow: bool = False

    def block(self, here: slice) -> Tokens:
        """Those at some places of their chunks."""
        return Tokens(*(None if x is None else x[:, :, here] for x in self[:5]))  # type: ignore[arg-type]


class Amounts(NamedTuple):
    """W <- stays W + speed S - sum_j writes_j u_j;  S <- slows S - sum_j pushes_j u_j.

    writes, pushes [R, H, C]; stays, speed, slows [R, H]; without momentum there are no pushes, speed and slows
    """

    writes: Tensor
    pushes: Tensor | None = None
    stays: Tensor | None = None
    speed: Tensor | None = None
    slows: Tensor | None = None

    def split(self, counts: list[int]) -> list[Amounts]:
        """Those of some rows after the others."""
        parts = [[None] * len(counts) if x is None else torch.split(x, counts) for x in self]
        return [Amounts(*one) for one in zip(*parts, strict=True)]


class Swept(NamedTuple):
    """What sequences knew before each chunk, [R, H, ...] in the order of rows, and what they know after the last."""

    before: Learned
    after: Learned


Sweep = Callable[[Rule, Weights, Learned, Tokens, tuple[int, ...], int, Norm], Swept]
"""(rule, weights that texts begin with, what sequences know, tokens, how many sequences have each chunk, how many of these
chunks are learned from, norm) -> what they know before each chunk and after. Sequences with more chunks stand first.
"""


def amounts_of(tokens: Tokens) -> Amounts:
    """Of whole chunks; chunks that are not whole change nothing."""
    stays, momentum, lr = tokens.stays, tokens.momentum, tokens.lr
    reach = torch.ones_like(lr) if stays is None else passed(stays.unsqueeze(-1)).squeeze(-1).exp()
    total = None if stays is None else stays.sum(-1).exp()
    if momentum is None:
        return _of_whole(Amounts(lr * reach, stays=total), tokens.whole)
    reach, speed = _gathered(reach, momentum)
    late = lr * passed(momentum.unsqueeze(-1)).squeeze(-1).exp()
    return _of_whole(Amounts(lr * reach, late, total, speed, momentum.sum(-1).exp()), tokens.whole)


def _of_whole(amounts: Amounts, whole: Tensor | None) -> Amounts:
    if whole is None:
        return amounts
    part = ~whole.view(-1, 1)
    still = zip(amounts, (0.0, 0.0, 1.0, 0.0, 1.0), strict=True)
    return Amounts(*(None if x is None else x.masked_fill(part.view(-1, *[1] * (x.dim() - 1)), as_is) for x, as_is in still))  # type: ignore[arg-type]


def _gathered(reach: Tensor, momentum: Tensor) -> tuple[Tensor, Tensor]:
    """(c [R, H, C], c_0 [R, H]): c_j the sum over k >= j of reach_k times the momenta after j up to k, block by block."""
    found: list[Tensor] = []
    carried = None
    for begin in reversed(range(0, reach.shape[-1], BLOCK)):
        own = momentum[..., begin : begin + BLOCK]
        c = (reach[..., begin : begin + BLOCK].unsqueeze(-1) * between(own)).sum(
            -2
        )  # no product of matrices: nothing rounds it
        if carried is not None:
            c = c + passed(own.unsqueeze(-1)).squeeze(-1).exp() * carried.unsqueeze(-1)
        carried = own[..., 0].exp() * c[..., 0]
        found.insert(0, c)
    assert carried is not None, "a chunk has tokens"
    return torch.cat(found, dim=-1), carried


def written(before: Learned, amounts: Amounts, slopes: dict[str, tuple[Tensor, Tensor]]) -> Learned:
    """What is known after one chunk of each row."""
    w, s = before.weights, before.moment
    after = {name: _less(w[name], amounts.stays, amounts.writes, *slopes[name]) for name in w}
    if s is None:
        return Learned(after)
    assert amounts.speed is not None, "momentum has a speed"
    assert amounts.pushes is not None, "momentum is pushed"
    after = {name: after[name] + amounts.speed[..., None, None] * s[name] for name in w}
    return Learned(after, {name: _less(s[name], amounts.slows, amounts.pushes, *slopes[name]) for name in w})


def _less(x: Tensor, factor: Tensor | None, amounts: Tensor, d: Tensor, a: Tensor) -> Tensor:
    """factor x - sum_j amounts_j d_j a_j^T."""
    return (x if factor is None else factor[..., None, None] * x) - (amounts.unsqueeze(-1) * d).transpose(-1, -2) @ a


def begun(rule: Rule, start: Weights, w: Weights) -> Weights:
    """The weights at which a chunk's gradients are taken: what was read, its rows of the norms that texts begin with."""
    if not rule.weight_norm:
        return w
    tiny = torch.finfo(next(iter(w.values())).dtype).tiny
    return {name: w[name] * (_rows(start[name]) / _rows(w[name]).clamp(min=tiny)) for name in w}


def _rows(w: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(w, dim=-1, keepdim=True)
    return norms


def slopes_of(rule: Rule, w: Weights, tokens: Tokens, norm: Norm) -> dict[str, tuple[Tensor, Tensor]]:
    """Each weight's gradients of all tokens, as pairs of vectors."""
    kept = tokens.stays.cumsum(-1).exp().unsqueeze(-1) if rule.after_decay and tokens.stays is not None else None
    return nets.gradients(w, kept, tokens.k, tokens.v, rule, norm)


def torch_sweep(
    rule: Rule, start: Weights, known: Learned, tokens: Tokens, counts: tuple[int, ...], learns: int, norm: Norm
) -> Swept:
    """A `Sweep` of plain PyTorch."""
    now, before, done, sizes = known, [], [], list(counts)
    amounts = amounts_of(tokens).split(sizes)
    parts = zip(*([None] * len(sizes) if x is None else torch.split(x, sizes) for x in tokens[:5]), strict=True)
    for c, (count, part) in enumerate(zip(counts, parts, strict=True)):
        done.append(now.mapped(lambda w, count=count: w[count:]))  # type: ignore[misc]
        now = now.mapped(lambda w, count=count: w[:count])  # type: ignore[misc]
        before.append(now)
        if c < learns:
            w = begun(rule, start, now.weights)
            then = written(Learned(w, now.moment), amounts[c], slopes_of(rule, w, Tokens(*part), norm))
            if rule.weight_norm and tokens.whole is not None:  # what is not written keeps its norms
                full = torch.split(tokens.whole, sizes)[c].view(-1, 1, 1, 1)
                then = Learned.of([then, now], lambda new, old, full=full: torch.where(full, new, old))
            now = then
    return Swept(Learned.of(before, _joined), Learned.of([now, *reversed(done)], _joined))


def _joined(*parts: Tensor) -> Tensor:
    parts = tuple(part for part in parts if len(part)) or parts[:1]
    return parts[0] if len(parts) == 1 else torch.cat(parts)
