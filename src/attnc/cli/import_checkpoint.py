"""`attnc import`: a checkpoint becomes a spec and, beside it, its weights, tokenizer and chat template."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from attnc.cli.options import Json
from attnc.cli.output import bytes_text, note, print_json, print_pairs

if TYPE_CHECKING:
    from attnc.checkpoint import ImportReport


def import_checkpoint(
    path: Annotated[
        Path, typer.Argument(metavar="PATH", help="A Hugging Face folder with safetensors, or a GGUF file.", show_default=False)
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="NAME.attn", help="The spec; the weights go into NAME/.")],
    json: Json = False,
) -> None:
    """Turn a Llama-like checkpoint into a spec and weights."""
    from attnc import checkpoint

    note(f"reading {path}")
    report = checkpoint.import_checkpoint(path, out)
    if json:
        print_json(report)
    else:
        _print(report)


def _print(report: ImportReport) -> None:
    rows = [
        ("spec", report.spec),
        ("weights", f"{report.folder}/ ({report.parameters:,} parameters, {report.dtype}, {bytes_text(report.weight_bytes)})"),
        ("model", f"{report.model_type}, {report.layers} layers{', head tied to the embedding' if report.tie else ''}"),
        (
            "tokenizer",
            {True: "yes", False: "none found"}[report.tokenizer] + (", with a chat template" if report.chat_template else ""),
        ),
    ]
    print_pairs(rows)
    note(f"next: attnc build {report.spec} -o DIR --weights {report.folder}")
