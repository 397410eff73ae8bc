"""Rows of fast weights that keep their norms: what generated kernels read of them (codegen/triton/skeletons/fast_rows.py).

Legend: R rows, the chunks of several sequences; H heads; M numbers of a net, flat.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from .fast import Weights
from .fast_sweep import Tokens


def goals_of(start: Weights, tokens: Tokens) -> Tensor:
    """The norms that rows get before each chunk writes, [R, H, rows of a net]; less than nothing where it does not."""
    norms = torch.cat([torch.linalg.vector_norm(w, dim=-1) for w in start.values()], dim=1).to(tokens.lr.dtype)
    goals = norms.expand(len(tokens.lr), *norms.shape)
    goals = goals if tokens.whole is None else goals.masked_fill(~tokens.whole.view(-1, 1, 1), -1.0)
    return goals.contiguous()


class Rows(NamedTuple):
    """What the way back reads of rows that keep their norms, and where it leaves products; all [R, H, rows of a net].

    shares  what rows were multiplied by before a chunk wrote
    pulls   1 over the squares of the norms that they got; 0 where they stayed as they were, or were nothing
    dots    room for the products of rows, so multiplied, with their gradients
    """

    shares: Tensor
    pulls: Tensor
    dots: Tensor

    @classmethod
    def of(cls, kept: Tensor, goals: Tensor, maps: Sequence[tuple[int, int]]) -> tuple[Tensor, Rows]:
        """(the weights kept [R, H, M] as chunks began to write, their rows), of nets of `maps`, each of so many rows."""
        parts = torch.split(kept, [rows * width for rows, width in maps], dim=2)
        weights = [part.view(*part.shape[:2], *shape) for part, shape in zip(parts, maps, strict=True)]
        norms = torch.cat([torch.linalg.vector_norm(w, dim=-1) for w in weights], dim=2)
        shares = torch.where(goals < 0, 1.0, goals / norms.clamp(min=torch.finfo(norms.dtype).tiny))
        of_maps = torch.split(shares, [rows for rows, _ in maps], dim=2)
        begun = [(w * share.unsqueeze(-1)).flatten(2) for w, share in zip(weights, of_maps, strict=True)]
        pulls = torch.where(goals > 0, 1 / goals.square(), 0.0)
        return torch.cat(begun, dim=2), cls(shares, pulls, torch.empty_like(goals))

    def of_goals(self, goals: Tensor) -> Tensor:
        """The gradient of what rows were to get."""
        return torch.where(goals > 0, self.dots / goals, 0.0)


def maps_of(module: ModuleType) -> tuple[tuple[int, int], ...]:
    """Rows and columns of each map of a kernel file's nets."""
    wide, width, hidden = module.KEY_WIDTH, module.VALUE_WIDTH, getattr(module, "HIDDEN", 0)
    return ((hidden, wide), (width, hidden)) if hidden else ((width, wide),)
