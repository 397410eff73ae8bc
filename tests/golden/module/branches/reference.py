"""What this model means: masks and formulas in plain PyTorch, any dtype, any device, as slow as they are obvious.

Legend: i query positions [Nq, 1], j key positions [1, Nk] (negative for learned keys, which have none), length the number of
tokens that shares of the length are of.
"""

from __future__ import annotations

from typing import Any


def share(percent: float, length: int) -> int:
    """`percent` of `length` tokens, rounded down, at least 1."""
    return max(1, int(length * percent / 100))


def gated_convolution(given: Any, conv: Any, state: Any = None) -> tuple[Any, Any]:
    """y = C * conv(B * u), of B, C and u side by side.

    given [tokens, 3 inner] of one sequence; conv [inner, n], its last column weighs the newest token. `state` [n - 1, inner]
    holds the last n - 1 values of B * u, zeros at the start. Returns y [tokens, inner] and the new state.
    """
    import torch

    before, after, u = given.chunk(3, dim=-1)
    n = conv.shape[1]
    gated = before * u
    if state is None:
        state = gated.new_zeros(n - 1, gated.shape[1])
    history = torch.cat((state, gated))
    tokens = len(gated)
    mixed = torch.zeros_like(gated)
    for tap in range(n):
        mixed = mixed + history[tap : tap + tokens] * conv[:, tap]
    return after * mixed, history[tokens:]


def full_mask(i: Any, j: Any, *, causal: bool) -> Any:
    """Query i sees key j: every key up to its own, or all."""
    import torch

    return j <= i if causal else torch.ones_like(i - j, dtype=torch.bool)


def window_mask(i: Any, j: Any, *, causal: bool, n: int, aligned: int) -> Any:
    """Query i sees key j: fewer than n/aligned blocks of `aligned` tokens back, and in both directions unless causal."""
    near = (i // aligned - j // aligned).abs() < n // aligned
    return near & (j <= i) if causal else near


# branches.attn:5  full
def visible_0(i: Any, j: Any, length: int) -> Any:
    """full: which keys each query sees, [Nq, Nk]."""
    return full_mask(i, j, causal=True)


# branches.attn:6  window(4)
def visible_1(i: Any, j: Any, length: int) -> Any:
    """window: which keys each query sees, [Nq, Nk]."""
    return window_mask(i, j, causal=True, n=4, aligned=1)
