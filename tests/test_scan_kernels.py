"""Emitted kernels of matrix states as text, and what they use when compiled ahead."""

from __future__ import annotations

import ast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attnc.codegen.triton.emit import functions_of
from attnc.codegen.triton.scan import emit_scan
from attnc.codegen.triton.scan_blocks import WIDTHS, blocks
from attnc.compiler.families import FAMILIES, Recurrence

NAMES = FAMILIES["recurrence"]
TARGETS = ("sm_80", "sm_90", "sm_100", "gfx942")

recurrences = st.builds(
    Recurrence,
    decay=st.sampled_from(["none", "head", "scalar", "vector"]),
    update=st.sampled_from(["add", "delta"]),
    erase=st.sampled_from(["scalar", "vector"]),
    write=st.sampled_from(["scalar", "vector"]),
    key_width=st.integers(1, 256),
    value_width=st.integers(1, 256),
)


@given(st.sampled_from(NAMES), recurrences)
def test_an_emitted_file_stands_alone(skeleton: str, kernel: Recurrence) -> None:
    """It parses, imports torch and triton alone, calls only what it defines, and is the same twice."""
    text = emit_scan(skeleton, kernel)
    assert text == emit_scan(skeleton, kernel)
    tree = ast.parse(text)
    imported = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    assert imported == ["torch", "triton", "triton.language"]
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    called = {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    given = {"constants", "new"}  # an argument of `run`; a function within another
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
