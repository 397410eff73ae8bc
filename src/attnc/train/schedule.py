"""The learning rate: a straight rise, then half a cosine down to a tenth."""

from __future__ import annotations

import math

FLOOR = 0.1


def factor(step: int, steps: int, warmup: int) -> float:
    """By what the learning rate is multiplied in step 0 .. steps - 1."""
    if step < warmup:
        return (step + 1) / warmup
    rest = (step - warmup) / max(1, steps - warmup)
    return FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * rest))
