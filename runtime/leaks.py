"""Uses that a model refuses, since what content chooses would leak or change: compiler/causality.py finds them in the spec."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from .batch import Batch


class LeakError(RuntimeError):
    """A call would see ahead. A301: in training; A302: read in chunks; A303: read on top of a cached prefix."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code


@dataclass(frozen=True)
class Refused:
    """Why a use is refused; pieces that begin and end at multiples of `multiple` tokens are allowed all the same."""

    code: str
    reason: str
    multiple: int | None = None


def refuse(refused: Mapping[str, Refused], batch: Batch) -> None:
    """Raises LeakError where a call is a use that is refused: `training`, `chunked_prefill` or `prefix_cache`."""
    if not refused:
        return
    if batch.phase == "train" and "training" in refused:
        one = refused["training"]
        help_line = "call under torch.no_grad() to read without training, or accept it in the spec: `selection = noncausal`"
        raise LeakError(one.code, f"training would see ahead: {one.reason}; {help_line}")
    if batch.phase != "prefill":
        return
    for past, size, total in zip(batch.pasts, batch.sizes, batch.totals, strict=True):
        use, what = ("chunked_prefill", "a prompt in chunks") if past + size < total else ("prefix_cache", "a cached prefix")
        one_of = refused.get(use)
        pieces = (past, past + size if past + size < total else 0)
        if one_of is None or not size or not any(piece % (one_of.multiple or math.inf) for piece in pieces):
            continue
        whole = f"; pieces of multiples of {one_of.multiple} tokens are as the whole" if one_of.multiple else ""
        raise LeakError(one_of.code, f"{what} would change what is chosen: {one_of.reason}{whole}")
