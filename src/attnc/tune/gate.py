"""`trained_gate`: a number for each KV group between its two alternatives, learned while all weights stay.

Source: DuoAttention (arXiv 2410.10819).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from attnc.compiler.tuning import TrainedGate
from attnc.compiler.units import Unit
from attnc.tune.models import module_of
from attnc.tune.probes import hook, new_call, read
from attnc.tune.samples import Sample

LR, WARM, FLOOR = 0.02, 0.2, 0.1
"""The highest learning rate; the share of steps in which it rises, and falls at the end, to a tenth."""


def trained(
    kept: Any,
    dropped: Any,
    units: Sequence[Unit],
    samples: Sequence[Sample],
    method: TrainedGate,
    steps: int,
    said: Callable[[int], None],
) -> dict[tuple[int, str], list[float]]:
    """For each unit and KV group how much it needs its first alternative, 0..1.

    Each step reads one text twice: with the first alternative everywhere, and with alpha of it and 1 - alpha of the second; the
    mean square between the last hidden states where an answer is asked, and `l1` times the mean of alpha, are made smaller.

    kept, dropped  models with the first and the second alternative in all units
    """
    weight: Tensor = kept.model.embed_tokens.weight
    alphas = {unit.place: torch.ones(unit.kv_heads, device=weight.device, requires_grad=True) for unit in units}
    optimizer = torch.optim.AdamW(alphas.values(), lr=LR, weight_decay=0.0)
    for step in range(steps):
        sample = samples[step % len(samples)]
        asked = torch.tensor(sample.asked, device=weight.device)
        with torch.no_grad():
            wanted = read(kept, (), sample).hidden[asked]
        for group in optimizer.param_groups:
            group["lr"] = LR * rate(step, steps)
        hidden = mixed(kept, dropped, units, sample, alphas)[asked]
        loss = (hidden.float() - wanted.float()).square().mean()
        loss = loss + method.l1 * torch.cat(list(alphas.values())).abs().mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        with torch.no_grad():
            for alpha in alphas.values():
                alpha.clamp_(0, 1)
        said(step + 1)
    return {place: alpha.detach().tolist() for place, alpha in alphas.items()}


def rate(step: int, steps: int) -> float:
    """The share of the learning rate in a step."""
    warm = max(1, round(WARM * steps))
    rise, fall = (step + 1) / warm, (steps - step) / warm
    return max(FLOOR, min(1.0, rise, fall))


def mixed(kept: Any, dropped: Any, units: Sequence[Unit], sample: Sample, alphas: dict[tuple[int, str], Tensor]) -> Tensor:
    """The last hidden state [T, W] where each group has alpha of its first alternative and the rest of its second."""
    other_call, _ = new_call(dropped, sample)
    call, tokens = new_call(kept, sample)
    with ExitStack() as hooks:
        for unit in units:
            module, other = module_of(kept, *unit.place), module_of(dropped, *unit.place)
            seen: list[Tensor] = []
            hooks.enter_context(hook(module, before=_beside(other, other_call, seen)))
            hooks.enter_context(hook(module.get_submodule("o_proj"), before=_joining(seen, alphas[unit.place])))
        hidden: Tensor = kept.model(tokens, call)
    return hidden


def _beside(other: Any, call: Any, seen: list[Tensor]) -> Callable[[Tensor], None]:
    """Runs the other part on the same input, and keeps what it has before its o_proj."""

    def run(x: Tensor) -> None:
        with hook(other.get_submodule("o_proj"), before=seen.append):
            other(x, call)

    return run


def _joining(seen: list[Tensor], alpha: Tensor) -> Callable[[Tensor], Tensor]:
    """[T, heads * E] by KV groups."""

    def join(one: Tensor) -> Tensor:
        share = alpha.to(one.dtype).repeat_interleave(one.shape[-1] // len(alpha))
        return share * one + (1 - share) * seen.pop()

    return join
