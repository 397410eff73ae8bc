"""What one reading of a text finds, whatever state the text is in."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cached_property, lru_cache

from attnc.compiler.partial import check_source
from attnc.compiler.spec import Spec
from attnc.compiler.table import TableRow, table
from attnc.dsl import tree
from attnc.dsl.diagnostic import Diagnostic, SpecError
from attnc.dsl.problems import Problems
from attnc.dsl.recover import read_items
from attnc.dsl.scan import scan
from attnc.dsl.source import Source, Span
from attnc.dsl.words import Word

DEVICE, LENGTH = "h100", 8192
"""What prices are for."""

PRICED = ("prefill", "decode")


@dataclass(frozen=True)
class Document:
    """A text with what is wrong in it, and its meaning if nothing is."""

    source: Source
    spec: Spec | None
    found: tuple[Diagnostic, ...]

    @cached_property
    def unbuilt(self) -> tuple[Diagnostic, ...]:
        """What of the spec this version cannot build yet; of a place, it knows the line."""
        from attnc.compiler.unbuilt import unbuilt

        return unbuilt(self.spec) if self.spec else ()

    @cached_property
    def rows(self) -> tuple[TableRow, ...]:
        """The resolved table."""
        return table(self.spec) if self.spec else ()

    @cached_property
    def prices(self) -> dict[int, str]:
        """What one layer costs, where this version builds the spec."""
        import attnc
        from attnc.compiler.show import seconds_text

        if self.spec is None or self.unbuilt:
            return {}
        found: dict[int, dict[str, float]] = {}
        for choice in attnc.plan(self.spec, DEVICE, LENGTH).choices:
            if choice.seconds is not None and choice.phase in PRICED:
                phases = found.setdefault(choice.layer, {})
                phases[choice.phase] = phases.get(choice.phase, 0.0) + choice.seconds
        return {layer: ", ".join(f"{p} {seconds_text(s)}" for p, s in phases.items()) for layer, phases in found.items()}


def read(source: Source) -> Document:
    """Reads and checks a text."""
    try:
        return Document(source, check_source(source), ())
    except SpecError as error:
        return Document(source, None, error.diagnostics)


@lru_cache(maxsize=2)
def words(source: Source) -> list[Word]:
    """The words, right or wrong; none where the text is no text at all, or far too large."""
    try:
        return scan(source, Problems(source))
    except SpecError:
        return []


@lru_cache(maxsize=2)
def items(source: Source) -> tuple[tree.Item, ...]:
    """The items that can be read."""
    problems = Problems(source)
    try:
        return read_items(source, scan(source, problems), problems)
    except SpecError:
        return ()


def word_at(source: Source, offset: int) -> Word | None:
    """The word around a character, or just before it."""
    return next((word for word in words(source) if word.span.start <= offset <= word.span.end and word.type == "NAME"), None)


def mix_names(source: Source) -> dict[str, Span]:
    """Where each mix is named."""
    found = words(source)
    pairs = itertools.pairwise(found)
    return {name.text: name.span for word, name in pairs if word.text == "mix" and name.type == "NAME"}
