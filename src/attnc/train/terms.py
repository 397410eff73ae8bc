"""The terms of a loss: what the student says, and how far it is from a teacher's logits, layers and attention maps.

Legend: B examples; N tokens of each; V vocabulary; W width; H query heads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

NOT_ASKED = -100
"""The target where nothing is asked."""


def wide(x: Tensor) -> Tensor:
    """x in float32, or in float64 if it is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def asked_places(targets: Tensor) -> Tensor | None:
    """Of targets [B, N] the places that are asked, [P] of B * N; None where all are.

    Most tasks ask few: the logits of the others would be most of a small model's step.
    """
    places = (targets.flatten() != NOT_ASKED).nonzero().squeeze(1)
    return None if len(places) == targets.numel() else places


def language(logits: Tensor, targets: Tensor, asked: int) -> Tensor:
    """Cross entropy, the sum over asked targets [B, N] over `asked`, which counts those of the whole step.

    logits [B, N, V] of all places, or [P, V] of those that are asked.
    """
    if logits.dim() == 2:
        targets = targets[targets != NOT_ASKED]
    rows = wide(logits).flatten(0, -2)
    total = F.cross_entropy(rows, targets.flatten(), ignore_index=NOT_ASKED, reduction="sum")
    return total / max(1, asked)


def kl(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(teacher | student) of the next token's distributions, mean over all places; logits [B, N, V]."""
    ours, theirs = (F.log_softmax(wide(logits), dim=-1) for logits in (student, teacher))
    return (theirs.exp() * (theirs - ours)).sum(-1).mean()


def mse(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of the logits."""
    return (wide(student) - wide(teacher)).square().mean()


def hidden(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """Mean squared difference of the layers' outputs, mean over layers; each [T, W]."""
    return torch.stack([mse(*pair) for pair in zip(student, teacher, strict=True)]).mean()


def attention(student: Mapping[str, Tensor], teacher: Mapping[str, Tensor]) -> Tensor:
    """Squared difference of the attention maps, summed over keys, mean over queries, heads, then layers.

    Each map [H, queries, N]. A squared difference, because a divergence is infinite where the student sees no key.
    """
    return torch.stack([(student[name] - teacher[name]).square().sum(-1).mean() for name in sorted(student)]).mean()


def sparse_share(logits: Sequence[Tensor], sparse: Sequence[Sequence[int]], estimators: Sequence[str]) -> Tensor:
    """The mean share of sparse choices that routers make, with a gradient; logits [T, alternatives] of each.

    With Gumbel noise alternative a is chosen with probability softmax(logits)_a. `straight_through` takes the largest, with
    the softmax's gradient.
    """
    shares = []
    for one, alternatives, estimator in zip(logits, sparse, estimators, strict=True):
        soft = one.float().softmax(dim=-1)
        if estimator == "straight_through":
            soft = F.one_hot(soft.argmax(dim=-1), soft.shape[-1]) + soft - soft.detach()
        shares.append(soft[:, list(alternatives)].sum(-1).mean())
    return torch.stack(shares).mean()


DISTANCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"kl": kl, "mse": mse}
"""Those between logits."""
