"""What is installed is what is in the rooms: source archive, wheel, and a run from elsewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

TOP = Path(__file__).parent.parent
ROOMS = ("dsl", "compiler", "codegen", "runtime", "specs")


@pytest.fixture(scope="module")
def files() -> list[Path]:
    """Files of the project: what git knows or would add, relative to the top."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=TOP,
        capture_output=True,
        text=True,
        check=True,
    )
    paths = (Path(name) for name in listed.stdout.split("\0") if name)
    return sorted({path for path in paths if os.path.lexists(TOP / path)})


def hook(folder: Path, name: str, out: Path) -> Path:
    """Runs one hook of the build backend, as pip does, and returns what it made."""
    out.mkdir()
    code = f"import sys; from setuptools import build_meta; build_meta.{name}(sys.argv[1])"
    run = subprocess.run([sys.executable, "-c", code, str(out)], cwd=folder, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    (made,) = out.iterdir()
    return made


@pytest.fixture(scope="module")
def wheel(files, tmp_path_factory):
    """The wheel of the source archive of a copy of the project."""
    folder = tmp_path_factory.mktemp("package")
    copy = folder / "copy"
    for path in files:
        (copy / path).parent.mkdir(parents=True, exist_ok=True)
        if (TOP / path).is_symlink():
            (copy / path).symlink_to((TOP / path).readlink())
        else:
            (copy / path).write_bytes((TOP / path).read_bytes())
    archive = hook(copy, "build_sdist", folder / "sdist")
    with tarfile.open(archive) as opened:
        opened.extractall(folder / "unpacked", filter="data")
    (unpacked,) = (folder / "unpacked").iterdir()
    return hook(unpacked, "build_wheel", folder / "wheel")


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """An empty folder into which the wheel alone was installed."""
    target = tmp_path_factory.mktemp("installed")
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", str(target), str(wheel)]
    subprocess.run(command, check=True)
    return target


def test_the_wheel_holds_every_file_of_the_rooms_and_nothing_else(files, wheel):
    expected = set()
    for path in files:
        if path.parts[0] in ROOMS:
            expected.add(Path("attnc", path).as_posix())
        elif path.parts[:2] == ("src", "attnc") and not (TOP / path).is_symlink():
            expected.add(Path(*path.parts[1:]).as_posix())
        elif path == Path("docs", "gpu.json"):
            expected.add("attnc/docs/gpu.json")
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert names == expected


def test_the_installed_package_checks_a_spec_of_its_own_from_another_folder(installed, tmp_path):
    code = """
import sys
sys.path.insert(0, sys.argv[1])
import attnc
from attnc.cli import main
assert attnc.__file__.startswith(sys.argv[1]), attnc.__file__
sys.argv = ["attnc", "check", sys.argv[1] + "/attnc/specs/gemma3.attn"]
main()
"""
    command = [sys.executable, "-c", code, str(installed)]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stderr) == (0, "")
    assert "gemma3.attn" in run.stdout


def pins() -> dict[str, str]:
    """The pinned packages by their canonical names."""
    lines = [line for line in (TOP / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    found = [re.fullmatch(r"([\w.-]+)==([\w.]+)", line) for line in lines]
    assert all(found), "a line that is no exact pin"
    named = {canonicalize_name(match[1]): match[2] for match in found if match}
    assert len(named) == len(lines), "a package pinned twice"
    return named


def own_needs() -> list[Requirement]:
    project = tomllib.loads((TOP / "pyproject.toml").read_text("utf-8"))["project"]
    texts = [*project["dependencies"], *(text for extra in project["optional-dependencies"].values() for text in extra)]
    return [Requirement(text) for text in texts]


def test_every_package_that_is_needed_is_pinned_once():
    pinned = pins()
    waiting, seen = own_needs(), set()
    while waiting:
        wanted = waiting.pop()
        key = (canonicalize_name(wanted.name), frozenset(wanted.extras))
        if key not in seen:
            seen.add(key)
            waiting += [needed for needed in map(Requirement, needs(wanted.name)) if holds(needed, wanted.extras)]
    names = {name for name, _ in seen}
    assert len(names) > 30
    ours = {
        name for name in names if not name.startswith(("nvidia", "cuda"))
    }  # torch itself pins the CUDA libraries that it brings
    assert ours <= set(pinned), ours - set(pinned)


def needs(package: str) -> list[str]:
    """What an installed package needs. Pictures are optional: matplotlib may be away, and is then pinned by itself."""
    try:
        return metadata.requires(package) or []
    except metadata.PackageNotFoundError:
        if package == "matplotlib":
            return []
        raise


def holds(needed: Requirement, extras: set[str]) -> bool:
    """Whether a requirement's marker holds here, for one of these extras or without one."""
    return needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in extras or {""})


def test_the_ranges_of_pyproject_hold_the_pins():
    pinned = pins()
    wrong = [str(wanted) for wanted in own_needs() if not wanted.specifier.contains(pinned[canonicalize_name(wanted.name)])]
    assert not wrong
