"""Where an import goes: NAME.attn and the folder NAME/ beside it, written beside first, then renamed."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import ValidationError

from attnc.checkpoint.problem import problem, some
from attnc.checkpoint.report import ImportReport
from attnc.compiler.data import from_json

REPORT = "import.json"


def digest(text: str) -> str:
    """SHA-256 of a spec's text."""
    return hashlib.sha256(text.encode()).hexdigest()


def refuse_strangers(spec: Path, folder: Path) -> None:
    """Only an earlier import that nobody has changed may be replaced. Errors: A532."""
    advice = "choose another name with -o, or move what is there away"
    earlier = _earlier(folder)
    if folder.exists() or folder.is_symlink():
        if earlier is None:
            raise problem("A532", f"`{folder.name}` is there already, and no import wrote it", file=folder, help=advice)
        found = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())
        strange = [name for name in found if name not in (*earlier.files, REPORT)]
        if strange:
            message = f"the folder `{folder.name}` holds files that no import wrote: {some(strange)}"
            raise problem("A532", message, file=folder, help=advice)
    if spec.exists() or spec.is_symlink():
        if earlier is None:
            raise problem("A532", f"`{spec.name}` is there already, and no import wrote it", file=spec, help=advice)
        if not spec.is_file() or digest(spec.read_text(encoding="utf-8", errors="replace")) != earlier.digest:
            raise problem("A532", f"`{spec.name}` was changed since it was imported", file=spec, help=advice)


def _earlier(folder: Path) -> ImportReport | None:
    """What an earlier import said of this folder; None where it says nothing that can be read."""
    try:
        return from_json(ImportReport, (folder / REPORT).read_text(encoding="utf-8"))
    except (OSError, ValidationError, UnicodeDecodeError):
        return None


@contextmanager
def beside(folder: Path) -> Iterator[Path]:
    """An empty folder next to `folder`, gone afterwards whatever happens. Errors: A533 where the disk refuses."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=f".{folder.name}.importing-", dir=folder.parent))
        made.chmod(0o755)
    except OSError as error:
        raise _disk(folder, error) from error
    try:
        yield made
    except OSError as error:
        raise _disk(folder, error) from error
    finally:
        shutil.rmtree(made, ignore_errors=True)


def put(made: Path, folder: Path, spec: Path, text: str) -> None:
    """Give the written folder and the spec their names; what they replace is removed only after that."""
    new_spec = made.parent / f"{made.name}.attn"
    old = made.parent / f"{made.name}.old"
    try:
        new_spec.write_text(text, encoding="utf-8")
        if folder.exists():
            os.replace(folder, old)
        try:
            os.replace(made, folder)
            os.replace(new_spec, spec)
        except OSError:
            shutil.rmtree(folder, ignore_errors=True)  # the new one, if it got that far
            if old.exists():
                os.replace(old, folder)
            raise
        shutil.rmtree(old, ignore_errors=True)
    finally:
        new_spec.unlink(missing_ok=True)


def _disk(folder: Path, error: OSError) -> Exception:
    reason = (error.strerror or str(error)).lower()
    advice = "free some space or choose another place with -o; what was there before is untouched"
    return problem("A533", f"`{folder.name}` cannot be written: {reason}", file=folder, help=advice)
