"""Blocks of the kernels over lists of chosen keys that are worth a measurement."""

from __future__ import annotations

from attnc.codegen.tune.table import Blocks

FILES = ("lists_attend", "lists_backward", "lists_choose")


def is_list(file: str) -> bool:
    """Whether a kernel file is one over lists."""
    return file.rpartition("_")[0] in FILES


def list_candidates(default: Blocks) -> tuple[Blocks, ...]:
    """The default, and what differs from it in one number, or in the shape of its tile. What does not fit is seen when it is
    compiled.
    """
    lines, keys, warps, stages = default
    found = [(n, k, warps, stages) for n, k in ((lines, 2 * keys), (lines, keys // 2), (2 * lines, keys), (lines // 2, keys))]
    found += [(lines, keys, 12 - warps, stages), (lines, keys, warps, stages + 1), (lines, keys, warps, stages - 1)]
    found += [(2 * lines, keys, 8, stages)]
    fits = [one for one in found if min(one[:2]) >= 16 and max(one[:2]) <= 128 and one[2] in (4, 8) and 1 <= one[3] <= 5]
    return tuple(dict.fromkeys([default, *fits]))
