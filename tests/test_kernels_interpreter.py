"""Runs every test of tests/interpreter with TRITON_INTERPRET=1, in processes of their own: Triton reads it when imported."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.triton
HERE = Path(__file__).parent
TOGETHER = 10
"""Tests that one process runs: to begin with torch and triton takes it as long as a small test, 6 seconds of the processor."""


def groups() -> list[list[str]]:
    """The tests of tests/interpreter, a few at a time."""
    found: list[str] = []
    for file in sorted((HERE / "interpreter").glob("*.py")):
        nodes = ast.parse(file.read_text(encoding="utf-8")).body
        names = [node.name for node in nodes if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")]
        found += [f"{file.name}::{name}" for name in names]
    return [found[n : n + TOGETHER] for n in range(0, len(found), TOGETHER)]


@pytest.mark.parametrize("tests", groups(), ids=" ".join)
def test_in_the_interpreter(tests: list[str]) -> None:
    places = [f"tests/interpreter/{test}" for test in tests]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "-p", "no:cacheprovider", "--durations=3", *places]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    run = subprocess.run(command, cwd=HERE.parent, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
    summary = run.stdout.strip().splitlines()[-1]
    passed = re.fullmatch(r"(\d+) passed in .*", summary)  # nothing skipped, nothing deselected
    assert passed is not None, run.stdout[-2000:]
    assert int(passed[1]) >= len(tests), run.stdout[-2000:]


def test_there_are_tests_to_run() -> None:
    assert sum(map(len, groups())) >= 40
