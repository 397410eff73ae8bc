"""dsl/grammar.lark, compiled once: a pattern that cuts text into words, and the LALR(1) table that reads them.

Words are cut here, not by lark's lexer, so that a bad character costs one message and reading goes on. The terminals are
the grammar's own. lark is imported on first use: it costs more than the rest of the room together.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from attnc.dsl.build import Builder

if TYPE_CHECKING:
    from lark import Lark
    from lark.parsers.lalr_interactive_parser import InteractiveParser

ITEMS = ("model", "mix", "layers", "recipe", "driver")
RESERVED = (*ITEMS, "heads", "when", "choose", "route", "else")
"""Words that cannot be names; `layers` and `heads` may be keys."""


@dataclass(frozen=True)
class Grammar:
    """`pattern` has one named group for each terminal; `words` maps reserved words, `signs` punctuation to their terminal.

    `ignored` names the terminals of blanks and comments; `texts` says how a terminal with one spelling is spelt.
    """

    lark: Lark
    pattern: re.Pattern[str]
    words: dict[str, str]
    signs: dict[str, str]
    texts: dict[str, str]
    ignored: frozenset[str]

    def start(self) -> InteractiveParser:
        """A parser that is fed word by word; reducing builds the tree."""
        return self.lark.parse_interactive()


@cache
def grammar() -> Grammar:
    """The compiled grammar."""
    from lark import Lark
    from lark.lexer import PatternStr

    text = Path(__file__).with_name("grammar.lark").read_text("utf-8")
    lark = Lark(
        text,
        parser="lalr",
        lexer="basic",
        transformer=cast("Any", Builder()),
        keep_all_tokens=True,
        maybe_placeholders=False,
    )
    spelt = {terminal.pattern.value: terminal.name for terminal in lark.terminals if isinstance(terminal.pattern, PatternStr)}
    words = {spelling: name for spelling, name in spelt.items() if spelling.isalpha()}
    signs = {spelling: name for spelling, name in spelt.items() if not spelling.isalpha()}
    assert sorted(words) == sorted(RESERVED), "grammar.lark and RESERVED disagree"
    patterns = [(t.name, t.pattern.to_regexp()) for t in lark.terminals if not isinstance(t.pattern, PatternStr)]
    patterns += [(signs[spelling], re.escape(spelling)) for spelling in sorted(signs, key=len, reverse=True)]
    return Grammar(
        lark=lark,
        pattern=re.compile("|".join(f"(?P<{name}>{regexp})" for name, regexp in patterns)),
        words=words,
        signs=signs,
        texts={name: spelling for spelling, name in spelt.items()},
        ignored=frozenset(lark.ignore_tokens),
    )
