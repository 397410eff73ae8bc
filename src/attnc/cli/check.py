"""`attnc check`."""

from __future__ import annotations

from typing import Annotated

import typer


def check(files: Annotated[list[str], typer.Argument(metavar="FILE…")]) -> None:
    """Check specs."""
