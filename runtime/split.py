"""Some heads of a launch by one provider, some by another: each sees its own heads, the outputs stand side by side.

Legend: T new tokens; H query heads, G KV heads; D key width; E value width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

import torch
from torch import Tensor

from .batch import Batch
from .intervals import Form, HeadGroup, HeadGroups
from .keys import KeyPart
from .softmax import Provider


def split(runs: Sequence[tuple[int, int, Provider]]) -> Provider:
    """The provider of a launch whose KV heads first..last (both included) go to `runs`, which cover them in order."""

    def attend_split(
        q: Tensor,
        parts: tuple[KeyPart, ...],
        groups: tuple[HeadGroup, ...],
        form: Form,
        batch: Batch,
        scale: float | Tensor,
        cap: float | None = None,
        sink_logit: Tensor | None = None,
    ) -> Tensor:
        repeat = q.shape[1] // (groups[-1].last + 1)
        part_of = of_heads if torch.compiler.is_compiling() else _kept
        outputs = []
        for first, last, provider in runs:
            heads = slice(first * repeat, (last + 1) * repeat)
            factor = scale[heads] if isinstance(scale, Tensor) and scale.dim() else scale
            sink = None if sink_logit is None else sink_logit[heads]
            some = tuple(part.heads(first, last) for part in parts)
            outputs.append(provider(q[:, heads], some, part_of(groups, first, last), form, batch, factor, cap, sink))
        return torch.cat(outputs, dim=1)

    return attend_split


def of_heads(groups: tuple[HeadGroup, ...], first: int, last: int) -> tuple[HeadGroup, ...]:
    """What KV heads first..last see, counted from 0."""
    return HeadGroups(
        replace(group, first=max(group.first, first) - first, last=min(group.last, last) - first)
        for group in groups
        if group.first <= last and first <= group.last
    )


_kept = lru_cache(maxsize=256)(of_heads)
"""`of_heads`, whose results keep their rows of numbers."""
