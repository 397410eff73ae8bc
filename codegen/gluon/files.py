"""Which kernels of a launch are in Gluon, what their files are called, and their texts; the others are the portable ones."""

from __future__ import annotations

from attnc.codegen.gluon import backward, emit
from attnc.codegen.triton import emit as triton
from attnc.compiler.families import FAMILIES, Softmax

IN_GLUON = {"softmax_prefill": emit.PREFILL, **backward.FILES}
"""Skeleton -> what its file in Gluon is called, and its rows in docs/gpu.json."""


def names(kernel: Softmax) -> tuple[str, ...]:
    """What the files of a launch with kernels in Gluon are called, in the order of the family's skeletons."""
    own = IN_GLUON if backward.fits(kernel) else {"softmax_prefill": emit.PREFILL}
    return tuple(own.get(skeleton, skeleton) for skeleton in FAMILIES["softmax"])


def text(name: str, kernel: Softmax) -> str:
    """The text of the file of this name. Same arguments, same bytes."""
    if name == emit.PREFILL:
        return emit.emit(kernel)
    skeleton = next((skeleton for skeleton, file in backward.FILES.items() if file == name), None)
    return triton.emit(name, kernel) if skeleton is None else backward.emit(skeleton, kernel)
