"""What of a built folder's fast weights is verified: results and gradients, and single steps, beside plain PyTorch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from types import ModuleType

import torch

from attnc.codegen.importing import import_folder
from attnc.codegen.verify.net_cases import Case, compared, expected
from attnc.codegen.verify.net_roundings import Draws, Errors
from attnc.codegen.verify.report import LIMIT, Row
from attnc.codegen.verify.step_cases import Steps
from attnc.codegen.verify.step_cases import compared as step_errors
from attnc.codegen.verify.step_cases import expected as steps_expected
from attnc.compiler.families import FastWeights
from attnc.runtime.fast_kernels import fast_kernels


@dataclass(frozen=True)
class NetSubject:
    """A kernel file, and the launches that run on it."""

    file: str
    module: ModuleType
    launches: tuple[str, ...]


def net_subjects(folder: Path) -> list[NetSubject]:
    """The kernel files of fast weights of a built folder; importing them needs triton."""
    package = import_folder(folder).__name__
    index = import_module(f"{package}.kernels")
    served: dict[str, list[str]] = {}
    for launch, names in getattr(index, "NETS", {}).items():
        index.kernel(launch)  # tuned blocks are put into the files' tables
        for name in filter(None, names):
            served.setdefault(name, []).append(launch)
    return [NetSubject(name, import_module(f"{package}.kernels.{name}"), tuple(own)) for name, own in served.items()]


def made_for(module: ModuleType) -> FastWeights:
    """What a kernel file was emitted for, from its constants; rates are gates of the token."""
    if hasattr(module, "RATES"):
        lr, momentum, decay = module.RATES
        return FastWeights(
            gated=module.MAPS == 3,
            depth=2 if module.MAPS == 2 else 1,
            hidden=0 if module.MAPS == 1 else module.UNITS,
            norm=module.NORM,
            residual=module.RESIDUAL,
            lr=lr,
            momentum=momentum,
            decay=decay,
            after_write=module.AFTER_WRITE,
            weight_norm=module.WEIGHT_NORM,
            key_width=module.KEY_WIDTH,
            value_width=module.VALUE_WIDTH,
        )
    hidden = getattr(module, "HIDDEN", 0)
    return FastWeights(
        depth=2 if hidden else 1,
        hidden=hidden,
        norm=module.NORM,
        residual=module.RESIDUAL,
        momentum="token" if module.MOMENTUM else "none",
        decay="token",
        weight_norm=bool(getattr(module, "WEIGHT_NORM", False)),
        key_width=module.KEY_WIDTH,
        value_width=module.VALUE_WIDTH,
    )


def step_classes(family: FastWeights, dtype: torch.dtype, device: str) -> dict[str, tuple[Steps, ...]]:
    """Single tokens, through the end of a chunk; chunks of one token."""
    few = Steps(family, dtype=dtype, device=device, count=4)
    if device == "cpu":
        return {"steps": (few,)}
    long = replace(few, chunk=64, begun=60, count=9, heads=4)
    return {"steps": (few, replace(few, chunk=1), long, replace(long, chunk=16, begun=14, count=20), replace(long, chunk=100))}


def classes(family: FastWeights, dtype: torch.dtype, device: str) -> dict[str, tuple[Case, ...]]:
    """The inputs of each class: sequences of none, one and many tokens, that begin and end within chunks."""
    base = Case(family, dtype=dtype, device=device, back=False)
    if device == "cpu":  # the interpreter takes a second for some programs
        one = replace(base, sizes=(12, 0, 5), pasts=(3, 0, 8))
        return {"random": (one,), "gradients": (replace(one, sizes=(17,), pasts=(2,), k_heads=2, back=True),)}
    uneven = replace(base, sizes=(700, 1, 0, 129), pasts=(5, 0, 0, 63), chunk=64, heads=4)
    several = (
        uneven,
        replace(uneven, chunk=16),
        replace(uneven, chunk=100, k_heads=4),
        replace(uneven, chunk=1, sizes=(9, 1, 0, 2)),
    )
    return {"random": several, "gradients": tuple(replace(case, back=True) for case in several)}


Trial = Case | Steps


def trials(module: ModuleType, dtype: torch.dtype, device: str) -> tuple[Trial, ...]:
    """What a kernel file is tried on where it is asked whether it is right: gradients, which come with results, or steps."""
    if hasattr(module, "RATES"):
        return step_classes(made_for(module), dtype, device)["steps"]
    return classes(made_for(module), dtype, device)["gradients"]


def expected_of(case: Trial) -> Draws:
    """What must come out, and how far off the measure is."""
    return steps_expected(case) if isinstance(case, Steps) else expected(case)


def _errors(case: Trial, module: ModuleType, wanted: Draws | None) -> Errors:
    if isinstance(case, Steps):
        return step_errors(case, module, wanted)
    return compared(case, fast_kernels(module), wanted)


def net_rows(subject: NetSubject, dtype: str, device: str, begin: Callable[[tuple[str, str, str]], bool]) -> Iterator[Row]:
    """A row for each class of inputs; `begin` hears of its key, and says whether it is to run."""
    found: Mapping[str, tuple[Case | Steps, ...]]
    found = (step_classes if hasattr(subject.module, "RATES") else classes)(
        made_for(subject.module), getattr(torch, dtype), device
    )
    for name, several in found.items():
        if not begin((subject.file, dtype, name)):
            continue
        worst, error, theirs, reason = -1.0, 0.0, 0.0, ""
        for case in several:
            one, *numbers, wrong = judged(case, subject.module)
            if one > worst:
                worst, (error, theirs), reason = one, numbers, wrong
        yield Row(
            kernel=subject.file,
            dtype=dtype,
            inputs=name,
            cases=len(several),
            error=error if math.isfinite(error) else None,
            torch_error=theirs,
            allowed=LIMIT * theirs,
            verdict="wrong" if reason else "right",
            reason=reason,
        )


def judged(case: Trial, module: ModuleType, wanted: Draws | None = None) -> tuple[float, float, float, str]:
    """(times PyTorch's error, error, PyTorch's, what is wrong or nothing), of the result that is worst."""
    try:
        errors = _errors(case, module, wanted)
    except Exception as problem:
        first = next((line.strip() for line in str(problem).splitlines() if line.strip()), "no message")
        return math.inf, math.nan, 0.0, f"{type(problem).__name__}: {first[:200]}"

    def times(pair: tuple[float, float]) -> float:
        return 0.0 if pair[0] == 0 else pair[0] / pair[1] if pair[0] == pair[0] and pair[1] else math.inf

    name, pair = max(errors.items(), key=lambda item: times(item[1]))
    tokens = case.count if isinstance(case, Steps) else case.sizes
    wrong = f"chunks of {case.chunk}, {tokens} tokens: {name} is off by {pair[0]:.3g}, PyTorch's by {pair[1]:.3g}"
    return times(pair), *pair, "" if times(pair) <= LIMIT else wrong
