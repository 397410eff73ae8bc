"""Writing over a file."""

from __future__ import annotations

import codecs
import os
import shutil
import tempfile
from pathlib import Path


def replace_text(path: Path, text: str) -> None:
    """In one step: another program sees the old file or the new one. A link keeps pointing where it points."""
    real = path.resolve()
    with real.open("rb+") as old:  # refuses what may not be written, as an editor would
        mark = codecs.BOM_UTF8 if old.read(len(codecs.BOM_UTF8)) == codecs.BOM_UTF8 else b""
    handle, beside = tempfile.mkstemp(dir=real.parent, prefix=f".{real.name}.")
    try:
        with os.fdopen(handle, "wb") as new:
            new.write(mark + text.encode())
        shutil.copymode(real, beside)
        os.replace(beside, real)
    except BaseException:
        os.unlink(beside)
        raise
