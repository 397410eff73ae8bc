"""The `.attn` language: text in, tree out, and messages for people. Knows no mixer and no tensor."""

from attnc.dsl.diagnostic import Diagnostic, Edit, SpecError, closest
from attnc.dsl.files import read
from attnc.dsl.parse import parse
from attnc.dsl.source import Source, Span

__all__ = ["Diagnostic", "Edit", "Source", "Span", "SpecError", "closest", "parse", "read"]
