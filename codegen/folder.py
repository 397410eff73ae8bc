"""Writing a built folder so that nothing is ever lost: beside first, then renamed; other people's files are never touched."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from attnc.codegen.problem import complaint
from attnc.dsl import SpecError

MANIFEST = "files"
"""The key of plan.json that lists every file of a built folder."""

AT_FDCWD, RENAME_EXCHANGE = -100, 2
"""Of Linux's renameat2: paths as they are, and both names change places."""


Made = Mapping[str, Callable[[Path], None]]
"""Files by relative path, each with a function that writes it to the path that it is given."""


def write(folder: Path, texts: Mapping[str, str], copies: Mapping[str, Path], made: Made | None = None) -> None:
    """Writes a whole folder: `texts` by relative path, `copies` from files elsewhere, and what is `made` on the spot.

    Replaces an earlier build, and only that. Raises SpecError A510 when `folder` holds files that no build wrote, A511 when
    the disk refuses.
    """
    folder = folder.resolve()
    refuse_strangers(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.building-", dir=folder.parent))
    except OSError as problem:
        raise _disk(folder, problem) from problem
    try:
        _fill(beside, texts, copies, made or {})
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
    """Relative paths of all that is no folder, without Python's own caches."""
    found = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    return [path.relative_to(folder).as_posix() for path in found if "__pycache__" not in path.parts]


def _fill(folder: Path, texts: Mapping[str, str], copies: Mapping[str, Path], made: Made) -> None:
    folder.chmod(0o755)
    for name, text in texts.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    for name, source in copies.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, path)
    for name, make in made.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        make(path)


def _swap(beside: Path, folder: Path) -> None:
    """The new folder takes the old one's name, and whoever dies in between leaves one of them there; the old one is removed.

    Where the system cannot exchange two names at once, the old folder is away for a moment.
    """
    if not folder.exists():
        os.replace(beside, folder)
        return
    if _exchanged(beside, folder):
        return  # what lies beside now is the old folder
    old = Path(tempfile.mkdtemp(prefix=f".{folder.name}.replaced-", dir=folder.parent))
    try:
        os.replace(folder, old / "folder")
    except OSError:
        old.rmdir()
        raise
    try:
        os.replace(beside, folder)
    except BaseException:
        os.replace(old / "folder", folder)  # should this fail too, the old folder stays where it is
        old.rmdir()
        raise
    shutil.rmtree(old, ignore_errors=True)


def _exchanged(one: Path, other: Path) -> bool:
    """Exchanges the names of two folders in one step (Linux); False where this system or file system cannot."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    if rename(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
        return False
    raise OSError(code, os.strerror(code))


def _disk(folder: Path, problem: OSError) -> SpecError:
    reason = (problem.strerror or str(problem)).lower()
    help_line = "free some space or name another folder with `-o`; what was there before is untouched"
    return SpecError([complaint("A511", f"the folder `{folder.name}` cannot be written: {reason}", folder, help_line)])
