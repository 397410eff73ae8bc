"""The kernel files of a launch of fast weights: skeletons with their constants set, as for matrix states (scan.py)."""

from __future__ import annotations

from attnc.codegen.triton.emit import SKELETONS, fill, table
from attnc.codegen.triton.fast_blocks import blocks
from attnc.codegen.triton.known_bugs import refusals
from attnc.codegen.triton.scan import joined
from attnc.compiler.families import FAMILIES, FastWeights
from attnc.compiler.fast_providers import unkept, unstepped

LINEAR, MAPS, STEP = FAMILIES["fast"]


def skeleton_of(kernel: FastWeights) -> str:
    """`fast_linear` for one map, `fast_maps` for more."""
    return LINEAR if kernel.hidden == 0 else MAPS


def files(kernel: FastWeights) -> dict[str, str]:
    """Skeleton -> text of every file that a launch can have: from chunk to chunk, then token by token."""
    found = {skeleton_of(kernel): emit_fast(kernel)} if unkept(kernel) is None else {}
    return found | ({STEP: emit_step(kernel)} if unstepped(kernel) is None else {})


def emit_fast(kernel: FastWeights, products: str | None = None) -> str:
    """The text of the file that goes from chunk to chunk. Same arguments, same bytes.

    products: how products of 16-bit inputs round, `tf32`, `tf32x3`, `bf16` or `ieee`; by itself as the skeleton says.
    """
    return _emitted(
        skeleton_of(kernel),
        kernel,
        {
            "MOMENTUM": repr(kernel.momentum != "none"),
            **({"HIDDEN": repr(kernel.hidden)} if kernel.hidden else {}),
            **({"PRODUCTS": repr({2: products, 4: "ieee"})} if products is not None else {}),
        },
    )


def emit_step(kernel: FastWeights) -> str:
    """The text of the file that goes token by token."""
    forms = ("head" if rate == "number" else rate for rate in (kernel.lr, kernel.momentum, kernel.decay))
    return _emitted(
        STEP,
        kernel,
        {
            "UNITS": repr(kernel.hidden or kernel.key_width),
            "MAPS": repr(3 if kernel.gated else kernel.depth),
            "AFTER_WRITE": repr(kernel.after_write),
            "WEIGHT_NORM": repr(kernel.weight_norm),
            "RATES": repr(tuple(forms)),
        },
    )


def _emitted(skeleton: str, kernel: FastWeights, constants: dict[str, str]) -> str:
    rows = blocks(skeleton, kernel)
    every = {
        "KEY_WIDTH": repr(kernel.key_width),
        "VALUE_WIDTH": repr(kernel.value_width),
        "NORM": repr(kernel.norm),
        "RESIDUAL": repr(kernel.residual),
        **constants,
        "BLOCKS": table(rows),
    }
    text = fill(joined((SKELETONS / f"{skeleton}.py").read_text(encoding="utf-8")), {}, every)
    met = refusals(text, rows)
    assert not met, f"{skeleton} would meet {', '.join(met)}"
    return text
