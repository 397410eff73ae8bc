"""One layer of a checkpoint, as the language says it."""

from __future__ import annotations

from dataclasses import dataclass

from attnc.checkpoint.rope import Rope


@dataclass(frozen=True)
class Row:
    """One layer: its mixer as the language writes it, and its positions."""

    keys: str
    rope: Rope
