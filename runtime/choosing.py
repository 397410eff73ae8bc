"""Who runs a launch here: what was planned, or where that is missing the next candidate of the plan, said on stderr."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence

import torch

from .attention_fa4 import ARCHITECTURES

Planned = str | tuple[tuple[str, int, int], ...]
"""A provider's name, or for a launch that is split (name, first, last) of each run of its KV heads."""

Candidates = Mapping[str, Mapping[str, Sequence[Planned]]]
"""launch -> phase -> who can run it, cheapest first, as plan.json has it."""


def lacking(name: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why a provider cannot run here, whatever the launch; None where it can."""
    match name:
        case "gluon":
            return _gluon_lacks(device, dtype)
        case "flex":
            return _flex_lacks(device, dtype)
        case "fa4":
            return _fa4_lacks(device, dtype)
        case "fla":
            return _fla_lacks(device, dtype)
        case _:
            return None


def _gluon_lacks(device: torch.device, dtype: torch.dtype) -> str | None:
    if device.type != "cuda" or torch.version.hip or torch.cuda.get_device_capability(device) != (9, 0):
        return "the kernels in Gluon need a GPU of compute capability 9.0"
    if dtype not in (torch.bfloat16, torch.float16):
        return f"the kernels in Gluon do not take {_word(dtype)}"
    return None


def _flex_lacks(device: torch.device, dtype: torch.dtype) -> str | None:
    if device.type != "cuda":
        return "flex_attention's kernels need a GPU"
    if importlib.util.find_spec("triton") is None:
        return "flex_attention needs triton, which is not installed"
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"flex_attention does not take {_word(dtype)}"
    return None


def _fa4_lacks(device: torch.device, dtype: torch.dtype) -> str | None:
    if importlib.util.find_spec("flash_attn") is None or importlib.util.find_spec("flash_attn.cute") is None:
        return "flash-attn-4 is not installed"
    if device.type != "cuda" or torch.cuda.get_device_capability(device) not in ARCHITECTURES:
        return "flash-attn-4 needs a GPU of compute capability 9.0 or 10.0"
    if dtype not in (torch.bfloat16, torch.float16):
        return f"flash-attn-4 does not take {_word(dtype)}"
    return None


def _fla_lacks(device: torch.device, dtype: torch.dtype) -> str | None:
    if importlib.util.find_spec("fla") is None:
        return "flash-linear-attention is not installed"
    if device.type != "cuda":
        return "flash-linear-attention's kernels need a GPU"
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"flash-linear-attention does not take {_word(dtype)}"
    return None


def names(planned: Planned) -> tuple[str, ...]:
    """The providers that a planned way needs."""
    return (planned,) if isinstance(planned, str) else tuple(name for name, _, _ in planned)


def present(
    candidates: Sequence[Planned], lacks: Callable[[str], str | None]
) -> tuple[Planned, tuple[tuple[Planned, str], ...]]:
    """The first candidate that lacks nothing, and those before it with what they lack. The last one always can."""
    passed: list[tuple[Planned, str]] = []
    for candidate in candidates:
        reasons = [reason for name in names(candidate) if (reason := lacks(name)) is not None]
        if not reasons:
            return candidate, tuple(passed)
        passed.append((candidate, reasons[0]))
    raise AssertionError("the reference lacks nothing")


def say(decisions: Sequence[tuple[str, str, str, Planned, Planned]]) -> None:
    """One line on stderr for each (phase, reason, planned, instead) of (launch, phase, reason, planned, instead)."""
    launches: dict[tuple[str, str, str, str], list[str]] = {}
    for launch, phase, reason, planned, instead in decisions:
        launches.setdefault((phase, reason, way_text(planned), way_text(instead)), []).append(launch)
    for (phase, reason, planned, instead), found in launches.items():
        sys.stderr.write(f"note: {', '.join(dict.fromkeys(found))} in {phase}: {instead} instead of {planned}; {reason}\n")


def way_text(planned: Planned) -> str:
    """`triton`, or `torch on kv heads 0..1 and triton on 2..7`."""
    if isinstance(planned, str):
        return planned
    runs = [f"{name} on {first}..{last}" for name, first, last in planned]
    return " and ".join([runs[0].replace(" on ", " on kv heads "), *runs[1:]])


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
