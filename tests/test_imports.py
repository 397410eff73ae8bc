"""The architecture as a table: which room may import which, and what may not be imported while starting up."""

from __future__ import annotations

import ast
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

TOP = Path(__file__).parent.parent

ROOMS = {
    "dsl": ("dsl", {"attnc.dsl"}, set()),
    "compiler": ("compiler", {"attnc.dsl", "attnc.compiler"}, {"pydantic", "networkx", "torch", "platformdirs"}),
    "codegen": (
        "codegen",
        {"attnc", "attnc.dsl", "attnc.compiler", "attnc.codegen", "attnc.runtime"},
        {"pydantic", "networkx", "jinja2", "torch", "triton", "safetensors", "filelock", "platformdirs"},
    ),
    "runtime": ("runtime", set(), {"torch", "triton", "safetensors", "flash_attn"}),
    "checkpoint": (
        "src/attnc/checkpoint",
        {"attnc.dsl", "attnc.compiler", "attnc.checkpoint"},
        {"pydantic", "torch", "safetensors", "transformers", "gguf", "numpy"},
    ),
    "lsp": ("src/attnc/lsp", {"attnc", "attnc.dsl", "attnc.compiler", "attnc.lsp"}, {"pygls", "lsprotocol"}),
    "bench": (
        "src/attnc/bench",
        {"attnc", "attnc.dsl", "attnc.compiler", "attnc.codegen", "attnc.runtime", "attnc.bench"},
        {"pydantic", "torch", "triton", "matplotlib", "platformdirs"},
    ),
    "tasks": ("src/attnc/tasks", {"attnc.dsl", "attnc.tasks"}, {"torch"}),
    "evaluate": (
        "src/attnc/evaluate",
        {"attnc", "attnc.dsl", "attnc.compiler", "attnc.runtime", "attnc.tasks", "attnc.evaluate"},
        {"pydantic", "torch", "tokenizers"},
    ),
    "train": (
        "src/attnc/train",
        {"attnc", "attnc.dsl", "attnc.compiler", "attnc.codegen", "attnc.runtime", "attnc.tasks", "attnc.train"},
        {"torch", "safetensors", "matplotlib", "tokenizers"},
    ),
    "tune": (
        "src/attnc/tune",
        {
            "attnc",
            "attnc.dsl",
            "attnc.compiler",
            "attnc.codegen",
            "attnc.runtime",
            "attnc.tasks",
            "attnc.evaluate",
            "attnc.bench",
            "attnc.tune",
        },
        {"pydantic", "torch", "safetensors", "numpy", "scipy", "matplotlib", "filelock"},
    ),
    "cli": (
        "src/attnc/cli",
        {
            "attnc",
            "attnc.dsl",
            "attnc.compiler",
            "attnc.codegen",
            "attnc.lsp",
            "attnc.checkpoint",
            "attnc.bench",
            "attnc.tasks",
            "attnc.evaluate",
            "attnc.train",
            "attnc.tune",
            "attnc.cli",
            "attnc.runtime.codes",
        },
        {"typer", "rich", "pydantic", "platformdirs", "torch", "jinja2", "tokenizers"},
    ),
}
"""Room: its folder, the packages of ours that it may import (`attnc` itself is the front door), and those of others."""

HEAVY = {"torch", "triton", "networkx", "jinja2", "transformers", "gguf", "rich", "pygls", "matplotlib"}
LIGHT_ROOMS = ("dsl", "compiler", "cli", "checkpoint")
GRAPH_FILES = {"compiler/graph.py", "compiler/passes.py", "compiler/verify.py"}
"""The layer graph is a networkx graph; no command imports these before it needs a graph."""


@dataclass(frozen=True)
class Import:
    """One imported module, as an absolute name; a relative one begins with a dot."""

    module: str
    line: int
    runs_at_start: bool


def imports(path: Path) -> list[Import]:
    found: list[Import] = []

    def visit(node: ast.AST, at_start: bool) -> None:
        match node:
            case ast.Import():
                found.extend(Import(alias.name, node.lineno, at_start) for alias in node.names)
            case ast.ImportFrom():
                module = "." * node.level + (node.module or "")
                found.append(Import(module, node.lineno, at_start))
                if module.startswith("attnc"):
                    found.extend(Import(f"{module}.{alias.name}", node.lineno, at_start) for alias in node.names)
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.Lambda():
                at_start = False
            case ast.If(test=ast.Name(id="TYPE_CHECKING")):
                for child in node.body:
                    visit(child, False)
                for child in node.orelse:
                    visit(child, at_start)
                return
        for child in ast.iter_child_nodes(node):
            visit(child, at_start)

    visit(ast.parse(path.read_text("utf-8")), True)
    return found


def files(room: str) -> list[Path]:
    found = sorted((TOP / ROOMS[room][0]).rglob("*.py"))
    assert found, room
    return found


def is_within(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_what_its_row_of_the_table_allows(room):
    folder, ours, others = ROOMS[room]
    wrong = []
    for path in files(room):
        for found in imports(path):
            top = found.module.split(".")[0]
            if top == "attnc":
                allowed = found.module in ours or any(is_within(found.module, room) for room in ours - {"attnc"})
            elif top == "":
                allowed = room == "runtime" and not escapes(path, found.module, TOP / folder)
            else:
                allowed = top in others or top in sys.stdlib_module_names
            if not allowed:
                wrong.append(f"{path.relative_to(TOP)}:{found.line} imports {found.module}")
    assert not wrong, "\n".join(wrong)


def escapes(path: Path, relative: str, room: Path) -> bool:
    """Whether a relative import leaves the room."""
    up = len(relative) - len(relative.lstrip("."))
    return not path.parents[up - 1].is_relative_to(room)


@pytest.mark.parametrize("room", LIGHT_ROOMS)
def test_nothing_heavy_is_imported_while_starting_up(room):
    wrong = []
    for path in files(room):
        name = path.relative_to(TOP).as_posix()
        for found in imports(path):
            top = found.module.split(".")[0]
            if found.runs_at_start and top in HEAVY and not (top == "networkx" and name in GRAPH_FILES):
                wrong.append(f"{name}:{found.line} imports {found.module}")
    assert not wrong, "\n".join(wrong)


def test_nothing_behind_the_waist_knows_a_kind_by_name():
    wrong = []
    for room in ("codegen", "runtime", "cli", "checkpoint"):
        for path in files(room):
            for found in imports(path):
                parts = found.module.split(".")
                if parts[:3] == ["attnc", "compiler", "mixers"] and len(parts) > 3 and is_kind(parts[3]):
                    wrong.append(f"{path.relative_to(TOP)}:{found.line} imports {found.module}")
    assert not wrong, "\n".join(wrong)


def is_kind(name: str) -> bool:
    """Whether a file of compiler/mixers is a kind's, not a formula that several share."""
    path = TOP / "compiler" / "mixers" / f"{name}.py"
    return path.exists() and "\nMIXER = " in path.read_text("utf-8")


def test_importing_attnc_imports_nothing_but_the_standard_library():
    code = "import sys; before = set(sys.modules); import attnc; print(*(set(sys.modules) - before))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {name for name in run.stdout.split() if name.split(".")[0] not in sys.stdlib_module_names} == {"attnc"}


def test_a_wrong_import_would_be_seen(tmp_path):
    assert is_kind("window")
    assert not is_kind("nothing")
    path = tmp_path / "example.py"
    lines = ["import torch", "def f():", "    import networkx", "if TYPE_CHECKING:", "    import rich"]
    lines += ["from attnc.compiler import spec", "from ..x import y"]
    path.write_text("\n".join(lines))
    assert [(found.module, found.runs_at_start) for found in imports(path)] == [
        ("torch", True),
        ("networkx", False),
        ("rich", False),
        ("attnc.compiler", True),
        ("attnc.compiler.spec", True),
        ("..x", True),
    ]
    assert escapes(TOP / "runtime" / "batch.py", "..x", TOP / "runtime")
    assert not escapes(TOP / "runtime" / "batch.py", ".x", TOP / "runtime")
