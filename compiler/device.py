"""Facts about devices: one file each in compiler/devices, and those that `attnc calibrate` measured, which come first."""

from __future__ import annotations

import math
import os
import tomllib
from dataclasses import replace
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from attnc.compiler.data import from_data
from attnc.compiler.value import Value
from attnc.dsl.diagnostic import Diagnostic, SpecError
from attnc.dsl.source import Source, Span

PORTABLE = "h100"
"""The table for a GPU that has none of its own; where a measured table lacks a provider, this one's is taken."""

SCHEMA_VERSION = 1


class Device(Value):
    """Peaks in units per second, memory in bytes, seconds per launch, the share of the peak that each provider reaches."""

    schema_version: int = SCHEMA_VERSION
    name: str
    title: str
    architecture: str
    matrix_flops: float
    vector_flops: float
    bandwidth: float
    exponentials: float
    memory: float
    launch: float
    efficiency: dict[str, dict[str, float]]

    @property
    def is_gpu(self) -> bool:
        """Whether generated kernels can run here."""
        return self.architecture != "cpu"


def device_names() -> tuple[str, ...]:
    """Every device that has a table, shipped or measured."""
    return tuple(sorted({*shipped_names(), *(path.stem for path in measured())}))


def device(name: str) -> Device:
    """The table of one of `device_names()`; the measured one where there are two. Raises SpecError A519 for a damaged one."""
    path = measured_folder() / f"{name}.toml"
    if not path.is_file():
        return shipped(name)
    return read(path)


def device_of(title: str) -> str | None:
    """The device whose table is that of the GPU that calls itself so: measured under this title, or named in it."""
    own = [path.stem for path in measured() if read(path).title == title]
    words = title.lower().replace("-", " ").split()
    return next(iter([*own, *(name for name in device_names() if name in words)]), None)


@cache
def shipped_names() -> tuple[str, ...]:
    """The devices whose tables come with attnc."""
    files = resources.files("attnc.compiler").joinpath("devices").iterdir()
    return tuple(sorted(file.name.removesuffix(".toml") for file in files if file.name.endswith(".toml")))


@cache
def shipped(name: str) -> Device:
    """The table that comes with attnc."""
    text = resources.files("attnc.compiler").joinpath("devices", f"{name}.toml").read_text("utf-8")
    return from_data(Device, tomllib.loads(text))


def measured_folder() -> Path:
    """Where `attnc calibrate` writes: ATTNC_CONFIG_DIR, or the user's folder for settings."""
    told = os.environ.get("ATTNC_CONFIG_DIR")
    if told:
        return Path(told) / "devices"
    from platformdirs import user_config_path

    return user_config_path("attnc") / "devices"


def measured() -> tuple[Path, ...]:
    """The measured tables."""
    folder = measured_folder()
    return tuple(sorted(folder.glob("*.toml"))) if folder.is_dir() else ()


def read(path: Path) -> Device:
    """A measured table. Shares that it lacks are those of the shipped one. Raises SpecError A519."""
    try:
        data = tomllib.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as problem:
        raise _damaged(path, f"it cannot be read: {problem}") from problem
    if (version := data.get("schema_version", SCHEMA_VERSION)) != SCHEMA_VERSION:
        raise _damaged(path, f"its schema_version is {version!r}, and this attnc reads {SCHEMA_VERSION}")
    try:
        found = from_data(Device, data)
    except ValueError as problem:  # pydantic's is one
        details: Any = getattr(problem, "errors", list)()
        reasons = [f"{'.'.join(map(str, one['loc']))}: {one['msg'].lower()}" for one in details]
        raise _damaged(path, "; ".join(reasons[:3]) or str(problem)) from problem
    if wrong := _wrong(found, path):
        raise _damaged(path, wrong)
    base = shipped(found.name if found.name in shipped_names() else PORTABLE if found.is_gpu else "cpu")
    names = [*found.efficiency, *(name for name in base.efficiency if name not in found.efficiency)]
    return replace(found, efficiency={name: base.efficiency.get(name, {}) | found.efficiency.get(name, {}) for name in names})


def _wrong(found: Device, path: Path) -> str | None:
    """What of a table's numbers cannot be."""
    if found.name != path.stem:
        return f"it is named {found.name!r}, and its file {path.stem!r}"
    sizes: dict[str, Any] = {name: number for name, number in vars(found).items() if isinstance(number, float)}
    for provider, phases in found.efficiency.items():
        if unknown := sorted(set(phases) - {"train", "prefill", "decode"}):
            return f"efficiency.{provider} has the phase {unknown[0]!r}; phases are train, prefill and decode"
        sizes |= {f"efficiency.{provider}.{phase}": share for phase, share in phases.items()}
    wrong = [name for name, number in sizes.items() if not (math.isfinite(number) and number > 0)]
    return f"{wrong[0]} is not above 0" if wrong else None


def _damaged(path: Path, reason: str) -> SpecError:
    message = f"the device table `{path.name}` cannot be used: {reason}"
    help_line = f"measure again with `attnc calibrate`, or remove {path}"
    return SpecError([Diagnostic("A519", message, Span(Source(str(path), ""), 0, 0), help=help_line)])
