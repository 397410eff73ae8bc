"""Checkpoints of a run: one safetensors file each, written beside its place, flushed, renamed; the last ones are kept."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from attnc.codegen.problem import complaint
from attnc.dsl import SpecError

NAME = re.compile(r"step-(\d{8,})\.safetensors")
SCHEMA_VERSION = "1"


def path_of(folder: Path, step: int) -> Path:
    """Where the checkpoint after `step` steps lies."""
    return folder / f"step-{step:08d}.safetensors"


def steps(folder: Path) -> list[int]:
    """The steps of all checkpoints, rising; files that a killed run left half written are none."""
    found = (NAME.fullmatch(path.name) for path in folder.iterdir()) if folder.is_dir() else ()
    return sorted(int(match.group(1)) for match in found if match)


def save(folder: Path, step: int, tensors: Mapping[str, Tensor], about: Mapping[str, str], keep: int) -> Path:
    """Writes the checkpoint after `step` steps, then removes all but the last `keep`."""
    path = path_of(folder, step)
    words = {"schema_version": SCHEMA_VERSION, "step": str(step), **about}
    replace(path, {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, words)
    for old in steps(folder)[:-keep]:
        path_of(folder, old).unlink()
    return path


def replace(path: Path, tensors: dict[str, Tensor], words: dict[str, str] | None) -> None:
    """Writes a safetensors file in one step: who looks sees the old one or the new one. OSError if the disk refuses."""
    beside = path.with_name(f".{path.name}.writing")
    try:
        save_file(tensors, beside, metadata=words)
        with beside.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(beside, path)
    except SafetensorError as error:
        beside.unlink(missing_ok=True)
        raise OSError(str(error)) from error
    except OSError:
        beside.unlink(missing_ok=True)
        raise


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and words of a checkpoint. Raises SpecError A573 for a file that is none."""
    try:
        with safe_open(path, framework="pt") as file:
            words = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (the file is no mapping)
    except (SafetensorError, OSError) as error:
        raise _damaged(path, str(error)) from error
    if words.get("schema_version") != SCHEMA_VERSION or words.get("step") != str(int(NAME.fullmatch(path.name)[1])):  # type: ignore[index]
        raise _damaged(path, f"it says {json.dumps(words)[:80]}")
    return tensors, words


def _damaged(path: Path, reason: str) -> SpecError:
    help_line = "move it away: `--resume` then goes on from the checkpoint before it"
    return SpecError([complaint("A573", f"{path.name} is no checkpoint: {reason}", path, help_line)])
