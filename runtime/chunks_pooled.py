"""One key and one value for every complete chunk of tokens: what a `summary` adds to a softmax over tokens.

NSA's compressed branch (arXiv 2502.11089), Combiner (arXiv 2107.05768). Keys are pooled as they were before they were turned,
and turned at their chunk's last position.

Legend: G KV heads; L tokens of a sequence; M chunks of `span` tokens, one begun every `step`; D, E key and value width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .rotary import Rope, rotate, undo
from .spans import Numbers, visible


class ChunkMap(nn.Module):
    """NSA's learned pool: down(silu(up(the chunk's rows, each with a learned place added, side by side))); for all heads."""

    def __init__(self, width: int, span: int) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.zeros(span, width))
        self.up = nn.Linear(span * width, width, bias=False)
        self.down = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x [G, M, span, width] -> [G, M, width]."""
        wide = x + self.place.to(x.dtype)
        up, down = (one.weight.to(x.dtype) for one in (self.up, self.down))
        return F.linear(F.silu(F.linear(wide.flatten(2), up)), down)


class ChunkPool(nn.Module):
    """How chunks become keys and values. `rope` has turned the keys."""

    def __init__(self, key: int, value: int, span: int, step: int, pools: tuple[str, str], rope: Rope | None = None) -> None:
        super().__init__()
        self.span, self.step, self.pools, self.rope = span, step, pools, rope
        if pools[0] == "mlp":
            self.k = ChunkMap(key, span)
        if pools[1] == "mlp":
            self.v = ChunkMap(value, span)

    def select(self, _index: Tensor) -> ChunkPool:
        """For some tokens the same."""
        return self

    def keys(self, k: Tensor, begin: int) -> Tensor:
        """Turned keys k [G, L, D] from position `begin` on -> those of the complete chunks, [G, M, D], turned; fp32 or more."""
        at = torch.arange(k.shape[1], device=k.device) + begin
        plain = undo(k.to(torch.promote_types(k.dtype, torch.float32)).transpose(0, 1), at, self.rope).transpose(0, 1)
        found = self._pooled(plain, self.pools[0], "k")
        last = torch.arange(found.shape[1], device=k.device) * self.step + begin + self.span - 1
        return rotate(found.transpose(0, 1), last, self.rope).transpose(0, 1)

    def values(self, v: Tensor) -> Tensor:
        """Values v [G, L, E] -> those of each complete chunk, [G, M, E]."""
        return self._pooled(v.to(torch.promote_types(v.dtype, torch.float32)), self.pools[1], "v")

    def _pooled(self, x: Tensor, pool: str, which: str) -> Tensor:
        if x.shape[1] < self.span:
            return x.new_zeros(len(x), 0, x.shape[2])
        cut = x.unfold(1, self.span, self.step).transpose(2, 3)  # [G, M, span, width]
        if pool == "mlp":
            mapped: Tensor = self.get_submodule(which)(cut)
            return mapped
        return cut.amax(2) if pool == "max" else cut.sum(2) if pool == "sum" else cut.mean(2)


def seen_chunks(numbers: Numbers, i: Tensor, count: int, span: int, step: int) -> Tensor:
    """Which of `count` chunks the queries at positions i [n] see: those read whole, of which the intervals show no token."""
    m = torch.arange(count, device=i.device)
    seen = m * step + span <= i.unsqueeze(1) + 1
    if not count or not (numbers.sink or numbers.nears or numbers.strides or numbers.powers):
        return seen
    j = torch.arange((count - 1) * step + span, device=i.device)
    shown = visible(numbers, i.unsqueeze(1), j)
    return seen & ~shown.unfold(1, span, step).any(dim=-1)
