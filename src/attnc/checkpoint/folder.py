"""A Hugging Face folder: config.json, one or several safetensors files, tokenizer files. Read without transformers."""

from __future__ import annotations

import json
from pathlib import Path

from attnc.checkpoint.config import Config
from attnc.checkpoint.problem import problem, some
from attnc.checkpoint.tensors import Tensor, read
from attnc.dsl.diagnostic import closest

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


def configuration(folder: Path) -> Config:
    """The folder's config.json. Errors: A520 where there is none, A521 where it cannot be read."""
    path = folder / "config.json"
    if not path.is_file():
        names = sorted(file.name for file in folder.iterdir())
        gguf = [name for name in names if name.endswith(".gguf")]
        near = closest("config.json", names)
        advice = (
            f"name the file: {folder / gguf[0]}"
            if gguf
            else near or "a Hugging Face folder holds config.json beside its weights"
        )
        raise problem("A520", f"the folder `{folder.name}` has no config.json", file=folder, help=advice)
    return Config.read(path)


def tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of all shards, by name. Errors: A520 where there are none, A526 where a file is damaged."""
    if (folder / INDEX).is_file() and not (folder / SINGLE).is_file():
        return _sharded(folder)
    if not (folder / SINGLE).is_file():
        names = sorted(file.name for file in folder.iterdir())
        others = [name for name in names if name.endswith((".bin", ".pt", ".pth", ".safetensors"))]
        advice = f"only {SINGLE} or {INDEX} with its shards are read"
        advice += f", not {some(others)}; save the model again with transformers, save_pretrained" if others else ""
        raise problem("A520", f"the folder `{folder.name}` has no {SINGLE}", file=folder, help=advice)
    return read(folder / SINGLE)


def _sharded(folder: Path) -> dict[str, Tensor]:
    index = folder / INDEX
    try:
        named = {str(name): str(shard) for name, shard in json.loads(index.read_text(encoding="utf-8"))["weight_map"].items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise problem("A526", f"{INDEX} cannot be read", file=index, help="copy or download the file again") from None
    shards = sorted(set(named.values()))
    outside = [shard for shard in shards if Path(shard).name != shard]
    if outside:
        raise problem("A526", f"{INDEX} names files outside the folder: {some(outside)}", file=index)
    absent = [shard for shard in shards if not (folder / shard).is_file()]
    if absent:
        message = f"{len(absent)} of {len(shards)} shards are missing: {some(absent)}"
        raise problem("A520", message, file=folder, help=f"{INDEX} names them; download them too")
    found: dict[str, Tensor] = {}
    for shard in shards:
        found |= read(folder / shard)
    lacking = [name for name in named if name not in found]
    if lacking:
        raise problem("A527", f"the shards lack weights that {INDEX} names: {some(lacking)}", file=index)
    return found
