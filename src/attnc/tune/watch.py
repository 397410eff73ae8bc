"""What full attention itself shows: which heads copy, and which layers look at the same keys."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from attnc.compiler.units import Unit
from attnc.tune.models import module_of
from attnc.tune.probes import joined, new_call, watching
from attnc.tune.samples import Sample

ROWS = 64
"""Queries, the last of a text, whose largest weights are compared between layers."""

See = Callable[[Tensor, Tensor, Tensor], None]


@torch.no_grad()
def watched(model: Any, units: Sequence[Unit], sample: Sample, see: Callable[[Unit], See]) -> None:
    """One pass in which every unit's blocks of weights are seen."""
    with ExitStack() as hooks:
        for unit in units:
            hooks.enter_context(watching(module_of(model, *unit.place), see(unit)))
        call, tokens = new_call(model, sample)
        model.model(tokens, call)


def retrieval(model: Any, units: Sequence[Unit], sample: Sample) -> dict[tuple[int, str], list[float]]:
    """For each unit and KV group the share of asked tokens that one of its heads copies: its largest weight lies on that token.

    The text goes on with the right answer, whatever the model would have said. A group's score is that of its best head.
    Source: Wu et al., "Retrieval head mechanistically explains long-context factuality" (arXiv 2404.15574).
    """
    best: dict[tuple[int, str], list[Tensor]] = {}

    def see(unit: Unit) -> See:
        return lambda _logits, _visible, made: best.setdefault(unit.place, []).append(made.argmax(-1))

    watched(model, units, sample, see)
    tokens = torch.tensor(sample.tokens)
    asked, targets = torch.tensor(sample.asked), torch.tensor(sample.targets)
    found = {}
    for unit in units:
        if unit.place in best:
            looks = joined([one[..., None] for one in best[unit.place]], len(tokens))[..., 0].cpu()[:, asked]
            copied = (tokens[looks] == targets).float().mean(1)
            found[unit.place] = copied.view(unit.kv_heads, -1).amax(1).tolist()
    return found


def similarity(
    model: Any, units: Sequence[Unit], sample: Sample, counts: Mapping[tuple[int, str], int]
) -> tuple[list[list[float]], list[float]]:
    """(how much of the largest weights of layer j layer i has too, [i][j] in the order of `units`; what each layer loses of its
    weight without the others).

    counts  of each unit, how many keys a query keeps
    Source: HyLRA (arXiv 2602.00777).
    """
    rows = min(ROWS, len(sample.tokens))
    blocks: dict[tuple[int, str], list[Tensor]] = {}

    def see(unit: Unit) -> See:
        return lambda _logits, _visible, made: blocks.setdefault(unit.place, []).append(made.float())

    tops, lost = [], []
    for unit in units:  # one at a time: a layer's weights are as many as the square of the length
        watched(model, [unit], sample, see)
        weights = joined(blocks.pop(unit.place), len(sample.tokens))[:, -rows:].sum(0)
        top = weights.topk(min(counts[unit.place], weights.shape[-1]), dim=-1)
        chosen = torch.zeros_like(weights, dtype=torch.bool).scatter_(1, top.indices, True)
        tops.append(chosen & (weights > 0))
        lost.append(float(1 - (weights * chosen).sum() / weights.sum()))
    table = [[float((one & other).sum() / other.sum().clamp_min(1)) for other in tops] for one in tops]
    return table, lost
