"""What training leaves in a built folder: training/run-1, run-2, ..., each with its settings, first weights and checkpoints.

The folder's own weights are replaced once, when a run is done: a hard link in `start/` keeps those that it began with.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

from safetensors import safe_open
from torch import Tensor

from attnc.codegen.problem import complaint
from attnc.compiler.data import from_json, to_json
from attnc.dsl import SpecError
from attnc.train import checkpoint
from attnc.train.report import Settings

RUN = re.compile(r"run-(\d+)")
SETTINGS, START = "run.json", "start"


def runs(folder: Path) -> list[Path]:
    """The runs of a built folder, the first one first."""
    top = folder / "training"
    found = [path for path in top.iterdir() if RUN.fullmatch(path.name)] if top.is_dir() else []
    return sorted(found, key=lambda path: int(path.name.removeprefix("run-")))


def begin(folder: Path, settings: Settings) -> Path:
    """A new run, whole from the moment that it has its name."""
    known = runs(folder)
    number = 1 + (int(known[-1].name.removeprefix("run-")) if known else 0)
    run = folder / "training" / f"run-{number}"
    beside = run.with_name(f".{run.name}.beginning")
    shutil.rmtree(beside, ignore_errors=True)
    (beside / START).mkdir(parents=True)
    for path in sorted(folder.glob("*.safetensors")):
        _link(path, beside / START / path.name)
    write_settings(beside, settings)
    os.replace(beside, run)
    return run


def _link(path: Path, copy: Path) -> None:
    """The same file under another name; a copy where the file system has no such links."""
    try:
        os.link(path, copy)
    except OSError:
        shutil.copyfile(path, copy)


def write_settings(run: Path, settings: Settings) -> None:
    """In one step."""
    beside = run / f".{SETTINGS}.writing"
    beside.write_text(to_json(settings, indent=1) + "\n", "utf-8")
    os.replace(beside, run / SETTINGS)


def read_settings(folder: Path) -> tuple[Path, Settings]:
    """The last run and its settings. Raises SpecError A577 where there is none, A573 where they cannot be read."""
    known = runs(folder)
    if not known:
        raise SpecError([complaint("A577", f"{folder.name} has no run to resume", folder, "leave `--resume` out")])
    path = known[-1] / SETTINGS
    try:
        return known[-1], from_json(Settings, path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        help_line = f"move {known[-1]} away, or begin a new run without `--resume`"
        raise SpecError([complaint("A573", f"{SETTINGS} of {known[-1].name} is damaged: {reason}", path, help_line)]) from error


def started(run: Path) -> list[Path]:
    """The weights that a run began with."""
    return sorted((run / START).glob("*.safetensors"))


def put_weights(folder: Path, run: Path, changed: Mapping[str, Tensor], ties: Mapping[str, str]) -> tuple[Path, ...]:
    """Replaces the folder's weights by those of the run's start with `changed` among them; formats of numbers stay.

    `ties`: other names of a tensor -> the name that `changed` has for it.
    """
    written = []
    for path in started(run):
        with safe_open(path, framework="pt") as file:
            words = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (the file is no mapping)
        for name, old in tensors.items():
            new = changed.get(ties.get(name, name))
            if new is not None:
                tensors[name] = new.detach().to(device="cpu", dtype=old.dtype).contiguous()
        checkpoint.replace(folder / path.name, tensors, words)
        written.append(folder / path.name)
    return tuple(written)
