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


# echo.attn:5  full
def visible_0(i: Any, j: Any, length: int) -> Any:
    """full: which keys each query sees, [Nq, Nk]."""
    return full_mask(i, j, causal=True)
