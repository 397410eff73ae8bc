"""What scores by weights of its own where content chooses keys: DSA's lightning indexer.

Legend: T new tokens of S sequences; J heads of an indexer; D their width; W model width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .call import Call
from .rotary import Rope, rotate_by


@dataclass(frozen=True, eq=False)
class Indexed:
    """What an `Indexer` makes of tokens: queries q [T, J, D], one key k [T, 1, D] a token, and weights [T, J] of its heads."""

    q: Tensor
    k: Tensor
    weights: Tensor

    def select(self, index: Tensor) -> Indexed:
        """Those of some tokens."""
        return Indexed(self.q[index], self.k[index], self.weights[index])

    def split(self, sizes: Sequence[int]) -> list[Indexed]:
        """Those of each sequence."""
        parts = zip(*(torch.split(x, list(sizes)) for x in (self.q, self.k, self.weights)), strict=True)
        return [Indexed(*part) for part in parts]


Net = Indexed


class Indexer(nn.Module):
    """The lightning indexer of DeepSeek-V3.2: score(t, s) = sum over heads j of w(t, j) relu(q(t, j) . k(s)).

    One key a token for all heads, behind a layer norm; the first channels of q and k are turned by their positions. Weights are
    scaled by (heads x head_dim)^-1/2. No gradient flows back into x: the indexer learns from a loss of its own.
    """

    def __init__(self, width: int, heads: int, head_dim: int, rope: Rope | None = None) -> None:
        super().__init__()
        self.heads, self.rope, self.scale = heads, rope, (heads * head_dim) ** -0.5
        self.q_proj = nn.Linear(width, heads * head_dim, bias=False)
        self.k_proj = nn.Linear(width, head_dim, bias=False)
        self.k_norm = nn.LayerNorm(head_dim, eps=1e-6)
        self.weight_proj = nn.Linear(width, heads, bias=False)

    def forward(self, x: Tensor, call: Call) -> Indexed:
        """x [T, W] -> what scores the call's tokens."""
        x = x.detach()
        q, k = self.q_proj(x).unflatten(-1, (self.heads, -1)), self.k_norm(self.k_proj(x)).unsqueeze(1)
        if self.rope is not None:
            turn = call.angles(self.rope)
            q, k = rotate_by(q, *turn), rotate_by(k, *turn)
        return Indexed(q, k, self.weight_proj(x) * self.scale)
