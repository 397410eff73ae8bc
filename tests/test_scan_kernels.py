"""Emitted kernels of matrix states as text, and what they use when compiled ahead."""

from __future__ import annotations

import ast

import pytest

from attnc.codegen.triton.emit import functions_of
from attnc.codegen.triton.scan import emit_scan, files
from attnc.codegen.triton.scan_blocks import WIDTHS, blocks
from attnc.compiler.families import FAMILIES, Recurrence

NAMES = FAMILIES["recurrence"]
TARGETS = ("sm_80", "sm_90", "sm_100", "gfx942")

FORMS = [
    Recurrence(decay, update, strengths, strengths, key_width=width, value_width=257 - width)
    for width, decay, update, strengths in (
        (256, "none", "add", "scalar"),
        (1, "head", "delta", "vector"),
        (80, "scalar", "delta", "scalar"),
        (128, "scalar", "add", "scalar"),
        (17, "vector", "add", "scalar"),
        (64, "vector", "delta", "vector"),
    )
]


@pytest.mark.parametrize("kernel", FORMS, ids=str)
@pytest.mark.parametrize("skeleton", NAMES)
def test_an_emitted_file_stands_alone(skeleton: str, kernel: Recurrence) -> None:
    """It parses, imports torch and triton alone, calls only what it defines, and is the same twice."""
    text = emit_scan(skeleton, kernel)
    assert text == emit_scan(skeleton, kernel)
    tree = ast.parse(text)
    imported = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    assert imported == ["torch", "triton", "triton.language"]
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    called = {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    given = {"constants", "new", "rows"}  # an argument of `run`; functions within others
    assert called <= set(functions_of(text)) | given | {"max", "min", "len", "tuple", "zip"}
    assert max(map(len, text.splitlines())) <= 128


@pytest.mark.parametrize("skeleton", NAMES)
def test_all_kernels_of_a_launch_have_the_same_chunks(skeleton: str) -> None:
    for width in WIDTHS:
        for update in ("add", "delta"):
            kernel = Recurrence("scalar", update, key_width=width, value_width=width)
            rows = blocks(skeleton, kernel)
            assert set(rows) == {(name, size) for name in (*TARGETS, "any") for size in (2, 4)}
            if skeleton != "scan_step" and (update == "delta" or skeleton != "scan_chunks"):
                assert {key: row[0] for key, row in rows.items()} == {
                    key: row[0] for key, row in blocks("scan_forward", kernel).items()
                }


COMPILED = [(Recurrence("scalar", "delta", key_width=128, value_width=128), target, "bf16") for target in ("sm_90", "gfx942")]
COMPILED += [(Recurrence("vector", "delta", key_width=128, value_width=128), "sm_80", "bf16")]
COMPILED += [(Recurrence("scalar", key_width=64, value_width=64), "sm_90", "bf16")]
COMPILED += [(Recurrence("vector", key_width=64, value_width=64), "sm_90", "fp32")]


LEFT_OVER = {("3.9", "sweep_kernel"): 104, ("3.9", "gradients_kernel"): 76, ("3.9", "step_kernel"): 4}
"""Bytes of a thread of the gated delta rule's kernels for sm_90 at width 128: their blocks are those that a GPU ran right with
triton 3.6, and later versions take more registers for them.
"""


@pytest.mark.triton
@pytest.mark.parametrize(("kernel", "target", "dtype"), COMPILED, ids=str)
def test_compiled_ahead_nothing_spills(kernel: Recurrence, target: str, dtype: str) -> None:
    import triton

    from attnc.codegen.triton.compile import SHARED_LIMIT, compile_ahead

    release = triton.__version__.rpartition(".")[0]
    known = (kernel, target) == (COMPILED[0][0], "sm_90")
    for text in files(kernel).values():
        for used in compile_ahead(text, target, dtype):
            assert used.spills <= (LEFT_OVER.get((release, used.kernel), 0) if known else 0), used
            assert used.shared <= SHARED_LIMIT[target], used
