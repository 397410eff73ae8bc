"""What of a built folder's fast weights is verified: results and gradients of every kernel file, beside plain PyTorch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from types import ModuleType

import torch

from attnc.codegen.importing import import_folder
from attnc.codegen.verify.net_cases import Case, compared
from attnc.codegen.verify.report import LIMIT, Row
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
    for launch, name in getattr(index, "NETS", {}).items():
        index.kernel(launch)  # tuned blocks are put into the file's table
        served.setdefault(name, []).append(launch)
    return [NetSubject(name, import_module(f"{package}.kernels.{name}"), tuple(own)) for name, own in served.items()]


def made_for(module: ModuleType) -> FastWeights:
    """What a kernel file was emitted for, from its constants; rates are gates of the token."""
    hidden = getattr(module, "HIDDEN", 0)
    return FastWeights(
        depth=2 if hidden else 1,
        hidden=hidden,
        norm=module.NORM,
        residual=module.RESIDUAL,
        momentum="token" if module.MOMENTUM else "none",
        decay="token",
        key_width=module.KEY_WIDTH,
        value_width=module.VALUE_WIDTH,
    )


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


def net_rows(subject: NetSubject, dtype: str, device: str, begin: Callable[[tuple[str, str, str]], bool]) -> Iterator[Row]:
    """A row for each class of inputs; `begin` hears of its key, and says whether it is to run."""
    for name, several in classes(made_for(subject.module), getattr(torch, dtype), device).items():
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


def judged(case: Case, module: ModuleType) -> tuple[float, float, float, str]:
    """(times PyTorch's error, error, PyTorch's, what is wrong or nothing), of the result that is worst."""
    try:
        errors = compared(case, fast_kernels(module))
    except Exception as problem:
        first = next((line.strip() for line in str(problem).splitlines() if line.strip()), "no message")
        return math.inf, math.nan, 0.0, f"{type(problem).__name__}: {first[:200]}"

    def times(pair: tuple[float, float]) -> float:
        return 0.0 if pair[0] == 0 else pair[0] / pair[1] if pair[0] == pair[0] and pair[1] else math.inf

    name, pair = max(errors.items(), key=lambda item: times(item[1]))
    wrong = f"chunks of {case.chunk}, {case.sizes} tokens: {name} is off by {pair[0]:.3g}, PyTorch's by {pair[1]:.3g}"
    return times(pair), *pair, "" if times(pair) <= LIMIT else wrong
