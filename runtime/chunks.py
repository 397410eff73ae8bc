"""Packed sequences cut into chunks of one size, and the pairs of a chunk's tokens with the decay between them.

Legend: T tokens of S sequences; N chunks of C tokens, all first chunks before all second ones; H heads; K, V widths.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .batch import Batch


@dataclass(frozen=True, eq=False)
class Chunks:
    """How tokens lie in chunks.

    counts  how many sequences have a first chunk, a second, ...; sequences with more chunks stand first, in `order` [S]
    index   [N, C], the token at each place; T where there is none
    places  [T], where each token stands among the N x C places
    """

    counts: tuple[int, ...]
    order: tuple[int, ...]
    index: Tensor
    places: Tensor

    @classmethod
    def of(cls, batch: Batch, size: int) -> Chunks:
        """A batch's tokens in chunks of `size`."""
        return batch.once(("chunks", size), lambda: cls._of(batch, size))

    @classmethod
    def _of(cls, batch: Batch, size: int) -> Chunks:
        needed = [-(-tokens // size) for tokens in batch.sizes]
        order = tuple(sorted(range(len(needed)), key=lambda s: -needed[s]))
        counts = tuple(sum(n > c for n in needed) for c in range(max(needed, default=0)))
        starts = [sum(batch.sizes[:s]) for s in range(len(needed))] if len(set(batch.sizes)) > 1 else []
        begin, left = [], []
        for c, count in enumerate(counts):
            for s in order[:count]:
                begin.append((starts[s] if starts else s * batch.sizes[0]) + c * size)
                left.append(batch.sizes[s] - c * size)
        device = batch.offsets.device
        lanes = torch.arange(size, device=device)
        table = torch.tensor([begin, left], dtype=torch.int64, device=device).view(2, -1, 1)
        index = torch.where(lanes < table[1], table[0] + lanes, batch.tokens)
        flat = index.flatten()
        places = flat.new_zeros(batch.tokens + 1).scatter(0, flat, torch.arange(len(flat), device=device))
        return cls(counts, order, index, places[:-1])

    def rows(self, x: Tensor) -> Tensor:
        """x [T, H, ...] -> [N, H, C, ...], zeros where there is no token."""
        padded = torch.cat((x, x.new_zeros(1, *x.shape[1:])))
        return padded[self.index].transpose(1, 2)

    def tokens_of(self, rows: Tensor) -> Tensor:
        """[N, H, C, ...] -> [T, H, ...]."""
        return rows.transpose(1, 2).flatten(0, 1)[self.places]

    def sorted(self, x: Tensor) -> Tensor:
        """x [S, ...] in `order`."""
        return x if self._plain else x[torch.tensor(self.order, device=x.device)]

    def unsorted(self, x: Tensor) -> Tensor:
        """The same back again."""
        if self._plain:
            return x
        places = sorted(range(len(self.order)), key=lambda s: self.order[s])
        return x[torch.tensor(places, device=x.device)]

    @property
    def _plain(self) -> bool:
        return self.order == tuple(range(len(self.order)))


def passed(decay: Tensor) -> Tensor:
    """The sum of the decays after each token to the chunk's end, [..., C, K] -> the same; -inf is a sum like any other."""
    later = torch.cat((decay[..., 1:, :], torch.zeros_like(decay[..., :1, :])), dim=-2)
    return later.flip(-2).cumsum(-2).flip(-2)


def between(decay: Tensor) -> Tensor:
    """exp of the sum of the decays after token j up to token i, [..., C] -> [..., C, C], 0 above the diagonal.

    Each sum is of its own tokens: differences of running sums lose what is small behind what is large.
    """
    size = decay.shape[-1]
    lower = torch.ones(size, size, dtype=torch.bool, device=decay.device).tril()
    spread = decay.unsqueeze(-1).expand(*decay.shape, size).masked_fill(~lower.tril(-1), 0.0)
    return spread.cumsum(-2).masked_fill(~lower, float("-inf")).exp()


def _halves(x: Tensor, half: int) -> Tensor:
    """[..., C, K] -> [..., blocks, 2, half, K]."""
    return x.reshape(*x.shape[:-2], -1, 2, half, x.shape[-1])


def pairs(lefts: tuple[Tensor, ...], right: Tensor, decay: Tensor) -> tuple[Tensor, ...]:
    """For each left x: sum_k x_ik right_jk exp(sum of decay_k after j up to i), [..., C, C], 0 above the diagonal.

    x, right, decay [..., C, K], C a power of two. Halves of blocks meet at their middle, so no exponent is ever positive: rows
    of the later half decay from the middle on, those of the earlier half up to it.
    """
    size = right.shape[-2]
    found = [(x * right).sum(dim=-1)[..., None, None] for x in lefts]  # blocks of one token
    half = 1
    while half < size:
        decays, keys = _halves(decay, half), _halves(right, half)
        since = decays[..., 1, :, :].cumsum(-2).exp()
        until = (keys[..., 0, :, :] * passed(decays[..., 0, :, :]).exp()).transpose(-1, -2)
        blocks = []
        for x, block in zip(lefts, found, strict=True):
            low = (_halves(x, half)[..., 1, :, :] * since) @ until
            first, second = block.reshape(*block.shape[:-3], -1, 2, half, half).unbind(-3)
            rows = torch.cat((first, torch.zeros_like(low)), dim=-1), torch.cat((low, second), dim=-1)
            blocks.append(torch.cat(rows, dim=-2))
        found, half = blocks, 2 * half
    return tuple(block.squeeze(-3) for block in found)
