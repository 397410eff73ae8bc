"""Writing a built folder so that nothing is ever lost: beside first, then renamed; other people's files are never touched."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from attnc.codegen.problem import complaint
from attnc.dsl import SpecError

MANIFEST = "files"
"""The key of plan.json that lists every file of a built folder."""


def write(folder: Path, texts: Mapping[str, str], copies: Mapping[str, Path]) -> None:
    """Writes a whole folder: `texts` by relative path, `copies` from files elsewhere. Replaces an earlier build, and only that.

    Raises SpecError A510 when `folder` holds files that no build wrote, A511 when the disk refuses.
    """
    folder = folder.absolute()
    refuse_strangers(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.building-", dir=folder.parent))
    except OSError as problem:
        raise _disk(folder, problem) from problem
    try:
        _fill(beside, texts, copies)
        _swap(beside, folder)
    except OSError as problem:
        raise _disk(folder, problem) from problem
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def refuse_strangers(folder: Path) -> None:
    """Raises SpecError A510 unless `folder` is missing, empty, or holds what an earlier build wrote and nothing else."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise SpecError(
            [complaint("A510", f"`{folder.name}` is a file, not a folder", folder, "name another folder with `-o`")]
        )
    ours = built_files(folder)
    strangers = sorted(name for name in _files(folder) if name not in ours)
    if strangers:
        shown = ", ".join(f"`{name}`" for name in strangers[:3]) + (
            f" and {len(strangers) - 3} more" if len(strangers) > 3 else ""
        )
        message = f"the folder `{folder.name}` holds files that no build wrote: {shown}"
        raise SpecError(
            [complaint("A510", message, folder, "name another folder with `-o`, or move these files away yourself")]
        )


def built_files(folder: Path) -> set[str]:
    """The files that plan.json says a build wrote; none where there is no readable plan.json."""
    try:
        listed = json.loads((folder / "plan.json").read_text("utf-8"))[MANIFEST]
        return {str(name) for name in listed}
    except (OSError, ValueError, KeyError, TypeError):
        return set()


def _files(folder: Path) -> list[str]:
    """Relative paths of all files, without Python's own caches."""
    found = (path for path in folder.rglob("*") if path.is_symlink() or path.is_file())
    return [path.relative_to(folder).as_posix() for path in found if "__pycache__" not in path.parts]


def _fill(folder: Path, texts: Mapping[str, str], copies: Mapping[str, Path]) -> None:
    folder.chmod(0o755)
    for name, text in texts.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    for name, source in copies.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, path)


def _swap(beside: Path, folder: Path) -> None:
    """The new folder takes the old one's name; the old one is removed only after that."""
    if not folder.exists():
        os.replace(beside, folder)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{folder.name}.replaced-", dir=folder.parent))
    try:
        os.replace(folder, old / "folder")
    except OSError:
        old.rmdir()
        raise
    try:
        os.replace(beside, folder)
    except OSError:
        os.replace(old / "folder", folder)  # should this fail too, the old folder stays where it is
        old.rmdir()
        raise
    shutil.rmtree(old, ignore_errors=True)


def _disk(folder: Path, problem: OSError) -> SpecError:
    reason = (problem.strerror or str(problem)).lower()
    help_line = "free some space or name another folder with `-o`; what was there before is untouched"
    return SpecError([complaint("A511", f"the folder `{folder.name}` cannot be written: {reason}", folder, help_line)])
