"""The folder of a run: run.json with its settings, spec.attn, the journal, and what solving makes of it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from attnc.compiler.check import check
from attnc.compiler.data import from_json, to_json
from attnc.compiler.policies import trouble
from attnc.compiler.policy import Machine, spec_digest
from attnc.compiler.spec import Spec
from attnc.compiler.units import TooManyError, Unit, Units
from attnc.compiler.value import Value
from attnc.dsl.files import read
from attnc.dsl.parse import parse
from attnc.tune.journal import Journal

SETTINGS, SPEC, JOURNAL, POLICY = "run.json", "spec.attn", "journal.jsonl", "policy.json"
PIECE = 2**20
FREE = ("devices", "probes", "batches", "times_at", "weights_from", "file", "samples")
"""Settings that a run may go on with changed: what they add is measured beside what is there."""


class Settings(Value):
    """What a run measures; the same for all processes that work on it.

    file      the spec's own place, beside which its policies lie
    spec, weights, data  SHA-256 digests
    tasks     `text`, `passkey`; `lengths`: tokens of each; `samples`: texts of each task and length
    probes    in rising cost: mass, output, hidden (with which come nll and kl)
    batches   sequences at once, for costs, and `times_at` tokens of each (none: `lengths`)
    devices   tables that are asked where no GPU measures
    """

    schema_version: Literal[1] = 1
    file: str
    spec: str
    weights_from: str
    weights: str
    data: str
    text: str | None = None
    tasks: tuple[str, ...]
    lengths: tuple[int, ...]
    samples: int
    probes: tuple[str, ...]
    batches: tuple[int, ...] = (1,)
    times_at: tuple[int, ...] = ()
    points: int = 4
    seed: int = 0
    dtype: str = "float32"
    devices: tuple[str, ...] = ("cpu",)


class Run:
    """An opened run."""

    def __init__(self, place: Path, settings: Settings) -> None:
        self.place, self.settings = place, settings
        self.spec: Spec = check(parse(read(place / SPEC)))
        self.units = Units(self.spec, settings.points)
        self.all: tuple[Unit, ...] = decisions(self.units)
        self.journal = Journal(place / JOURNAL)

    @classmethod
    def open(cls, place: Path) -> Run:
        """Raises SpecError A610 for a folder that is no run, or a damaged one."""
        path = place / SETTINGS
        help_line = "attnc tune score SPEC --weights DIR -o RUN begins one"
        try:
            settings = from_json(Settings, path.read_bytes())
        except OSError as error:
            raise trouble("A610", f"{place} is no run: it has no {SETTINGS}", place, help_line) from error
        except ValueError as error:
            raise trouble("A610", f"{SETTINGS} is damaged: {str(error).splitlines()[0]}", path, help_line) from error
        run = cls(place, settings)
        if spec_digest(run.spec) != settings.spec:
            raise trouble("A612", "the spec of the run is no longer the one that it began with", place / SPEC, help_line)
        return run

    @classmethod
    def begin(cls, place: Path, spec: Spec, settings: Settings) -> Run:
        """A new run, or the one that is there with these settings. Raises SpecError A612 where that has others."""
        if (place / SETTINGS).is_file():
            run = cls.open(place)
            changed = [name for name, one in vars(settings).items() if getattr(run.settings, name) != one]
            fixed = [name for name in changed if name not in FREE]
            if fixed:
                message = f"{place.name} was begun with another {fixed[0]}: {getattr(run.settings, fixed[0])}"
                raise trouble("A612", message, place, "name another folder with `-o`, or give what it was begun with")
            if changed:
                write_text(place / SETTINGS, to_json(settings, indent=1) + "\n")
            return cls(place, settings)
        decisions(Units(spec, settings.points))
        place.mkdir(parents=True, exist_ok=True)
        write_text(place / SPEC, spec.text)
        write_text(place / SETTINGS, to_json(settings, indent=1) + "\n")
        return cls(place, settings)


def decisions(units: Units) -> tuple[Unit, ...]:
    """The units of a spec. Raises SpecError A611 where nothing is to be decided, or too much."""
    try:
        found = units.all()
    except TooManyError as error:
        raise trouble(
            "A611", f"{error}, too many to measure", units.spec.file, "lower --points, or budgets of the spec"
        ) from error
    if not found:
        message = f"{units.spec.model.name} has no choose and no budget that could move"
        raise trouble("A611", message, units.spec.file, "write `choose` or `budget` where the tuner shall decide")
    return found


def digest(paths: Sequence[Path]) -> str:
    """SHA-256 of files, one after another."""
    sha = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while piece := file.read(PIECE):
                sha.update(piece)
    return sha.hexdigest()


def write_text(path: Path, text: str) -> None:
    """In one step: whoever reads sees the old file or the new one."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(text, "utf-8")
    os.replace(beside, path)


def machine_of(device: str, table: str) -> Machine:
    """The machine at hand; `table`: the name of its table of costs."""
    import torch

    here = Machine(device=table, torch=torch.__version__)
    if not device.startswith("cuda"):
        return here
    from importlib.metadata import version

    return replace(here, gpu=torch.cuda.get_device_name(device), driver=driver(), triton=version("triton"))


def driver() -> str:
    """The version of NVIDIA's driver, empty where nobody says."""
    path = Path("/sys/module/nvidia/version")
    return path.read_text("utf-8").strip() if path.is_file() else ""
