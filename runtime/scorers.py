"""What scores by weights of its own where content chooses keys: DSA's lightning indexer, SeerAttention's gate.

Legend: T new tokens of S sequences; J heads of an indexer; G KV heads; M runs of keys; D key width; W model width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .chunks_pooled import ChunkPool
from .rotary import Rope, rotate, rotate_by, undo

if TYPE_CHECKING:
    from .call import Call


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


class HeadMaps(nn.Module):
    """A map for each KV head: x [G, ..., inner] -> [G, ..., outer]."""

    def __init__(self, heads: int, outer: int, inner: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(heads, outer, inner))

    def forward(self, x: Tensor, first: int) -> Tensor:
        """x of KV heads `first` and on."""
        maps = self.weight[first : first + len(x)].to(x.dtype)
        mapped = x.flatten(1, -2) @ maps.transpose(1, 2)
        return mapped.reshape(*x.shape[:-1], maps.shape[1])


class LearnedPool(nn.Module):
    """SeerAttention's gate (arXiv 2410.13276): maps of a block's mean query and of its pooled keys, side by side.

    Pooled before they are turned; what a map makes is turned at its block's first position.
    """

    def __init__(self, heads: int, width: int, pools: tuple[str, ...], rope: Rope | None, turned: Rope | None) -> None:
        """`rope` turned q and k before; `turned`: how what is mapped is turned."""
        super().__init__()
        self.pools, self.rope, self.turned = pools, rope, turned
        self.q_proj = HeadMaps(heads, width, width)
        self.k_proj = HeadMaps(heads, width, len(pools) * width)

    def select(self, _index: Tensor) -> LearnedPool:
        """For some tokens the same."""
        return self

    def plain(self, x: Tensor, begin: int) -> Tensor:
        """q or k [heads, N, D] from position `begin` on, before it was turned; in fp32 (float64)."""
        positions = torch.arange(x.shape[1], device=x.device) + begin
        return undo(x.to(torch.promote_types(x.dtype, torch.float32)).transpose(0, 1), positions, self.rope).transpose(0, 1)

    def queries(self, q: Tensor, at: Tensor, many: int, first: int, heads: int) -> Tensor:
        """Mean queries [H, r, D], not turned, of rows that choose at positions at [r] -> what asks, [H, r, D].

        Of blocks of `many` queries, and KV heads `first` and `heads` - 1 more.
        """
        grouped = self.q_proj(q.reshape(heads, len(q) // heads, *q.shape[1:]), first).reshape(q.shape)
        begin = torch.div(at, many, rounding_mode="floor") * many
        return rotate(grouped.transpose(0, 1), begin, self.turned).transpose(0, 1)

    def keys(self, k: Tensor, begin: int, span: int, first: int) -> Tensor:
        """Keys k [G, L, D] from position `begin` on, turned, of KV heads `first` and on -> of each complete run [G, M, D]."""
        whole = self.plain(k, begin)[:, : k.shape[1] // span * span]
        cut = whole.reshape(len(k), -1, span, k.shape[2])
        pools: dict[str, Callable[[int], Tensor]] = {"mean": cut.mean, "sum": cut.sum, "max": cut.amax, "min": cut.amin}
        mapped = self.k_proj(torch.cat([pools[pool](2) for pool in self.pools], dim=-1), first)
        at = torch.arange(mapped.shape[1], device=k.device) * span + begin
        return rotate(mapped.transpose(0, 1), at, self.turned).transpose(0, 1)


Net = Indexed | LearnedPool | ChunkPool
