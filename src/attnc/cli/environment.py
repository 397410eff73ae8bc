"""What this machine has and lacks, as data."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import warnings
from pathlib import Path

import attnc
from attnc.cli.output import bytes_text
from attnc.cli.version import installed
from attnc.compiler.value import Value

TORCH = ((2, 11), (2, 15))
TRITON = ((3, 6), (3, 9))
NEEDED = ("pydantic", "networkx", "jinja2", "typer", "rich", "platformdirs", "filelock", "safetensors")
LITTLE_DISK = 2 * 2**30


class Gpu(Value):
    """One device that torch sees."""

    name: str
    capability: str
    memory: int


class Folder(Value):
    """A folder that fills up, and what its disk has left."""

    purpose: str
    path: str
    free: int


class Problem(Value):
    """Something that must be mended before `attnc` works."""

    message: str
    help: str


class EnvironmentReport(Value):
    """What `attnc doctor --json` prints. A package that is not installed has no version."""

    schema_version: int = 1
    attnc: str
    python: str
    platform: str
    packages: dict[str, str | None]
    gpus: list[Gpu]
    driver: str | None
    triton_interpret: bool
    folders: list[Folder]
    problems: list[Problem]
    remarks: list[str]


def examine() -> EnvironmentReport:
    """Looks at this machine; imports torch if it is there."""
    packages = {name: installed(name) for name in ("torch", "triton", "transformers", "gguf", *NEEDED)}
    problems = _version_problems(packages)
    remarks: list[str] = []
    gpus: list[Gpu] = []
    if packages["torch"]:
        try:
            gpus, remarks = _gpus()
        except (ImportError, OSError) as error:
            problems.append(Problem(message=f"torch does not import: {error}", help="install torch again"))
    if not (packages["transformers"] and packages["gguf"]):
        remarks.append("attnc import needs transformers and gguf: pip install 'attnc[hf]'")
    interpret = os.environ.get("TRITON_INTERPRET", "0") not in ("", "0")
    if interpret:
        remarks.append("TRITON_INTERPRET is set: Triton kernels run in Python, thousands of times slower")
    folders = _folders()
    remarks += [f"{f.path} has only {bytes_text(f.free)} left" for f in folders if f.free < LITTLE_DISK]
    return EnvironmentReport(
        attnc=attnc.__version__,
        python=platform.python_version(),
        platform=platform.platform(),
        packages=packages,
        gpus=gpus,
        driver=_driver(),
        triton_interpret=interpret,
        folders=folders,
        problems=problems,
        remarks=remarks,
    )


def _version_problems(packages: dict[str, str | None]) -> list[Problem]:
    """Missing packages and versions outside the supported range."""
    problems = [
        Problem(message=f"{name} is not installed", help=f"pip install {name}") for name in NEEDED if not packages[name]
    ]
    ranges = {"torch": TORCH}
    if sys.platform == "linux":
        ranges["triton"] = TRITON
    for name, (low, high) in ranges.items():
        wanted = f"{low[0]}.{low[1]} to {high[0]}.{high[1]}"
        version = packages[name]
        if version is None:
            problems.append(Problem(message=f"{name} is not installed", help=f"pip install {name}; attnc supports {wanted}"))
        elif not low <= _release(version) <= high:
            problems.append(Problem(message=f"{name} {version} is not supported", help=f"install {name} {wanted}"))
    return problems


def _release(version: str) -> tuple[int, int]:
    major, minor = version.split(".")[:2]
    return int(major), int(minor)


def _gpus() -> tuple[list[Gpu], list[str]]:
    """The GPUs that torch sees, and what it warns of while looking."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        import torch

        gpus = []
        for index in range(torch.cuda.device_count()) if torch.cuda.is_available() else ():
            facts = torch.cuda.get_device_properties(index)
            gpus.append(Gpu(name=facts.name, capability=f"{facts.major}.{facts.minor}", memory=facts.total_memory))
    return gpus, [str(warning.message).strip().split("\n")[0] for warning in caught]


def _driver() -> str | None:
    """The version of the NVIDIA driver that is loaded."""
    path = Path("/sys/module/nvidia/version")
    return path.read_text("ascii").strip() if path.exists() else None


def _folders() -> list[Folder]:
    from attnc.codegen.tune.table import user_folder
    from attnc.compiler.device import measured_folder

    places = {
        "tuned blocks of kernels": user_folder(),
        "measured devices": measured_folder(),
        "Triton's kernels": Path(os.environ.get("TRITON_CACHE_DIR") or Path.home() / ".triton" / "cache"),
    }
    return [Folder(purpose=name, path=str(path), free=_free(path)) for name, path in places.items()]


def _free(path: Path) -> int:
    """Free bytes on the disk of `path`, which need not be there yet."""
    there = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    return shutil.disk_usage(there).free
