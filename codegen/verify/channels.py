"""The kernels of channel states beside plain torch: outputs, states and gradients, against plain torch in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from attnc.codegen.importing import import_folder
from attnc.codegen.verify.report import LIMIT, Row
from attnc.runtime.batch import Batch
from attnc.runtime.channel_kernels import channel_kernels
from attnc.runtime.channels import Channels, ChannelScan
from attnc.runtime.channels_torch import torch_channels

Results = list[Tensor]

FEW = 16384
"""Outputs of which one draw says enough of rounding."""


@dataclass(frozen=True)
class ChannelSubject:
    """A kernel file, and the launches that run on it."""

    file: str
    module: ModuleType
    launches: tuple[str, ...]
    skeleton: str = "channel_scan"


@dataclass(frozen=True)
class ChannelCase:
    """Inputs: new tokens of each sequence, channels, what the steps are, and whether numbers are whole ones."""

    sizes: tuple[int, ...]
    channels: int
    step: float | None = None
    whole: bool = False
    gradients: bool = False
    seed: int = 0


def channel_subjects(folder: Path) -> list[ChannelSubject]:
    """The kernel files of channel states of a built folder; importing them needs triton."""
    package = import_folder(folder).__name__
    served: dict[str, list[str]] = {}
    for launch, name in getattr(import_module(f"{package}.kernels"), "CHANNELS", {}).items():
        served.setdefault(name, []).append(launch)
    return [
        ChannelSubject(name, import_module(f"{package}.kernels.{name}"), tuple(launches)) for name, launches in served.items()
    ]


def classes(longest: int, channels: int) -> dict[str, tuple[ChannelCase, ...]]:
    """The inputs of each class, up to so many tokens of a sequence."""
    uneven = (longest, 0, 1, longest // 2 + 1)
    return {
        "random": (ChannelCase(uneven, channels), ChannelCase((1, 1, 1), channels, seed=1)),
        "strong steps": (ChannelCase(uneven, channels, step=60.0),),
        "whole numbers": (ChannelCase(uneven, channels, step=0.0, whole=True),),
        "gradients": (ChannelCase(uneven, channels, gradients=True), ChannelCase((longest,), channels, None, False, True, 1)),
    }


def channel_rows(
    subject: ChannelSubject, dtype: str, device: str, longest: int, begin: Callable[[tuple[str, str, str]], bool]
) -> Iterator[Row]:
    """A row for each class of inputs; `begin` hears of its key, and says whether it is to run."""
    state, parts = subject.module.STATE, subject.module.PARTS
    kernel = channel_kernels(subject.module)
    for name, several in classes(longest, 5 if device == "cpu" else 70).items():
        key = (subject.file, dtype, name)
        if begin(key):
            verdicts = [judged(case, kernel, state, parts, getattr(torch, dtype), device) for case in several]
            error, theirs, wrong = max(verdicts, key=lambda one: (bool(one[2]), one[0]))
            yield Row(
                kernel=subject.file,
                dtype=dtype,
                inputs=name,
                cases=len(several),
                error=error if error == error else None,  # noqa: PLR0124 (NaN)
                torch_error=theirs,
                allowed=LIMIT * theirs,
                verdict="wrong" if wrong else "right",
                reason=wrong,
            )


def judged(
    case: ChannelCase, kernel: ChannelScan, state: int, parts: tuple[bool, ...], dtype: torch.dtype, device: str
) -> tuple[float, float, str]:
    """(error, plain torch's in fp32, what is wrong or nothing); errors as `distance` has them.

    Of few numbers plain torch's is the worst of several draws of the case: luck of one draw is not what is asked.
    """
    numbers = sum(case.sizes) * case.channels
    error, torch_error = apart(case, kernel, state, parts, dtype, device), 0.0
    for draw in range(1 if numbers >= FEW else 8):
        other = replace(case, seed=case.seed + draw)
        torch_error = max(torch_error, apart(other, torch_channels, state, parts, dtype, device))
    if case.whole:
        return error, torch_error, "" if error == 0 else f"whole numbers are off by {error:.3g}"
    wrong = "" if error <= LIMIT * torch_error else f"{case}: error {error:.3g}, PyTorch's {torch_error:.3g}"
    return error, torch_error, wrong


def apart(case: ChannelCase, run: ChannelScan, state: int, parts: tuple[bool, ...], dtype: torch.dtype, device: str) -> float:
    """How far a provider is from plain torch in float64."""
    exact, before, batch = inputs(case, state, parts, dtype, device)
    want = results(torch_channels, exact, before, batch, case.gradients)
    return distance(results(run, narrowed(exact, dtype), before.float(), batch, case.gradients), want)


def inputs(
    case: ChannelCase, state: int, parts: tuple[bool, ...], dtype: torch.dtype, device: str
) -> tuple[Channels, Tensor, Batch]:
    """Float64 tensors whose numbers kernels can be given, states before, and where sequences lie."""
    draw = torch.Generator().manual_seed(case.seed)
    tokens = sum(case.sizes)

    def numbers(*shape: int) -> Tensor:
        if case.whole:
            return torch.randint(-3, 4, shape, generator=draw).double()
        return torch.randn(shape, generator=draw, dtype=torch.float64).to(dtype).double()

    step = torch.nn.functional.softplus(numbers(tokens, case.channels)).float().double()
    if case.step is not None:
        step = torch.full_like(step, case.step)
    rates = -torch.exp(torch.randn(case.channels, state, generator=draw)).double()
    if case.whole and not parts[0]:
        rates = torch.zeros_like(rates)
    given = {"u": numbers(tokens, case.channels), "rates": rates, "step": step, "write": numbers(tokens, state)}
    given |= {"read": numbers(tokens, state), "weights": numbers(case.channels, state)}
    there = dict(zip(("step", "write", "read", "weights"), parts, strict=True))
    kept = {name: x.to(device) for name, x in given.items() if there.get(name, True)}
    bounds = [0, *torch.tensor(case.sizes).cumsum(0).tolist()]
    _, batch = Batch.of(torch.zeros(1, tokens, dtype=torch.int64, device=device), offsets=bounds)
    before = numbers(len(case.sizes), case.channels, state).to(device)
    return Channels(**kept), before, batch


def narrowed(given: Channels, dtype: torch.dtype) -> Channels:
    """As layers give them: what all channels share in the model's dtype, the rest in fp32."""
    parts = {field.name: getattr(given, field.name) for field in fields(given)}
    formats = {"write": dtype, "read": dtype}
    narrow: dict[str, Any] = {name: None if x is None else x.to(formats.get(name, torch.float32)) for name, x in parts.items()}
    return Channels(**narrow)


def results(run: ChannelScan, given: Channels, before: Tensor, batch: Batch, gradients: bool) -> Results:
    """Outputs and states; with `gradients` those of a random sum of them instead."""
    if not gradients:
        return list(run(given, before, batch))
    asked = {field.name: getattr(given, field.name) for field in fields(given)}
    asked = {name: x.detach().requires_grad_() for name, x in asked.items() if x is not None}
    before = before.detach().requires_grad_()
    y, after = run(replace(given, **asked), before, batch)
    draw = torch.Generator().manual_seed(7)
    total = torch.stack([(x * torch.randn(x.shape, generator=draw).to(x)).sum() for x in (y, after)]).sum()
    return list(torch.autograd.grad(total, [*asked.values(), before]))


def distance(found: Results, want: Results) -> float:
    """The root of the mean square of all errors, each tensor's in units of its largest number."""
    errors = [
        ((one.double() - true) / true.abs().max().clamp(min=1e-30)).flatten() for one, true in zip(found, want, strict=True)
    ]
    return float(torch.cat(errors).square().mean().sqrt())
