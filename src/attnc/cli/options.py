"""Options and arguments that several commands take."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import attnc

if TYPE_CHECKING:
    from attnc.compiler.spec import Spec

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def read_spec(file: str, overrides: Mapping[str, str] | None = None) -> Spec:
    """The checked spec of a file, or of the standard input for `-`. Raises SpecError."""
    if file != "-":
        return attnc.check(Path(file), overrides)
    from attnc.compiler import check_text

    return check_text(sys.stdin.buffer.read().decode("utf-8", "replace"), "<stdin>", overrides)
