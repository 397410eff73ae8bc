"""A GGUF file, through transformers and gguf: dequantised weights, configuration and tokenizer."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

from attnc.checkpoint import gguf_header
from attnc.checkpoint.config import Config
from attnc.checkpoint.problem import problem, some
from attnc.checkpoint.tensors import CHUNK, Tensor

PACKAGES = ("torch", "transformers", "gguf", "accelerate", "tokenizers")


@dataclass(frozen=True)
class Loaded(Tensor):
    """A tensor in memory instead of in a file."""

    data: memoryview = field(default=memoryview(b""), compare=False, repr=False)

    def chunks(self) -> Iterator[bytes]:
        """The tensor's bytes, some megabytes at a time."""
        for at in range(0, len(self.data), CHUNK):
            yield bytes(self.data[at : at + CHUNK])


@dataclass(frozen=True)
class Checkpoint:
    """What a GGUF file holds, under the names of transformers."""

    name: str
    config: Config
    tensors: dict[str, Tensor]


def load(path: Path, tokenizer: Path) -> Checkpoint:
    """Read `path`, and write its tokenizer's files into the folder `tokenizer`.

    Weights come out in float32. GGUF's blocks hold an fp16 scale (and offset) times small whole numbers: such a product has
    more digits than fp16 or bf16 keep, so a narrower format would change the model. Errors: A522, A524, A527, A530, A531.
    """
    header = gguf_header.read(path)
    gguf_header.check(path, header)
    _check_packages(path)
    _check_whole(path, header)
    import torch
    import transformers

    with _quiet(transformers):
        folder, file = str(path.parent), path.name
        config = transformers.AutoConfig.from_pretrained(folder, gguf_file=file)
        model, loading = transformers.AutoModelForCausalLM.from_pretrained(
            folder, gguf_file=file, config=config, dtype=torch.float32, output_loading_info=True
        )
        transformers.AutoTokenizer.from_pretrained(folder, gguf_file=file).save_pretrained(tokenizer)
    missing = sorted(loading["missing_keys"])
    if missing:
        raise problem("A527", f"transformers found no weights for {some(missing)}", file=path)
    values = {key: value for key, value in model.config.to_dict().items() if key != "quantization_config"}
    name = str(header.values.get("general.name") or path.stem)
    return Checkpoint(name, Config.of(values, str(path)), _tensors(model, path))


def _check_whole(path: Path, header: gguf_header.Header) -> None:
    """Every tensor must end inside the file."""
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    size = path.stat().st_size
    for name, (shape, kind, begin) in header.tensors.items():
        if kind not in set(GGMLQuantizationType):
            raise problem("A529", f"{name} has GGML's number format {kind}, which gguf does not know", file=path)
        block, width = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
        end = begin + prod(shape) // block * width
        if end > size:
            message = f"{path.name} is damaged or cut off: `{name}` ends at byte {end} of {size}"
            raise problem("A530", message, file=path, help="copy or download the file again")


def _tensors(model: Any, path: Path) -> dict[str, Tensor]:
    """The model's weights; those of a tied head are the embedding's and left out."""
    found: dict[str, Tensor] = {}
    for name, weight in model.named_parameters():  # each shared weight once
        data = memoryview(weight.detach().contiguous().numpy()).cast("B")
        found[name] = Loaded(name, "F32", tuple(weight.shape), path, 0, len(data), data=data)
    return found


def _check_packages(path: Path) -> None:
    lacking = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if lacking:
        message = f"a GGUF file is read through transformers and gguf, and {', '.join(lacking)} is not installed"
        raise problem("A531", message, file=path, help="pip install 'attnc[hf]'")


@contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Without transformers' own progress bars, as it was before afterwards."""
    logging = transformers.utils.logging
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
