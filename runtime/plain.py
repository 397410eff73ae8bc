"""Launches that plain PyTorch runs: what the class of each has in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from .storage import LayerCache


class PlainLaunch:
    """A launch with two providers, `torch` and `reference`. `providers`: who runs it in each phase, set by `BuiltModel.use`."""

    causal = True
    followed: tuple[str, ...] = ()
    """Parameters of the module that holds it which averages move."""
    adds: tuple[str, ...] = ()
    """Names of losses that it adds while training."""

    def __init__(self, name: str, ways: dict[str, Callable[..., Any]]) -> None:
        self.name, self.ways = name, ways
        self.providers: dict[str, Callable[..., Any]] = {}

    @property
    def reference(self) -> Callable[..., Any]:
        """The way of the formula."""
        return self.ways["reference"]

    def prepare(self, device: torch.device) -> None:
        """Nothing is made ahead."""

    def follow(self, holder: nn.Module) -> None:
        """Moves what averages move of the module that holds the launch: nothing."""


def check_cache(cache: LayerCache, states: Mapping[str, tuple[int, ...]], stored: tuple[int, int, int] | None = None) -> None:
    """Raises ValueError unless the cache keeps these states, and keys of `stored` (heads, key width, value width) if any."""
    kept = {name: tuple(state.shape[1:]) for name, state in cache.states.items()}
    heads = sum(band.last - band.first + 1 for band in cache.bands)
    slots = (heads, cache.k_width, cache.plan.value_width) if heads else None
    if kept != dict(states) or slots != stored:
        wanted = f"states {dict(states)} and keys {stored}"
        raise ValueError(f"the cache is of another model: this one keeps {wanted}, it has {kept} and {slots}")
