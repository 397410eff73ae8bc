"""Prints how many emitted kernels were not yet compared with the reference on a GPU: those without a row in docs/gpu.json.

A kernel is known by the SHA-256 of its text. `make gpu` writes the rows; the emitted kernels are the accepted ones of
tests/golden.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

TOP = Path(__file__).parent.parent
ROWS = TOP / "docs" / "gpu.json"
EMITTED = TOP / "tests" / "golden"


def digest(text: str) -> str:
    """What a kernel is known by."""
    return hashlib.sha256(text.encode()).hexdigest()


def verified(rows: Path) -> set[str]:
    """The digests of all kernels that a GPU has run right."""
    if not rows.exists():
        return set()
    return {row["sha256"] for row in json.loads(rows.read_text("utf-8"))["kernels"]}


def kernels(folder: Path) -> dict[str, Path]:
    """Every different emitted kernel by its digest."""
    found = (path for path in sorted(folder.rglob("*.py")) if "@triton.jit" in path.read_text("utf-8"))
    return {digest(path.read_text("utf-8")): path for path in found}


def main() -> None:
    """One line, and one for each kernel that waits for a GPU."""
    emitted, known = kernels(EMITTED), verified(ROWS)
    waiting = [path for name, path in emitted.items() if name not in known]
    print(f"{len(waiting)} of {len(emitted)} emitted kernels have no row in docs/gpu.json")
    for path in waiting:
        print(f"  {path.relative_to(TOP)}")


if __name__ == "__main__":
    main()
