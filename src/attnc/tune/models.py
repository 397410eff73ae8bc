"""Models of one checkpoint with every unit decided alike, or each as it is told; weights are shared in memory."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from attnc.codegen.build import Options, build
from attnc.codegen.importing import import_folder
from attnc.compiler.policies import trouble
from attnc.compiler.spec import Mixer, Spec
from attnc.compiler.units import FULL, Candidate, Place, Unit, Units

if TYPE_CHECKING:
    from attnc.runtime.model import BuiltModel

Picks = Mapping[Place, Sequence[Candidate]]


class Models:
    """`weights`: the folder of a checkpoint, `scratch`: where folders are built, which must stay while their models run."""

    def __init__(self, units: Units, every: Sequence[Unit], weights: Path, scratch: Path, device: str, dtype: str, table: str):
        self.units, self.every, self.weights, self.scratch, self.table = units, every, weights, scratch, table
        self.tensors: dict[str, Tensor] = {}
        for path in weight_files(weights):
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 (the file is no mapping)
                    self.tensors[name] = file.get_tensor(name).to(device=device, dtype=getattr(torch, dtype))
        self.device = torch.device(device)
        self.count = 0
        self.built: dict[tuple[Mixer, ...], BuiltModel] = {}

    def full(self) -> BuiltModel:
        """Every unit with a softmax over every key, as far as it has a softmax."""
        return self.of({unit.place: [FULL] * unit.kv_heads for unit in self.every})

    def uniform(self, number: int) -> BuiltModel:
        """Every unit with its candidate of this number; its first one where it has fewer."""
        return self.of(uniform(self.every, number))

    def alone(self, number: int) -> list[tuple[frozenset[Place], BuiltModel]]:
        """Models in which units have their candidate of this number, and the units whose parts of it are to be read.

        One is enough, but where candidates take over choices: then every second layer has full attention, which lends them.
        """
        picks = uniform(self.every, number)
        lent = {place for place, own in picks.items() if self.units.borrows(place, own[0])}
        if not lent:
            return [(frozenset(picks), self.of(picks))]
        found = []
        for turn in (0, 1):
            waiting = {place for place in lent if place[0] % 2 != turn}
            mixed = {place: [FULL] * len(own) if place in waiting else own for place, own in picks.items()}
            found.append((frozenset(mixed) - waiting, self.of(mixed)))
        return found

    def of(self, picks: Picks) -> BuiltModel:
        """The model of these, built once. Raises SpecError A616 where the checkpoint lacks weights."""
        spec = self.units.settled(picks)
        mixers = tuple(layer.mixer for layer in spec.layers)
        if mixers not in self.built:
            self.built[mixers] = self.load(spec)
        return self.built[mixers]

    def load(self, spec: Spec) -> BuiltModel:
        """A model of a settled spec that nobody else has."""
        self.count += 1
        place = self.scratch / f"model_{self.count}"
        build(spec, place, Options(device=self.table))
        package = import_folder(place)
        loading = importlib.import_module(f"{package.__name__}.runtime.load")
        kernels = importlib.import_module(f"{package.__name__}.kernels")
        model: BuiltModel = loading.without_numbers(package.Model)
        _fill(model, self.tensors, self.weights)
        ready: BuiltModel = loading.ready(model, place, kernels.kernel)
        return ready.eval().requires_grad_(False)


def _fill(model: nn.Module, tensors: Mapping[str, Tensor], folder: Path) -> None:
    names: dict[int, list[str]] = {}
    for name, empty in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(empty), []).append(name)
    shapes = {name: empty.shape for name, empty in model.named_parameters(remove_duplicate=False)}
    for tied in names.values():
        found = next((tensors[name] for name in tied if name in tensors), None)
        if found is None or found.shape != shapes[tied[0]]:
            lacking = "has another shape" if found is not None else "is not there"
            raise trouble(
                "A616", f"{tied[0]} {list(shapes[tied[0]])} {lacking}", folder, "train the folder with this alternative first"
            )
        numbers = nn.Parameter(found, requires_grad=False)
        for name in tied:
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, numbers)


def uniform(every: Sequence[Unit], number: int) -> dict[Place, list[Candidate]]:
    """Every unit with its candidate of this number; its first one where it has fewer."""
    return {unit.place: [unit.candidates[number if number < len(unit.candidates) else 0]] * unit.kv_heads for unit in every}


def weight_files(folder: Path) -> list[Path]:
    """The weights of a folder. Raises SpecError A616 where it has none."""
    found = sorted(folder.glob("*.safetensors"))
    if not found:
        raise trouble("A616", f"{folder} has no safetensors", folder, "--weights names a folder of attnc import or attnc build")
    return found


def module_of(model: Any, layer: int, scope: str) -> nn.Module:
    """The module of a part of a layer."""
    block: nn.Module = model.model.layers[layer]
    if scope:
        return block.get_submodule(f"mixer.{scope}")
    return block.get_submodule("self_attn" if hasattr(block, "self_attn") else "mixer")
