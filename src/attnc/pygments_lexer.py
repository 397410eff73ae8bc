"""Colours for `.attn` text in whatever uses Pygments: terminals, Sphinx, MkDocs, Jupyter.

The words are the language's own; tools/editors.py makes the editors' grammar of the same ones.
"""

from __future__ import annotations

from typing import ClassVar

from pygments.lexer import RegexLexer, bygroups, words
from pygments.token import Comment, Keyword, Name, Number, Operator, Punctuation, Whitespace

from attnc.compiler.conditions import SUBJECTS
from attnc.compiler.fields import tag
from attnc.compiler.mixers import KINDS
from attnc.compiler.read_operator import OPERATORS
from attnc.compiler.selectors import SELECTORS as CLASSES
from attnc.compiler.spec import PHASES
from attnc.dsl.grammar import ITEMS, RESERVED, grammar

SELECTORS = (*(tag(selector) for selector in CLASSES), "all", "budget")
CONDITIONS = (*SUBJECTS, *PHASES)
CONSTANTS = ("true", "false", "none")
NAME = grammar().patterns["NAME"]
NUMBER = grammar().patterns["NUMBER"]

__all__ = ["CONDITIONS", "CONSTANTS", "ITEMS", "KINDS", "NAME", "NUMBER", "OPERATORS", "RESERVED", "SELECTORS", "AttnLexer"]


class AttnLexer(RegexLexer):  # type: ignore[misc]  # Pygments has no types
    """Words by what they are; which of them may stand where is for `attnc check` to say."""

    name = "attn"
    aliases: ClassVar = ["attn"]
    filenames: ClassVar = ["*.attn"]
    url = "https://pypi.org/project/attnc"

    tokens: ClassVar = {
        "root": [
            (r"\s+", Whitespace),
            (r"#[^\n]*", Comment.Single),
            (rf"(mix)(\s+)({NAME})", bygroups(Keyword.Declaration, Whitespace, Name.Function)),
            (rf"(model|driver)(\s+)({NAME})", bygroups(Keyword.Declaration, Whitespace, Name.Class)),
            (rf"{NAME}(?=\s*=(?!=))", Name.Attribute),
            (words(ITEMS, suffix=r"\b"), Keyword.Declaration),
            (words(RESERVED, suffix=r"\b"), Keyword),
            (words((*KINDS, *OPERATORS), suffix=r"\b"), Name.Builtin),
            (words(SELECTORS, suffix=r"\b"), Name.Builtin.Pseudo),
            (words(CONDITIONS, suffix=r"\b"), Name.Variable.Global),
            (words(CONSTANTS, suffix=r"\b"), Keyword.Constant),
            (NAME, Name),
            (NUMBER, Number),
            (r">>|\.\.|<=|>=|==|[|+<>=]", Operator),
            (r"[(){}\[\],:]", Punctuation),
        ]
    }
