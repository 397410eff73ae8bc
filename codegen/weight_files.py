"""The weights of a built folder: carried over from a folder that fits, or started from a seed."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from attnc.codegen.filling import Fill
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


class Carried(NamedTuple):
    """What a folder of weights gives: files to copy, files to write from it, and a line for each thing that was decided."""

    copies: Mapping[str, Path]
    made: Made
    decisions: tuple[str, ...] = ()


def carried(
    folder: Path, weights: Sequence[Weight], spare: Collection[str] = (), orders: Orders | None = None, fill: Fill | None = None
) -> Carried:
    """Raises SpecError A512 where the folder's tensors do not fit `weights`.

    spare   tensors that may be there and are left out: of alternatives that a policy does not take
    orders  how the KV groups of layers are moved; a folder whose groups were moved already is put back first
    fill    what becomes of a model whose attention stands beside something new; without it names are the same and all there
    """
    from attnc.runtime.weights import WeightsError, check_files, contents

    files = sorted(folder.glob("*.safetensors"))
    if not files:
        help_line = "`attnc import` writes a folder of weights"
        raise SpecError([complaint("A512", f"`{folder}` holds no *.safetensors", folder, help_line)])
    shapes = {weight.name: weight.shape for weight in weights}
    try:
        renamed = {name: fill.name(name, shapes) for name in contents(files)[0]} if fill else {}
        known = {*renamed.values()}
        lacking = [weight for weight in weights if weight.name not in known] if fill and known & {*shapes} else []
        old = {new: name for name, new in renamed.items()}
        check_files(files, {old.get(one.name, one.name): one.shape for one in weights if one not in lacking}, spare)
    except WeightsError as problem:
        help_line = "import the checkpoint again, or build with its own spec; `--init SEED` starts what is new in this one"
        raise SpecError([complaint("A512", str(problem), folder, help_line)]) from problem
    copies: dict[str, Path] = {}
    made: Made = {}
    inside = {file: _inside(file) for file in files}
    for file, (names, before) in inside.items():
        kept = {name: renamed.get(name, name) for name in names if renamed.get(name, name) in shapes}
        if orders or before or any(kept.get(name) != name for name in names):
            made[file.name] = partial(_write, file, kept, before, orders or {})
        else:
            copies[file.name] = file
    if fill and lacking:
        taken = {file.name for file in inside}
        free = next(name for number in count(1) if (name := f"started-{number}.safetensors") not in taken)
        made[free] = partial(start, lacking, fill.seed, orders or {})
    told = fill.told(renamed, [weight.name for weight in lacking]) if fill else ()
    return Carried(copies | {name: folder / name for name in TEXT_FILES if (folder / name).is_file()}, made, told)


def _inside(path: Path) -> tuple[tuple[str, ...], Orders]:
    """(names of a file's tensors, how its KV groups were moved)."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        told = json.loads((file.metadata() or {}).get(ORDERS, "{}"))
        return tuple(file.keys()), {layer: tuple(order) for layer, order in told.items()}


def _write(source: Path, names: Mapping[str, str], before: Orders, orders: Orders, path: Path) -> None:
    """Some tensors of a file by their new names, with the KV groups moved back as they were, and then as `orders` says.

    OSError if it cannot.
    """
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import save_file

    back = {layer: inverse(order) for layer, order in before.items()}
    with safe_open(source, framework="pt") as file:
        tensors = {new: moved(new, moved(name, file.get_tensor(name), back), orders) for name, new in names.items()}
    try:
        save_file(tensors, path, metadata=_said(orders))
    except SafetensorError as problem:
        raise OSError(str(problem)) from problem


def _said(orders: Orders) -> dict[str, str]:
    """The metadata of a file."""
    return {"format": "pt"} | ({ORDERS: json.dumps(orders)} if orders else {})


def moved(name: str, tensor: Tensor, orders: Orders) -> Tensor:
    """A tensor whose layer's KV groups are moved."""
    found = axis_of(name)
    order = orders.get(found[0]) if found else None
    if found is None or order is None:
        return tensor
    import torch

    parts = tensor.chunk(len(order), dim=found[1])
    return torch.cat([parts[group] for group in order], dim=found[1])


def start(weights: Sequence[Weight], seed: int, orders: Orders, path: Path) -> None:
    """Writes a file of random weights: each tensor's numbers depend on its name and the seed alone. OSError if it cannot."""
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    from attnc.runtime.weights import started

    tensors = {weight.name: started(weight.name, weight.shape, weight.start, seed) for weight in weights}
    assert all(tensor.dtype == torch.float32 for tensor in tensors.values())
    try:
        save_file(tensors, path, metadata=_said(orders))
    except SafetensorError as problem:
        raise OSError(str(problem)) from problem
