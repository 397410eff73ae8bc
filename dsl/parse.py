"""Text to tree."""

from __future__ import annotations

from attnc.dsl import tree
from attnc.dsl.diagnostic import Diagnostic, SpecError
from attnc.dsl.problems import Problems
from attnc.dsl.recover import read_items
from attnc.dsl.rules import check_file
from attnc.dsl.scan import scan
from attnc.dsl.source import Source, Span

EMPTY = """write a model and say what its layers do, for example
    model small { vocab = 32000, dim = 2048, layers = 24, heads = 16, ffn = swiglu(5632), norm = rms(1e-6) }
    layers { every(6): full, else: window(1024) }"""


def parse(source: Source) -> tree.File:
    """The tree of a spec. Raises SpecError with all its syntax errors, in the order of their places."""
    file, found = parse_partly(source)
    if found:
        raise SpecError(found)
    return file


def parse_partly(source: Source) -> tuple[tree.File, tuple[Diagnostic, ...]]:
    """What of a spec could be read, and its syntax errors. Raises SpecError where too little could be read to go on."""
    problems = Problems(source)
    words = scan(source, problems)
    if not words:
        if not problems.found:
            problems.add("A001", "the spec is empty; it needs a `model` and `layers`", Span(source, 0, 0), help=EMPTY)
        problems.raise_any()
    items = read_items(source, words, problems)
    file = tree.File(items, source)
    check_file(file, problems, whole=not problems.found)
    return file, tuple(problems.found)
