"""Runs every test of tests/interpreter with TRITON_INTERPRET=1, each in a process of its own: Triton reads it when imported."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.triton
HERE = Path(__file__).parent
TESTS = [
    f"{file.name}::{node.name}"
    for file in sorted((HERE / "interpreter").glob("*.py"))
    for node in ast.parse(file.read_text(encoding="utf-8")).body
    if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
]


@pytest.mark.parametrize("test", TESTS)
def test_in_the_interpreter(test: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "-p", "no:cacheprovider", f"tests/interpreter/{test}"]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    run = subprocess.run(command, cwd=HERE.parent, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
    assert "1 passed" in run.stdout, run.stdout[-2000:]


def test_there_are_tests_to_run() -> None:
    assert len(TESTS) >= 8
