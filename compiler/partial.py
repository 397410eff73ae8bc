"""Text -> Spec; where the text has syntax errors, the mistakes of names and values beside them."""

from __future__ import annotations

import re
from collections.abc import Mapping

from attnc.compiler.check import check, check_names
from attnc.compiler.spec import Spec
from attnc.dsl import tree
from attnc.dsl.diagnostic import Diagnostic, SpecError
from attnc.dsl.parse import parse_partly
from attnc.dsl.problems import MOST
from attnc.dsl.source import Source, Span

UNSURE = frozenset({"A011", "A012", "A019", "A021", "A023", "A026", "A099"})
"""Syntax errors after which nobody knows what belongs to what."""


def check_source(source: Source, overrides: Mapping[str, str] | None = None) -> Spec:
    """The checked spec of a text. Raises SpecError with every mistake found.

    After syntax errors, what could be read is still checked by itself: names, arguments and settings. What holds for the
    whole (each layer has a rule, sizes fit) is checked when the text is a spec.
    """
    file, found = parse_partly(source)
    if not found:
        return check(file, overrides)
    beside = () if any(one.code in UNSURE for one in found) else _beside(file, found)
    raise SpecError([*found, *beside[: max(0, MOST - len(found))]])


def _beside(file: tree.File, found: tuple[Diagnostic, ...]) -> tuple[Diagnostic, ...]:
    """Mistakes in entries that were read whole."""
    read_wrong = [one.span for one in found]
    return tuple(one for one in check_names(file) if not _follows(one, file, read_wrong))


def _follows(one: Diagnostic, file: tree.File, read_wrong: list[Span]) -> bool:
    """Whether a mistake may only follow from a syntax error: it stands around one, or speaks of what is missing."""
    if any(wrong.start <= one.span.end and one.span.start <= wrong.end for wrong in read_wrong):
        return True
    if one.span.text == "}":  # stands for the entries that a brace lost
        return True
    if one.code == "A105":
        settings = (tree.Model, tree.Recipe, tree.Driver)
        return any(item.span.start <= one.span.start < item.span.end for item in file.items if isinstance(item, settings))
    mix = re.compile(rf"\b{re.escape(one.span.text)}\s*=")
    return one.code == "A100" and mix.search(file.source.text) is not None
