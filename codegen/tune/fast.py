"""Blocks of the kernels of fast weights that are worth a measurement."""

from __future__ import annotations

from attnc.codegen.tune.table import Blocks
from attnc.compiler.families import FAMILIES

MOST_TOKENS, MOST_UNITS = 64, 128


def is_fast(file: str) -> bool:
    """Whether a kernel file is one of fast weights."""
    return file.rpartition("_")[0] in FAMILIES["fast"]


def fast_candidates(default: Blocks) -> tuple[Blocks, ...]:
    """The default, and what differs from it in one number, or in units and warps. What does not fit is seen when it is
    compiled.
    """
    tokens, units, warps, stages = default
    other = 12 - warps if warps in (4, 8) else 4
    found = [(tokens, 2 * units, warps, stages), (tokens, units // 2, warps, stages), (tokens, units, other, stages)]
    found += [(2 * tokens, units, warps, stages), (tokens // 2, units, warps, stages)]
    found += [(tokens, 2 * units, 8, stages), (tokens, units // 2, 4, stages), (tokens, units, 2, stages)]
    fits = [one for one in found if 16 <= one[0] <= MOST_TOKENS and 16 <= one[1] <= MOST_UNITS]
    return tuple(dict.fromkeys([default, *fits]))
