"""A device table as a file, and beside the one that it replaces."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from attnc.bench.report import Machine
from attnc.bench.table import rate_text
from attnc.compiler.device import SCHEMA_VERSION, Device
from attnc.compiler.show import seconds_text

UNITS = {
    "matrix_flops": "FLOP/s",
    "vector_flops": "FLOP/s",
    "bandwidth": "B/s",
    "exponentials": "/s",
    "memory": "B",
    "launch": "s",
}


def toml(found: Device, machine: Machine, day: str) -> str:
    """The text of a table; `day` is when it was measured."""
    versions = f"torch {machine.torch}, triton {machine.triton}, driver {machine.driver}, attnc {machine.attnc}"
    lines = [f"# Measured by `attnc calibrate` on {day}: {machine.device}, {versions}.", f"schema_version = {SCHEMA_VERSION}"]
    lines += [f'{name} = "{_escaped(str(getattr(found, name)))}"' for name in ("name", "title", "architecture")]
    lines += [f"{name} = {getattr(found, name)!r}" for name in UNITS]
    for provider, phases in found.efficiency.items():
        lines += [f"\n[efficiency.{provider}]", *(f"{phase} = {share!r}" for phase, share in phases.items())]
    return "\n".join(lines) + "\n"


def write(path: Path, text: str) -> None:
    """In one step: whoever reads it has the old table or the new one. Raises OSError where the disk refuses."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, beside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(beside, 0o644)
        os.replace(beside, path)
    except BaseException:
        os.unlink(beside)
        raise


def comparison(old: Device, new: Device) -> list[tuple[str, str, str, str]]:
    """(what, old, new, new over old), the shares of the peak last."""
    rows = []
    for name, unit in UNITS.items():
        before, after = getattr(old, name), getattr(new, name)
        one, other = (seconds_text(x) if unit == "s" else rate_text(x, unit) for x in (before, after))
        rows.append((name, one, other, f"{after / before:.2f}"))
    for provider, phases in new.efficiency.items():
        for phase, after in phases.items():
            before = old.efficiency.get(provider, {}).get(phase)
            ratio = "" if before is None else f"{after / before:.2f}"
            rows.append((f"{provider} {phase}", "none" if before is None else f"{before:.1%}", f"{after:.1%}", ratio))
    return rows


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')
