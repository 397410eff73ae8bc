"""States of single channels in plain torch: a chunk of tokens at a time, in each an associative scan or token by token.

Legend: T new tokens of S sequences, packed; C channels; M numbers of a channel's state; N places of a padded sequence; L tokens
of a chunk.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .batch import Batch
from .channels import Channels

ROOM = 2**22
"""Numbers of states that a chunk may hold at a time, of all its sequences, tokens and channels."""

LONGEST = 64
"""Tokens of a chunk: the work of a token grows with the logarithm of it."""


def torch_channels(given: Channels, before: Tensor | None, batch: Batch) -> tuple[Tensor, Tensor]:
    """A `ChannelScan` in plain torch: chunks of tokens one after another, in each an associative scan of log2(tokens) passes,
    on a CPU token by token.

    Training keeps the states at the beginnings of chunks and computes each chunk again on the way back.
    """
    wide = given.rates.real.dtype
    rows = Rows.of(batch)
    tokens = {name: None if x is None else rows.spread(x.to(wide)) for name, x in _of_tokens(given).items()}
    channels, state = given.rates.shape
    h = before if before is not None else given.rates.new_zeros(batch.sequences, channels, state)
    length = _length(batch, channels * state)
    outputs = []
    chunks = -(-batch.max_new // length)
    parts = [[None] * chunks if x is None else torch.split(x, length, dim=1) for x in tokens.values()]
    for live, *of_tokens in zip(torch.split(rows.live, length, dim=1)[:chunks], *parts, strict=False):
        y, h = _run(_chunk, h, live, given.rates, given.weights, *of_tokens)
        outputs.append(y)
    if not outputs:
        return given.u.new_zeros(given.u.shape), h
    return rows.pack(torch.cat(outputs, dim=1)).to(given.u.dtype), h


def _of_tokens(given: Channels) -> dict[str, Tensor | None]:
    return {"u": given.u, "step": given.step, "write": given.write, "read": given.read}


def _length(batch: Batch, numbers: int) -> int:
    """Tokens of a chunk, a power of two."""
    length = 1
    while length < min(LONGEST, batch.max_new) and 2 * length * numbers * batch.sequences <= ROOM:
        length *= 2
    return length


def _run(chunk: Callable[..., tuple[Tensor, Tensor]], *given: Tensor | None) -> tuple[Tensor, Tensor]:
    """The chunk; what it computes is not kept for gradients but computed again."""
    if not torch.is_grad_enabled() or not any(x is not None and x.requires_grad for x in given):
        return chunk(*given)
    y, h = checkpoint(chunk, *given, use_reentrant=False, preserve_rng_state=False)
    return y, h


def _chunk(
    h: Tensor,
    live: Tensor,
    rates: Tensor,
    weights: Tensor | None,
    u: Tensor,
    step: Tensor | None,
    write: Tensor | None,
    read: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """h [S, C, M]; live [S, L], whether there is a token; u, step [S, L, C]; write, read [S, L, M] -> y [S, L, C], new h."""
    there = live[:, :, None, None]
    exponents = rates.expand(*u.shape, rates.shape[1]) if step is None else step.unsqueeze(-1) * rates
    decay = torch.exp(torch.where(there, exponents, 0))  # [S, L, C, M]; where there is no token, the state stays
    added = u.unsqueeze(-1) if write is None else u.unsqueeze(-1) * write.unsqueeze(2)
    added = torch.where(there, added, 0).expand(decay.shape).to(decay.dtype)
    states = in_turn(decay, added, h) if steps_in_turn(h) else at_once(decay, added, h)
    seen = states if read is None else states * torch.where(live[:, :, None], read, 0).unsqueeze(2)
    y = (seen if weights is None else seen * weights).sum(-1)
    return (y.real if y.is_complex() else y), states[:, -1]


def steps_in_turn(h: Tensor) -> bool:
    """Whether tokens of a chunk come one after another: on a CPU, which then goes over its memory once."""
    return h.device.type == "cpu"


def in_turn(decay: Tensor, added: Tensor, h: Tensor) -> Tensor:
    """All states [S, L, C, M] of h <- decay h + added, token by token."""
    states = []
    for kept, new in zip(decay.unbind(1), added.unbind(1), strict=True):
        h = torch.addcmul(new, kept, h)
        states.append(h)
    return torch.stack(states, dim=1)


def at_once(decay: Tensor, added: Tensor, h: Tensor) -> Tensor:
    """The same pass by pass: every token joins the twice as many before it."""
    added = torch.cat((added[:, :1] + decay[:, :1] * h.unsqueeze(1), added[:, 1:]), dim=1)
    reach = 1
    while reach < added.shape[1]:
        joined = added[:, reach:] + decay[:, reach:] * added[:, :-reach]
        farther = decay[:, reach:] * decay[:, :-reach]
        added = torch.cat((added[:, :reach], joined), dim=1)
        decay = torch.cat((decay[:, :reach], farther), dim=1)
        reach *= 2
    return added


@dataclass(frozen=True, eq=False)
class Rows:
    """Packed tokens as rows of equal length, one a sequence, with nothing behind shorter ones.

    live   [S, N], whether there is a token
    token  [S, N], which one; 0 where there is none
    place  [T], each token's place among the S N
    """

    live: Tensor
    token: Tensor | None
    place: Tensor | None

    @classmethod
    def of(cls, batch: Batch) -> Rows:
        """The rows of a call, made once."""
        return batch.once(("channel rows",), lambda: cls._of(batch))

    @classmethod
    def _of(cls, batch: Batch) -> Rows:
        s, n, device = batch.sequences, batch.max_new, batch.offsets.device
        if all(size == n for size in batch.sizes):
            return cls(torch.ones(s, n, dtype=torch.bool, device=device), None, None)
        index = torch.arange(n, device=device)
        size = (batch.offsets[1:] - batch.offsets[:-1]).unsqueeze(1)
        live = index < size
        token = torch.where(live, batch.offsets[:-1].unsqueeze(1) + index, 0)
        begin = batch.offsets[batch.sequence]
        return cls(live, token, batch.sequence * n + torch.arange(batch.tokens, device=device) - begin)

    def spread(self, x: Tensor) -> Tensor:
        """[T, width] -> [S, N, width]; where there is no token stands the first one."""
        return x.reshape(*self.live.shape, x.shape[1]) if self.token is None else x[self.token]

    def pack(self, x: Tensor) -> Tensor:
        """[S, N, width] -> [T, width]."""
        flat = x.reshape(-1, x.shape[2])
        return flat if self.place is None else flat[self.place]
