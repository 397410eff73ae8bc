"""What all tests share: golden files, hypothesis profiles, and a guard over how rooms are imported.

`golden("name", text)` compares text with tests/golden/<folder>/name; `--accept` writes today's text instead. The folder comes
from the test file: test_dsl_errors.py has tests/golden/dsl/errors.
"""

from __future__ import annotations

import difflib
import gc
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

os.environ["ATTNC_DATA_DIR"] = "/nonexistent"  # no test builds with blocks that somebody tuned
os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported: small tensors, several workers on few cores

gc.set_threshold(50_000)  # a full collection looks at all that a worker holds of earlier tests: a second and more

HERE = Path(__file__).parent
os.environ["ATTNC_CONFIG_DIR"] = str(HERE / "nothing")  # tables that a user measured would change prices
ROOMS = ("dsl", "compiler", "codegen", "runtime")

# Shared machines stall: a test that is slow now and then is not wrong. The same examples are drawn in every run of `ci`.
settings.register_profile("quick", max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", settings.get_profile("quick"), derandomize=True)
settings.register_profile("thorough", settings.get_profile("quick"), max_examples=2000)
settings.load_profile("ci" if os.environ.get("CI") else "quick")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--accept", action="store_true", help="write golden files anew from today's output")


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    folder = HERE / "golden" / request.path.stem.removeprefix("test_").replace("_", "/", 1)

    def compare(name: str, text: str) -> None:
        path = folder / name
        if request.config.getoption("--accept"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            return
        if not path.exists():
            pytest.fail(f"no golden file {path.relative_to(HERE)} (--accept writes it)", pytrace=False)
        want = path.read_text("utf-8")
        if text != want:
            diff = difflib.unified_diff(want.splitlines(), text.splitlines(), str(path.relative_to(HERE)), "now", lineterm="")
            pytest.fail("\n".join(["golden file differs (--accept to keep the new text)", *diff]), pytrace=False)

    return compare


@pytest.fixture
def attnc_run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs a command here: (exit code, stdout, stderr)."""
    from attnc.cli import invoke

    def run(*arguments: object) -> tuple[int, str, str]:
        code = invoke([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture(autouse=True)
def rooms_are_imported_through_the_front_door() -> Iterator[None]:
    """`import dsl` beside `import attnc.dsl` would make two classes of one name."""
    yield
    plain = [room for room in ROOMS if room in sys.modules]
    assert not plain, f"imported without `attnc.`: {plain}"
