"""Files to texts."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NoReturn

from attnc.dsl.diagnostic import Diagnostic, SpecError, closest
from attnc.dsl.scan import MOST_BYTES
from attnc.dsl.source import Source, Span


def read(path: str | os.PathLike[str]) -> Source:
    """The text of a `.attn` file. Raises SpecError (A501 to A505) for a file that cannot be a spec."""
    place = Path(path)
    if os.fspath(path) == "":
        _refuse("A501", path, "is no name of a file", "name one, or `-` for the standard input")
    if place.is_dir():
        _refuse("A502", path, "is a folder, not a file", f"name a file in it, such as `{place / 'NAME.attn'}`")
    try:
        with place.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
            size = os.fstat(file.fileno()).st_size
    except (FileNotFoundError, NotADirectoryError):
        _refuse("A501", path, "does not exist", _near(place))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        _refuse("A505", path, f"cannot be read: {reason}")
    if len(data) > MOST_BYTES:
        _refuse(
            "A504", path, f"has {max(size, len(data))} bytes; at most {MOST_BYTES} (1 MiB) are read", "a spec is a short text"
        )
    if b"\0" in data:
        _refuse("A503", path, "holds NUL bytes, so it is not a text", "is it a checkpoint? a spec is a short UTF-8 text")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        found = f"byte 0x{data[error.start]:02x} in line {line}"
        _refuse("A503", path, f"is not UTF-8 text: {found}", "save it as UTF-8")
    return Source(os.fspath(path), text)


def _near(place: Path) -> str:
    try:
        names = [entry.name for entry in place.parent.iterdir() if entry.suffix == ".attn"][:1000]
    except OSError:
        return ""
    if place.name + ".attn" in names:
        return f"did you mean `{place}.attn`?"
    return closest(place.name, names)


def _refuse(code: str, path: str | os.PathLike[str], message: str, help_text: str = "") -> NoReturn:
    name = os.fspath(path)
    raise SpecError([Diagnostic(code, f"`{name}` {message}", Span(Source(name, ""), 0, 0), help=help_text)])
