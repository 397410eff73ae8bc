"""A built folder to a model that runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch.overrides import TorchFunctionMode

from .choosing import Planned
from .model import BuiltModel
from .weights import load_weights

AnyModel = TypeVar("AnyModel", bound=BuiltModel)


class _Unfilled(TorchFunctionMode):
    """Leaves random numbers out: a parameter on `meta` has none, and drawing them imports torch's compiler, for seconds."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.nn.init.normal_:
            return kwargs["tensor"] if kwargs and "tensor" in kwargs else args[0]
        return function(*args, **(kwargs or {}))


def without_numbers(make: type[AnyModel]) -> AnyModel:
    """An instance of a folder's `Model` whose parameters are on `meta`: it says what there is, and takes no memory."""
    with torch.device("meta"), _Unfilled():
        return make()


def load_model(
    make: type[AnyModel],
    folder: Path,
    kernels: Callable[..., Any],
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    use: str = "plan",
) -> AnyModel:
    """An instance of the folder's `Model` with its weights; `dtype` None keeps theirs.

    Raises WeightsError where the weights are missing or do not fit.
    """
    files = sorted(folder.glob("*.safetensors")) or [folder / "model.safetensors"]
    model = without_numbers(make)
    load_weights(model, files, device, dtype)
    return ready(model, folder, kernels, use).eval()


def ready(model: AnyModel, folder: Path, kernels: Callable[..., Any], use: str = "plan") -> AnyModel:
    """The model with what its folder says of its cache and of who runs its launches; its weights are there already."""
    built = json.loads((folder / "plan.json").read_text("utf-8"))
    model.rows = built["cache"]
    model.runners_up = {kind: _runners_up(plan, built["launches"]) for kind, plan in built["plans"].items()}
    model.kernels = kernels
    model.use(use)
    return model


def _runners_up(plan: dict[str, Any], launches: dict[str, str]) -> dict[str, dict[str, list[Planned]]]:
    """launch -> phase -> those that the plan did not choose, cheapest first; `launches` names the node of each."""
    names = {node: launch for launch, node in launches.items()}
    found: dict[str, dict[str, list[Planned]]] = {launch: {} for launch in launches}
    for choice in plan["choices"]:
        if choice["node"] in names:
            found[names[choice["node"]]][choice["phase"]] = [_planned(price) for price in choice["others"]]
    return found


def _planned(price: dict[str, Any]) -> Planned:
    parts = price.get("parts")
    if not parts:
        return str(price["provider"])
    return tuple((str(part["provider"]), int(part["first"]), int(part["last"])) for part in parts)
