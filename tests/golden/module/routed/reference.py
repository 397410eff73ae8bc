"""What this model means: masks and formulas in plain PyTorch, any dtype, any device, as slow as they are obvious.

Legend: i query positions [Nq, 1], j key positions [1, Nk] (negative for learned keys, which have none), length the number of
tokens that shares of the length are of.
"""

from __future__ import annotations

from typing import Any


def share(percent: float, length: int) -> int:
    """`percent` of `length` tokens, rounded down, at least 1."""
    return max(1, int(length * percent / 100))


def full_mask(i: Any, j: Any, *, causal: bool) -> Any:
    """Query i sees key j: every key up to its own, or all."""
    import torch

    return j <= i if causal else torch.ones_like(i - j, dtype=torch.bool)


def window_mask(i: Any, j: Any, *, causal: bool, n: int, aligned: int) -> Any:
    """Query i sees key j: fewer than n/aligned blocks of `aligned` tokens back, and in both directions unless causal."""
    near = (i // aligned - j // aligned).abs() < n // aligned
    return near & (j <= i) if causal else near


def visible_0(i: Any, j: Any, length: int) -> Any:
    """full: which keys each query sees, [Nq, Nk]."""
    return full_mask(i, j, causal=True)


def visible_1(i: Any, j: Any, length: int) -> Any:
    """window: which keys each query sees, [Nq, Nk]."""
    return window_mask(i, j, causal=True, n=4, aligned=1)
