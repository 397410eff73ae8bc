"""What a report says of the machine and of the code that was timed."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

import torch

import attnc
from attnc.bench.report import Machine

DRIVER = Path("/sys/module/nvidia/version")


def default_device() -> torch.device:
    """The GPU where there is one."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def machine(device: torch.device) -> Machine:
    """The facts of this run."""
    gpu = device.type == "cuda"
    return Machine(
        device=torch.cuda.get_device_name(device) if gpu else processor(),
        capability="sm_{}{}".format(*torch.cuda.get_device_capability(device)) if gpu else None,
        driver=DRIVER.read_text("ascii").strip() if DRIVER.exists() else None,
        torch=torch.__version__,
        triton=_version("triton"),
        python=platform.python_version(),
        attnc=attnc.__version__,
        commit=commit(),
    )


def processor() -> str:
    """The CPU's name and how many of its cores torch uses."""
    names = [line for line in _lines(Path("/proc/cpuinfo")) if line.startswith("model name")]
    name = names[0].partition(":")[2].strip() if names else platform.processor() or platform.machine()
    threads = torch.get_num_threads()
    return f"{name}, {threads} thread{'s' if threads > 1 else ''}"


def commit() -> str | None:
    """The commit of attnc's source: of its git tree, or ATTNC_COMMIT where it came without its history."""
    told = os.environ.get("ATTNC_COMMIT")
    top = Path(attnc.__file__).resolve().parents[2]
    if told or not (top / ".git").exists():
        return told or None
    command = ["git", "rev-parse", "HEAD"]
    run = subprocess.run(command, cwd=top, capture_output=True, text=True, check=False)  # noqa: S603
    return run.stdout.strip() or None


def _lines(path: Path) -> list[str]:
    return path.read_text("utf-8", "replace").splitlines() if path.exists() else []


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
