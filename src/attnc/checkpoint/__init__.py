"""Checkpoints of the Llama family become a spec and, beside it, weights under Llama's names, tokenizer and chat template."""

from __future__ import annotations

from attnc.checkpoint.codes import CODES
from attnc.checkpoint.load import import_checkpoint
from attnc.checkpoint.report import ImportReport

__all__ = ["CODES", "ImportReport", "import_checkpoint"]
