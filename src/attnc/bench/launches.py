"""The distinct launches of a built folder, without its weights: what there is to time.

Legend: H query heads on G KV heads; D key width; E value width.
"""

from __future__ import annotations

import ast
import importlib
import re
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from attnc.codegen.built import Built
from attnc.codegen.importing import import_folder
from attnc.compiler.data import from_json
from attnc.runtime.load import without_numbers

ORIGIN = re.compile(r"^\s+\S+:\d+  (.+)$", re.MULTILINE)
"""A line of a class's text that names the line of the spec which it comes from."""


@dataclass(frozen=True, eq=False)
class Folder:
    """A built folder that is imported, and its model without numbers. Everything of its runtime is the folder's own copy."""

    path: Path
    package: ModuleType
    built: Built
    model: Any

    def runtime(self, file: str) -> Any:
        """A module of the folder's runtime."""
        return importlib.import_module(f"{self.package.__name__}.runtime.{file}")


@dataclass(frozen=True, eq=False)
class Launch:
    """One launch, in all layers that run it.

    words    its key sets, as the spec has them
    mix      the runtime's Mix; `plan` its LayerPlan
    plain    whether its weights are those of a softmax, at absolute positions
    exponent  of its softplus masses, where they are re-weighted instead
    planned  phase -> provider or providers of its heads, for CUDA devices and for the CPU
    """

    name: str
    words: str
    layers: tuple[int, ...]
    heads: int
    kv_heads: int
    key_width: int
    value_width: int
    sink_logit: bool
    plain: bool
    exponent: float | None
    planned: dict[str, dict[str, Any]]
    mix: Any
    plan: Any
    folder: Folder

    @property
    def repeat(self) -> int:
        """Query heads of a KV head."""
        return self.heads // self.kv_heads

    @property
    def sizes(self) -> str:
        """In words."""
        widths = f"{self.key_width}" if self.key_width == self.value_width else f"{self.key_width} and {self.value_width}"
        heads = "head" if self.kv_heads == 1 else "heads"
        return f"{self.heads} query heads on {self.kv_heads} key and value {heads}, width {widths}"

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal for launches that differ in nothing that is timed: layers of two rules may do the same."""
        mix, sizes = self.mix, (self.heads, self.kv_heads, self.key_width, self.value_width, self.sink_logit)
        return (mix.variants, mix.form, mix.scale, mix.cap, mix.reference, self.plan.slots, *sizes)

    def groups(self, phase: str, length: int) -> tuple[Any, ...] | None:
        """What the KV heads see in a phase of the runtime at a length; None where the launch does nothing then."""
        for variant in self.mix.variants:
            if all(guard.agrees(phase, length) for guard in variant.guards):
                found: tuple[Any, ...] = variant.groups
                return found
        return None

    def provider(self, planned: Any) -> Any:
        """One of the runtime's providers for this launch, or several for its heads."""
        return self.folder.model.provider(self.mix, planned)

    def lacking(self, planned: Any, device: Any, dtype: Any) -> str | None:
        """Why a provider cannot run on this machine, whatever the launch."""
        choosing = self.folder.runtime("choosing")
        reasons = (choosing.lacking(name, device, dtype) for name in choosing.names(planned))
        return next((str(reason) for reason in reasons if reason is not None), None)


@dataclass(frozen=True)
class Skipped:
    """A launch that is not timed, and why."""

    name: str
    words: str
    reason: str


def open_folder(path: Path) -> Folder:
    """Imports a built folder. Its weights are not read."""
    package = import_folder(path)
    name = package.__name__
    made = without_numbers(package.Model)
    made.kernels = importlib.import_module(f"{name}.kernels").kernel
    return Folder(path, package, from_json(Built, (path / "plan.json").read_text("utf-8")), made)


def launches(folder: Folder) -> tuple[list[Launch], list[Skipped]]:
    """Every distinct launch once, in the order of the layers, and those that are not timed: nobody else does their work."""
    found: dict[str, tuple[Any, Any, Any, list[int]]] = {}
    for index, layer in enumerate(folder.model.model.layers):
        for module in layer.modules():
            for mix, plan in zip(getattr(module, "mixes", ()), module.plans() if hasattr(module, "mixes") else (), strict=True):
                layers = found.setdefault(mix.name, (mix, plan, module, []))[3]
                layers += [index] if index not in layers else []
    kernels = importlib.import_module(f"{folder.package.__name__}.kernels")
    files: dict[str, str] = {name: several[0] for name, several in kernels.FILES.items()}
    files |= {name: several[len(several) // 2] for name, several in kernels.SOFTPLUS.items()}  # of the half that re-weighs
    known: dict[tuple[Any, ...], Launch] = {}
    skipped = []
    for name, (mix, plan, module, layers) in found.items():
        words = origin_text(module) or name
        if name not in files:
            skipped.append(Skipped(name, words, _why_not(folder, name)))
            continue
        launch = _launch(folder, mix, plan, words, layers, files[name])
        if not launch.plain and launch.exponent is None:
            skipped.append(Skipped(name, words, "its weights are no softmax of products at absolute positions"))
            continue
        same = known.get(launch.key)
        known[launch.key] = launch if same is None else replace(same, layers=tuple(sorted({*same.layers, *layers})))
    return list(known.values()), [*skipped, *_others(folder)]


def origin_text(module: Any) -> str:
    """What the spec says at the lines that a class comes from."""
    return ", ".join(ORIGIN.findall(type(module).__doc__ or ""))


def _others(folder: Folder) -> list[Skipped]:
    """Mixers that are no launches of softmaxes or matrix states, each sort once."""
    found: dict[str, Skipped] = {}
    kind = folder.runtime("scan").MatrixStates
    of_states = {folder.built.launches[scan.name].rpartition("/")[2] for scan in folder.model.scans() if isinstance(scan, kind)}
    for choice in folder.built.plans["cuda"].choices:
        name = choice.node.rpartition("/")[2]
        if not name.startswith("mix.") and name not in of_states:
            reasons = [refusal.reason for refusal in choice.refused if refusal.provider == "triton"]
            found.setdefault(name, Skipped(name, name, reasons[0] if reasons else "it is no launch"))
    return list(found.values())


def _launch(folder: Folder, mix: Any, plan: Any, words: str, layers: list[int], kernel: str) -> Launch:
    constants = _constants(folder.path / "kernels" / f"{kernel}.py")
    kv_heads = mix.variants[0].groups[-1].last + 1
    reference = folder.runtime("attention_reference").Reference()
    return Launch(
        name=mix.name,
        words=words,
        layers=tuple(layers),
        heads=kv_heads * constants["GROUP"],
        kv_heads=kv_heads,
        key_width=constants["HEAD_WIDTH"],
        value_width=constants["VALUE_WIDTH"],
        sink_logit=bool(constants["SINK_LOGIT"]),
        plain=constants["EXPONENT"] is None and mix.reference == reference,
        exponent=constants["EXPONENT"],
        planned={kind: dict(folder.model.providers[kind][mix.name]) for kind in ("cuda", "cpu")},
        mix=mix,
        plan=_kept(plan, kv_heads, constants),
        folder=folder,
    )


def _kept(plan: Any, kv_heads: int, constants: dict[str, Any]) -> Any:
    """The plan as if keys and values were kept, where a latent is: a launch reads them expanded, and that alone is timed."""
    if len(plan.slots) != 1 or plan.slots[0].last + 1 == kv_heads:
        return plan
    slots = (replace(plan.slots[0], last=kv_heads - 1),)
    return replace(plan, slots=slots, key_width=constants["HEAD_WIDTH"], value_width=constants["VALUE_WIDTH"])


def _constants(path: Path) -> dict[str, Any]:
    """The numbers at the top of a kernel's file, which is not imported: that would need triton."""
    found = {}
    for node in ast.parse(path.read_text("utf-8")).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and isinstance(node.value, ast.Constant):
            found[node.targets[0].id] = node.value.value
    return found


def _why_not(folder: Folder, launch: str) -> str:
    """The plan's reason why no generated kernel runs a launch, or why there is nothing to compare it with."""
    plan, node = folder.built.plans["cuda"], folder.built.launches[launch]
    reasons = [refusal.reason for choice in plan.choices if choice.node == node for refusal in choice.refused]
    return reasons[0] if reasons else "it has no generated kernel"
