"""The kernel files of a launch of fast weights: skeletons with their constants set, as for matrix states (scan.py)."""

from __future__ import annotations

import ast

from attnc.codegen.triton.emit import SKELETONS, fill, functions_of, statements, table
from attnc.codegen.triton.fast_blocks import blocks
from attnc.codegen.triton.known_bugs import refusals
from attnc.codegen.triton.scan import joined
from attnc.compiler.families import FAMILIES, FastWeights
from attnc.compiler.fast_providers import unkept, unstepped

NORMS = "WEIGHT_NORM"
"""The constant that parts of a skeleton from chunk to chunk ask for."""

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
            **({NORMS: "tl.constexpr(True)"} if kernel.weight_norm else {}),
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
    source = joined((SKELETONS / f"{skeleton}.py").read_text(encoding="utf-8"))
    text = fill(source if kernel.weight_norm or skeleton == STEP else without_norms(source), {}, every)
    met = refusals(text, rows)
    assert not met, f"{skeleton} would meet {', '.join(met)}"
    return text


def without_norms(source: str) -> str:
    """A skeleton without what keeps the norms of rows: the constant, arguments on lines that name it, branches that ask for it,
    and the functions of fast_rows.py. So rows that keep none have the text that they had before any did.
    """
    lines, tree = source.splitlines(), ast.parse(source)
    gone = {at for at, line in enumerate(lines) if line.startswith(f"{NORMS} = ") or line.endswith(f"  # {NORMS}")}
    helpers = functions_of((SKELETONS / "fast_rows.py").read_text(encoding="utf-8"))
    for one in statements(source):
        if one.function and one.name in helpers:
            gone.update(range(one.first, one.end + 2))  # with the empty lines after it
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == NORMS:
            assert node.end_lineno is not None
            begin = node.orelse[0].lineno - 1 if node.orelse else node.end_lineno
            gone.update(range(node.lineno - 1, begin))
            lines[begin : node.end_lineno] = [line[4:] for line in lines[begin : node.end_lineno]]
    return "\n".join(line for at, line in enumerate(lines) if at not in gone) + "\n"
