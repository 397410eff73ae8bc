"""Meaning: from a syntax tree to a checked spec, a graph, a plan. The doors to the first stage are here."""

from __future__ import annotations

import os
from collections.abc import Mapping

from attnc.compiler.check import check
from attnc.compiler.partial import check_source
from attnc.compiler.spec import Spec
from attnc.dsl.files import read
from attnc.dsl.source import Source

__all__ = ["Spec", "check", "check_path", "check_source", "check_text"]


def check_text(text: str, name: str = "<text>", overrides: Mapping[str, str] | None = None) -> Spec:
    """The checked spec of a text; `name` is what messages call it. Raises SpecError."""
    return check_source(Source(name, text), overrides)


def check_path(path: str | os.PathLike[str], overrides: Mapping[str, str] | None = None) -> Spec:
    """The checked spec of a file. Raises SpecError, also for a file that cannot be read."""
    return check_source(read(path), overrides)
