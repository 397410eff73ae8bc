"""Which tensors a spec needs, and whether a checkpoint has exactly these."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from attnc.checkpoint.problem import problem, some
from attnc.checkpoint.tensors import Tensor, same
from attnc.dsl.diagnostic import SpecError

READABLE = ("F64", "F32", "F16", "BF16")
"""Number formats that a built folder loads."""

TABLES = re.compile(r".*\.rotary_emb\.(inv_freq|cos_cached|sin_cached)|.*\.attn\.(masked_bias|bias)")
"""Tables that old checkpoints carry and every model computes for itself."""

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


def fit(found: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]], tie: bool, place: Path) -> tuple[Tensor, ...]:
    """The tensors of `expected` (name to shape), in its order. Everything that does not fit is said at once.

    Errors: A527 missing or left over, A528 another shape, A529 a number format that is not read.
    """
    found = {name: tensor for name, tensor in found.items() if not TABLES.fullmatch(name)}
    if tie and HEAD in found and EMBEDDING in found:
        found = _untied(found)
    errors = []
    missing = [name for name in expected if name not in found]
    if missing:
        total = f"{len(missing)} of {len(expected)} weights are missing"
        errors.append(problem("A527", f"{total}: {some(missing)}", file=place, help=_compare(missing, found, expected)))
    extra = [name for name in found if name not in expected]
    if extra:
        count = f"{len(extra)} weight{'s have' if len(extra) > 1 else ' has'} no place in the model"
        advice = "the configuration beside the weights describes another model"
        errors.append(problem("A527", f"{count}: {some(extra)}", file=place, help=advice))
    for name, shape in expected.items():
        errors += _one(found[name], shape) if name in found else []
    if errors:
        raise SpecError([diagnostic for error in errors for diagnostic in error.diagnostics])
    return tuple(found[name] for name in expected)


def _untied(found: dict[str, Tensor]) -> dict[str, Tensor]:
    """A tied checkpoint may hold the head once more, if it is the same."""
    if not same(found[HEAD], found[EMBEDDING]):
        message = f"{HEAD} differs from {EMBEDDING}, although tie_word_embeddings says that they are one"
        raise problem("A527", message, file=found[HEAD].file, help="set tie_word_embeddings to false in the configuration")
    return {name: tensor for name, tensor in found.items() if name != HEAD}


def _one(tensor: Tensor, shape: tuple[int, ...]) -> list[SpecError]:
    errors = []
    if tensor.shape != shape:
        message = f"{tensor.name} has shape {list(tensor.shape)}, and the configuration says {list(shape)}"
        errors.append(problem("A528", message, file=tensor.file))
    if tensor.dtype not in READABLE:
        message = f"{tensor.name} has number format {tensor.dtype}; {', '.join(READABLE)} are read"
        errors.append(
            problem("A529", message, file=tensor.file, help="quantised checkpoints are not read: take the original one")
        )
    return errors


def _compare(missing: list[str], found: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]]) -> str:
    if missing == [HEAD]:
        return "a checkpoint without a head is tied: set tie_word_embeddings to true in the configuration"
    if len(missing) == len(expected) and found:
        return f"the checkpoint's names are other ones: {some(sorted(found))}"
    return "is a shard of the checkpoint missing?"
