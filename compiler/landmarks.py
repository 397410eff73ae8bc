"""Landmarks: inserted once, and `grouped(n)` counts them among the tokens of its blocks."""

from __future__ import annotations

from attnc.compiler.attributes import Grouped
from attnc.compiler.problems import Problems
from attnc.compiler.spec import Change, Layer
from attnc.compiler.walk import attentions, every
from attnc.dsl.source import Span


def check_landmarks(layers: tuple[Layer, ...], spans: list[Span], problems: Problems) -> None:
    """Reports a second insertion, and blocks that do not end at a landmark."""
    first: Layer | None = None
    length = 0
    reported: set[Span] = set()
    for layer in layers:
        span = spans[layer.index]
        if span in reported:
            continue
        for change in every(layer.mixer):
            if not isinstance(change, Change) or not hasattr(change.kind, "every"):
                continue
            if first is not None:
                message = f"layer {layer.index} inserts landmarks, but layer {first.index} did so before"
                notes = [("the first insertion", spans[first.index])]
                help_line = "let one layer insert them, and the others be what follows its `>>`"
                problems.add("A215", message, span, "one layer that inserts", help_line, notes)
                reported.add(span)
                break
            first, length = layer, change.kind.every
        sizes = [one.attributes.score.n for one in attentions(layer.mixer) if isinstance(one.attributes.score, Grouped)]
        wrong = [n for n in sizes if first is not None and n != length + 1]
        if wrong and span not in reported:
            message = f"`grouped({wrong[0]})` has blocks of {wrong[0]}, but a landmark comes after every {length} tokens"
            expected = f"blocks of {length} tokens and their landmark"
            problems.add("A204", message, span, expected, f"write `grouped({length + 1})`, or `every = {wrong[0] - 1}`")
            reported.add(span)
