"""Low-rank changes beside frozen matrices (LoRA, arXiv 2106.09685): y = W x + scale B A x, with A and B trained.

Legend: r rank; [out, in] the matrix's shape.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnc.runtime.weights import started


@dataclass(frozen=True)
class Adapter:
    """down A [r, in], up B [out, r], which starts at zero, and the factor of their product."""

    down: nn.Parameter
    up: nn.Parameter
    scale: float

    def merged(self, weight: Tensor) -> Tensor:
        """weight + scale B A, computed in float64 and rounded once."""
        product = self.up.detach().double() @ self.down.detach().double()
        return (weight.detach().double() + self.scale * product).to(weight.dtype)


def attach(model: nn.Module, names: Iterable[str], rank: int, alpha: float, seed: int) -> dict[str, Adapter]:
    """An adapter for every matrix of a linear map or embedding among `names`, by name; tied ones share theirs.

    A starts from its name and the seed; scale is alpha / rank.
    """
    homes = _homes(model)
    found: dict[str, Adapter] = {}
    for name in sorted(names):
        weight = model.get_parameter(name)
        users = homes.get(id(weight), [])
        if not users:
            continue
        outside, inside = weight.shape
        down = started(f"{name}.down", (rank, inside), (0.0, inside**-0.5), seed).to(weight)
        up = torch.zeros(outside, rank, dtype=weight.dtype, device=weight.device)
        found[name] = Adapter(nn.Parameter(down), nn.Parameter(up), alpha / rank)
        for module in users:
            _hook(module, found[name])
    return found


def parameters(adapters: Mapping[str, Adapter]) -> dict[str, nn.Parameter]:
    """What trains, by name."""
    return {f"{name}.{part}": getattr(one, part) for name, one in adapters.items() for part in ("down", "up")}


def _homes(model: nn.Module) -> dict[int, list[nn.Module]]:
    """The linear maps and embeddings that a matrix belongs to: two where it is tied."""
    found: dict[int, list[nn.Module]] = {}
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            found.setdefault(id(module.weight), []).append(module)
    return found


def _hook(module: nn.Module, adapter: Adapter) -> None:
    def beside(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        (x,) = inputs
        if isinstance(module, nn.Embedding):
            return output + adapter.scale * (F.embedding(x, adapter.up) @ adapter.down).to(output.dtype)
        return output + adapter.scale * F.linear(F.linear(x, adapter.down), adapter.up)

    module.register_forward_hook(beside)
