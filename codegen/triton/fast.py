"""The kernel file of a launch of fast weights: a skeleton with its constants set, as for matrix states (scan.py)."""

from __future__ import annotations

from attnc.codegen.triton.emit import SKELETONS, fill, table
from attnc.codegen.triton.fast_blocks import blocks
from attnc.codegen.triton.known_bugs import refusals
from attnc.codegen.triton.scan import joined
from attnc.compiler.families import FAMILIES, FastWeights


def skeleton_of(kernel: FastWeights) -> str:
    """`fast_linear` for one map, `fast_maps` for two."""
    linear, maps = FAMILIES["fast"]
    return linear if kernel.depth == 1 else maps


def emit_fast(kernel: FastWeights, products: str | None = None) -> str:
    """The text of the kernel file. Same arguments, same bytes.

    products: how products of 16-bit inputs round, `tf32`, `tf32x3`, `bf16` or `ieee`; by itself as the skeleton says.
    """
    skeleton = skeleton_of(kernel)
    rows = blocks(skeleton, kernel)
    constants = {
        "KEY_WIDTH": repr(kernel.key_width),
        "VALUE_WIDTH": repr(kernel.value_width),
        "MOMENTUM": repr(kernel.momentum != "none"),
        "NORM": repr(kernel.norm),
        "RESIDUAL": repr(kernel.residual),
        **({"HIDDEN": repr(kernel.hidden)} if kernel.depth == 2 else {}),
        **({"PRODUCTS": repr({2: products, 4: "ieee"})} if products is not None else {}),
        "BLOCKS": table(rows),
    }
    text = fill(joined((SKELETONS / f"{skeleton}.py").read_text(encoding="utf-8")), {}, constants)
    met = refusals(text, rows)
    assert not met, f"{skeleton} would meet {', '.join(met)}"
    return text
