"""What an import did."""

from __future__ import annotations

from typing import Literal

from attnc.compiler.value import Value


class ImportReport(Value):
    """Printed by `attnc import`, and kept as import.json beside the weights.

    `files`: what the import wrote into `folder`; `digest`: SHA-256 of the spec as it was written. Both tell what a later import
    of the same name may replace.
    """

    schema_version: Literal[1] = 1
    source: str
    form: Literal["huggingface", "gguf"]
    model_type: str
    spec: str
    folder: str
    layers: int
    parameters: int
    weight_bytes: int
    dtype: str
    tie: bool
    tokenizer: bool
    chat_template: bool
    files: tuple[str, ...]
    digest: str
