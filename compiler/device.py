"""Facts about devices, one file each in compiler/devices."""

from __future__ import annotations

import tomllib
from functools import cache
from importlib import resources

from attnc.compiler.data import from_data
from attnc.compiler.value import Value


class Device(Value):
    """Peaks in units per second, memory in bytes, seconds per launch, the share of the peak that each provider reaches."""

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


@cache
def device_names() -> tuple[str, ...]:
    """Every device that has a table."""
    files = resources.files("attnc.compiler").joinpath("devices").iterdir()
    return tuple(sorted(file.name.removesuffix(".toml") for file in files if file.name.endswith(".toml")))


@cache
def device(name: str) -> Device:
    """The table of one of `device_names()`."""
    text = resources.files("attnc.compiler").joinpath("devices", f"{name}.toml").read_text("utf-8")
    return from_data(Device, tomllib.loads(text))
