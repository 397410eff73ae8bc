"""Channel states by their sums written out: what the formula, plain torch and kernels are compared with.

y_t = Re sum over m, j <= t of weights[m] read_t[m] exp(rates[m] (step_{j+1} + ... + step_t)) write_j[m] u_j, beside what is
left of the state.
"""

from __future__ import annotations

from dataclasses import fields

import torch

from attnc.runtime.batch import Batch
from attnc.runtime.channels import Channels

MEMBERS = {
    "steps and maps of the token": ("step", "write", "read"),
    "gates alone": ("step",),
    "fixed and complex": ("weights", "complex"),
    "everything": ("step", "write", "read", "weights"),
}
"""Which parts are there; the first three are Mamba, HGRN and S4D."""


def given(
    member: str, tokens: int, channels: int, state: int, dtype=torch.float64, seed: int = 0, strength: float = 1.0
) -> Channels:
    """Random tensors, all asking for gradients; steps are positive, rates negative."""
    parts = MEMBERS[member]
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=draw, dtype=torch.float64)

    numbers = {
        "u": normal(tokens, channels),
        "step": torch.nn.functional.softplus(normal(tokens, channels)) * strength if "step" in parts else None,
        "rates": -torch.exp(normal(channels, state)),
        "write": normal(tokens, state) if "write" in parts else None,
        "read": normal(tokens, state) if "read" in parts else None,
        "weights": normal(channels, state) if "weights" in parts else None,
    }
    if "complex" in parts:
        numbers["rates"] = torch.complex(numbers["rates"], normal(channels, state))
        numbers["weights"] = torch.complex(numbers["weights"], normal(channels, state))
    return Channels(**{name: None if x is None else ask(x, dtype) for name, x in numbers.items()})


def ask(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    wanted = torch.complex(*torch.zeros(2, dtype=dtype)).dtype if x.is_complex() else dtype
    return x.to(wanted).requires_grad_()


def leaves(one: Channels) -> list[torch.Tensor]:
    return [getattr(one, field.name) for field in fields(one) if getattr(one, field.name) is not None]


def narrowed(one: Channels, dtype: torch.dtype) -> Channels:
    """The same numbers in another dtype, apart from the others' gradients."""
    parts = {field.name: getattr(one, field.name) for field in fields(one)}
    return Channels(**{name: None if x is None else ask(x.detach(), dtype) for name, x in parts.items()})


def packed(sizes: tuple[int, ...]) -> Batch:
    total = sum(sizes)
    bounds = [0, *torch.tensor(sizes).cumsum(0).tolist()]
    return Batch.of(torch.zeros(1, total, dtype=torch.int64), offsets=bounds)[1]


def written_out(one: Channels, before: torch.Tensor | None, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """(y [T, C], states [S, C, M]) by sums over pairs of tokens."""
    outputs, states, begin = [], [], 0
    for s, size in enumerate(batch.sizes):
        own = slice(begin, begin + size)
        begin += size
        step = torch.ones_like(one.u[own]) if one.step is None else one.step[own]
        past = step.cumsum(0)  # [n, C]
        span = past[:, None] - past[None]  # [t, j, C]
        seen = torch.ones(size, size, dtype=torch.bool).tril()
        powers = torch.exp(torch.where(seen[:, :, None], span, 0).unsqueeze(-1) * one.rates) * seen[:, :, None, None]
        brought = one.u[own].unsqueeze(-1) * (1 if one.write is None else one.write[own].unsqueeze(1))
        h = torch.einsum("tjcm,jcm->tcm", powers, brought.expand(size, *one.rates.shape).to(powers.dtype))
        first = torch.zeros_like(one.rates) if before is None else before[s]
        h = h + torch.exp(past.unsqueeze(-1) * one.rates) * first
        states.append(h[-1] if size else first)
        read = h * (1 if one.read is None else one.read[own].unsqueeze(1)) * (1 if one.weights is None else one.weights)
        outputs.append(read.sum(-1).real if read.is_complex() else read.sum(-1))
    return torch.cat(outputs), torch.stack(states)


def with_gradients(
    scan, one: Channels, before: torch.Tensor | None, batch: Batch, seed: int = 1
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """([y, states], gradients of a random sum of them in every tensor given)."""
    y, states = scan(one, before, batch)
    draw = torch.Generator().manual_seed(seed)
    weigh = [
        torch.randn(x.shape, generator=draw, dtype=torch.float64)
        for x in (y, torch.view_as_real(states) if states.is_complex() else states)
    ]
    real = torch.view_as_real(states) if states.is_complex() else states
    total = (y * weigh[0].to(y.dtype)).sum() + (real * weigh[1].to(real.dtype)).sum()
    asked = leaves(one) + ([] if before is None else [before])
    return [y.detach(), states.detach()], list(torch.autograd.grad(total, asked))
