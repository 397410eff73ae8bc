"""What launches of matrix states take and give; compiler/families.py says what such a launch computes.

Legend: T new tokens of S sequences, packed; H heads with a state each; Q heads of q and k, R heads of v, each repeated for
neighbouring states (H is a multiple of both); K key width; V value width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from .batch import Batch


@dataclass(frozen=True, eq=False)
class Steps:
    """What every token brings.

    q      [T, Q, K]
    k      [T, any divisor of H, K]
    v      [T, R, V]
    decay  None, or logarithms in fp32 (in float64 where the rest is): [H] for all tokens, [T, H] or [T, H, K]; none above 0
    erase  None, or strengths of the delta rule: [T, H] or [T, H, K]
    write  None, or strengths of the delta rule: [T, H] or [T, H, V]; given where `erase` is
    heads  H
    scale  what outputs are multiplied by
    normalize  whether outputs are divided by the sum of their weights instead
    """

    q: Tensor
    k: Tensor
    v: Tensor
    decay: Tensor | None
    erase: Tensor | None
    write: Tensor | None
    heads: int
    scale: float
    normalize: bool = False


@dataclass(frozen=True, eq=False)
class States:
    """A state of every sequence and head, in fp32 (float64 where q is): matrix [S, H, K, V]; sum of keys [S, H, K], or None."""

    matrix: Tensor
    sum: Tensor | None = None


Scan = Callable[[Steps, States | None, Batch], tuple[Tensor, States]]
"""A provider: (what tokens bring, states before them or None for zeros, where sequences lie) -> (o [T, H, V], states after).

A sequence without new tokens keeps its state. Gradients reach every tensor of `Steps` and the states before, from the outputs
and from the states after.
"""
