"""The weights of a built folder: carried over from a folder that fits, or started from a seed."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from attnc.codegen.problem import complaint
from attnc.compiler.gathered import Orders, axis_of, inverse
from attnc.compiler.mixer import Weight
from attnc.dsl import SpecError

if TYPE_CHECKING:
    from torch import Tensor

TEXT_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
    "chat_template.jinja",
)
"""Files that come along from a folder of weights where it has them."""


Made = dict[str, Callable[[Path], None]]

ORDERS = "attnc_heads"
"""The word of a file's metadata under which it says how the KV groups of its layers were moved."""


def carried(
    folder: Path | None, weights: Sequence[Weight], spare: Collection[str] = (), orders: Orders | None = None
) -> tuple[dict[str, Path], Made]:
    """(files to copy from a folder of weights, files to write from it). Raises SpecError A512 where they do not fit `weights`.

    spare   tensors that may be there and are left out: of alternatives that a policy does not take
    orders  how the KV groups of layers are moved; a folder whose groups were moved already is put back first
    """
    if folder is None:
        return {}, {}
    from attnc.runtime.weights import WeightsError, check_files

    files = sorted(folder.glob("*.safetensors")) or [folder / "model.safetensors"]
    shapes = {weight.name: weight.shape for weight in weights}
    try:
        check_files(files, shapes, spare)
    except WeightsError as problem:
        help_line = "import the checkpoint again, or build with the spec that it was imported with"
        raise SpecError([complaint("A512", str(problem), folder, help_line)]) from problem
    copies: dict[str, Path] = {}
    made: Made = {}
    for file in files:
        names, before = _inside(file)
        if orders or before or any(name not in shapes for name in names):
            kept = tuple(name for name in names if name in shapes)
            made[file.name] = partial(_write, file, kept, before, orders or {})
        else:
            copies[file.name] = file
    return copies | {name: folder / name for name in TEXT_FILES if (folder / name).is_file()}, made


def _inside(path: Path) -> tuple[tuple[str, ...], Orders]:
    """(names of a file's tensors, how its KV groups were moved)."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        told = json.loads((file.metadata() or {}).get(ORDERS, "{}"))
        return tuple(file.keys()), {layer: tuple(order) for layer, order in told.items()}


def _write(source: Path, names: Sequence[str], before: Orders, orders: Orders, path: Path) -> None:
    """Some tensors of a file with the KV groups moved back as they were, and then as `orders` says. OSError if it cannot."""
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import save_file

    back = {layer: inverse(order) for layer, order in before.items()}
    with safe_open(source, framework="pt") as file:
        tensors = {name: moved(name, moved(name, file.get_tensor(name), back), orders) for name in names}
    try:
        save_file(tensors, path, metadata={"format": "pt"} | ({ORDERS: json.dumps(orders)} if orders else {}))
    except SafetensorError as problem:
        raise OSError(str(problem)) from problem


def moved(name: str, tensor: Tensor, orders: Orders) -> Tensor:
    """A tensor whose layer's KV groups are moved."""
    found = axis_of(name)
    order = orders.get(found[0]) if found else None
    if found is None or order is None:
        return tensor
    import torch

    parts = tensor.chunk(len(order), dim=found[1])
    return torch.cat([parts[group] for group in order], dim=found[1])


def start(weights: Sequence[Weight], seed: int, path: Path) -> None:
    """Writes a file of random weights: each tensor's numbers depend on its name and the seed alone. OSError if it cannot."""
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    from attnc.runtime.weights import started

    tensors = {weight.name: started(weight.name, weight.shape, weight.start, seed) for weight in weights}
    assert all(tensor.dtype == torch.float32 for tensor in tensors.values())
    try:
        save_file(tensors, path)
    except SafetensorError as problem:
        raise OSError(str(problem)) from problem
