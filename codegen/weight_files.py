"""The weights of a built folder: carried over from a folder that fits, or started from a seed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from attnc.codegen.problem import complaint
from attnc.compiler.mixer import Weight
from attnc.dsl import SpecError

TEXT_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
    "chat_template.jinja",
)
"""Files that come along from a folder of weights where it has them."""


def carried(folder: Path | None, weights: Sequence[Weight]) -> dict[str, Path]:
    """The files to copy from a folder of weights. Raises SpecError A512 where they do not fit `weights`."""
    if folder is None:
        return {}
    from attnc.runtime.weights import WeightsError, check_files

    files = sorted(folder.glob("*.safetensors")) or [folder / "model.safetensors"]
    try:
        check_files(files, {weight.name: weight.shape for weight in weights})
    except WeightsError as problem:
        help_line = "import the checkpoint again, or build with the spec that it was imported with"
        raise SpecError([complaint("A512", str(problem), folder, help_line)]) from problem
    found = {file.name: file for file in files}
    return found | {name: folder / name for name in TEXT_FILES if (folder / name).is_file()}


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
