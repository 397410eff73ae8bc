"""GPU tests are deselected where there is no GPU; those that ran write docs/gpu.json.

A module's `turn(item)` orders its tests: those of kernels that wait for a row first. ATTNC_SHARD=1/3 is the second of three
processes, each of which has all tests of a kernel; after ATTNC_SECONDS no test begins, and what ran is written.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from attnc.codegen.triton.verified import Record
from attnc.compiler.data import from_json

TOP = Path(__file__).parents[2]
ROWS = TOP / "docs" / "gpu.json"
GPU = torch.cuda.is_available()
done: dict[tuple[str, str, str], dict[str, Any]] = {}
failed: set[str] = set()


def pytest_configure(config: pytest.Config) -> None:
    if GPU:  # warnings of a driver or another version of torch are not ours
        config.addinivalue_line("filterwarnings", "default")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    here = [item for item in items if Path(__file__).parent in item.path.parents]
    for item in here:
        item.add_marker(pytest.mark.gpu)
    if not GPU and here:
        config.hook.pytest_deselected(items=here)
        items[:] = [item for item in items if item not in here]
        return
    items.sort(key=lambda item: getattr(getattr(item, "module", None), "turn", lambda _: (0,))(item))
    own, processes = map(int, os.environ.get("ATTNC_SHARD", "0/1").split("/"))
    others = [item for item in here if zlib.crc32(kernel_name(item).encode()) % processes != own]
    config.hook.pytest_deselected(items=others)
    items[:] = [item for item in items if item not in others]


def kernel_name(item: pytest.Item) -> str:
    """Of the launch that a test compares, without its skeleton; the test's own where it compares none by name."""
    name = str((getattr(item, "callspec", None) and item.callspec.params.get("name")) or item.name)
    return name.partition("-")[2] if name.startswith("softmax_") else name


BEGAN = time.monotonic()


def pytest_runtest_setup(item: pytest.Item) -> None:
    if time.monotonic() - BEGAN > float(os.environ.get("ATTNC_SECONDS", "inf")):
        item.session.shouldstop = "ATTNC_SECONDS are over"
        pytest.skip("ATTNC_SECONDS are over")


@pytest.fixture
def record() -> Iterator[Callable[..., None]]:
    """record(skeleton, sha256, constants, dtype): the kernel is being compared; record(..., errors): it was right."""
    pending: set[str] = set()

    def note(
        skeleton: str, sha256: str, constants: dict[str, Any], dtype: torch.dtype, errors: tuple[float, float] | None = None
    ) -> None:
        if errors is None:
            pending.add(sha256)
            return
        pending.discard(sha256)
        key = (skeleton, sha256, str(dtype).removeprefix("torch."))
        row = done.setdefault(key, {"constants": constants, "cases": 0, "error": 0.0, "torch_error": 0.0})
        row["cases"] += 1
        row["error"] = max(row["error"], errors[0])
        row["torch_error"] = max(row["torch_error"], errors[1])

    yield note
    failed.update(pending)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Rows of this run replace the same kernels' rows of the same device; a kernel that failed anywhere has none."""
    if not done:
        return
    machine = {
        "device": torch.cuda.get_device_name(),
        "capability": "sm_{}{}".format(*torch.cuda.get_device_capability()),
        "torch": torch.__version__,
        "triton": __import__("triton").__version__,
        "commit": commit(),
    }
    rows = [
        {**machine, "skeleton": skeleton, "sha256": sha256, "dtype": dtype, **row}
        for (skeleton, sha256, dtype), row in done.items()
        if sha256 not in failed
    ]
    old = json.loads(ROWS.read_text("utf-8"))["kernels"] if ROWS.exists() else []
    touched = {(machine["device"], sha256) for _, sha256, _ in done}
    kept = [row for row in old if (row["device"], row["sha256"]) not in touched]
    kept += rows
    kept.sort(key=lambda row: (row["device"], row["skeleton"], json.dumps(row["constants"]), row["dtype"], row["sha256"]))
    text = json.dumps({"schema_version": 1, "kernels": kept}, indent=1) + "\n"
    from_json(Record, text)
    ROWS.parent.mkdir(exist_ok=True)
    ROWS.write_text(text, encoding="utf-8")


def commit() -> str:
    """The commit under test: of git, or ATTNC_COMMIT where the tree came without its history."""
    run = subprocess.run(["git", "rev-parse", "HEAD"], cwd=TOP, capture_output=True, text=True, check=False)
    return run.stdout.strip() if run.returncode == 0 else os.environ.get("ATTNC_COMMIT", "unknown")
