"""`import_checkpoint`: from a Hugging Face folder or a GGUF file to NAME.attn and NAME/."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Literal

from attnc.checkpoint import folder as huggingface
from attnc.checkpoint import place, tokenizer
from attnc.checkpoint.adapters import adapt
from attnc.checkpoint.body import body
from attnc.checkpoint.config import Config
from attnc.checkpoint.problem import problem
from attnc.checkpoint.report import ImportReport
from attnc.checkpoint.spec_text import spec_text
from attnc.checkpoint.tensors import Tensor, write
from attnc.checkpoint.weights import fit
from attnc.compiler.data import to_json
from attnc.compiler.spec import Spec
from attnc.dsl.parse import parse
from attnc.dsl.source import Source

WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class Checkpoint:
    """What was found at a path, whatever its form. `texts`: the folder with the tokenizer's files."""

    form: Literal["huggingface", "gguf"]
    name: str
    config: Config
    tensors: Mapping[str, Tensor]
    texts: Path


def import_checkpoint(path: Path, out: Path) -> ImportReport:
    """Make the spec `out` (NAME.attn) and the folder NAME/ beside it from the checkpoint at `path`.

    `path` is a Hugging Face folder or a GGUF file. NAME/ holds model.safetensors in the checkpoint's number format (float32
    for GGUF), the tokenizer's files, chat_template.jinja, generation_config.json and import.json. Nothing is left behind on an
    error, and only an earlier import is ever replaced.

    Errors: SpecError with the codes of attnc.checkpoint.CODES, and those of the checker for sizes that no spec may have.
    """
    spec, folder = out, out.with_suffix("")
    if out.suffix != ".attn":
        raise problem("A532", f"`{out.name}` does not end in .attn", file=out, help=f"write -o {out.name}.attn")
    place.refuse_strangers(spec, folder)
    with tempfile.TemporaryDirectory(prefix="attnc-import-") as scratch:
        return _import(_open(path, Path(scratch)), path, spec, folder)


def _open(path: Path, scratch: Path) -> Checkpoint:
    if path.is_dir():
        config = huggingface.configuration(path)
        return Checkpoint("huggingface", path.resolve().name, config, huggingface.tensors(path), path)
    if not path.is_file():
        advice = "a Hugging Face folder or a .gguf file is expected"
        raise problem("A520", f"there is no checkpoint at `{path}`", file=path, help=advice)
    from attnc.checkpoint import gguf

    found = gguf.load(path, scratch)
    return Checkpoint("gguf", found.name, found.config, found.tensors, scratch)


def _import(found: Checkpoint, path: Path, spec: Path, folder: Path) -> ImportReport:
    from attnc.compiler.check import check

    text = spec_text(spec.stem, f"{found.name}, imported from {path.name}.", body(found.config))
    checked = check(parse(Source(str(spec), text)))
    tensors = fit(adapt(found.tensors, found.config), shapes(checked), checked.model.tie, path)
    with place.beside(folder) as made:
        size = write(made / WEIGHTS, tensors)
        tokenizer.copy(found.texts, made, found.config)
        files = tuple(sorted(file.name for file in made.iterdir()))
        report = ImportReport(
            source=str(path),
            form=found.form,
            model_type=found.config.get("model_type"),
            spec=str(spec),
            folder=str(folder),
            layers=checked.model.layers,
            parameters=sum(prod(tensor.shape) for tensor in tensors),
            weight_bytes=size,
            dtype="+".join(sorted({tensor.dtype for tensor in tensors})),
            tie=checked.model.tie,
            tokenizer=tokenizer.TOKENIZER in files,
            chat_template=tokenizer.TEMPLATE in files,
            files=files,
            digest=place.digest(text),
        )
        (made / place.REPORT).write_text(to_json(report, indent=2) + "\n", encoding="utf-8")
        place.put(made, folder, spec, text)
    return report


def shapes(spec: Spec) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that a spec's model learns."""
    from attnc.compiler.graph import build
    from attnc.compiler.parameters import parameters

    return {weight.name: weight.shape for weight in parameters(spec, build(spec))}
