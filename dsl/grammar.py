"""dsl/grammar.lark, compiled: a pattern that cuts text into words, and the LALR(1) table that reads them.

Words are cut by the room's own scanner, so that a bad character costs one message and reading goes on. The terminals are
the grammar's own. tools/grammar.py compiles the grammar; only its result, dsl/grammar.json, is read here.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from attnc.dsl.build import Builder
from attnc.dsl.machine import Machine, Rule, Table

ITEMS = ("model", "mix", "layers", "recipe", "driver")
RESERVED = (*ITEMS, "heads", "when", "choose", "route", "else")
"""Words that cannot be names; `layers` and `heads` may be keys."""


@dataclass(frozen=True)
class Grammar:
    """`pattern` has one named group for each terminal; `words` maps reserved words, `signs` punctuation to their terminal.

    `ignored` names the terminals of blanks and comments; `texts` says how a terminal with one spelling is spelt, `patterns`
    what the others look like.
    """

    table: Table
    pattern: re.Pattern[str]
    words: dict[str, str]
    signs: dict[str, str]
    texts: dict[str, str]
    ignored: frozenset[str]
    patterns: dict[str, str]

    def start(self) -> Machine:
        """A parser that is fed word by word; reducing builds the tree."""
        return Machine(self.table)


@cache
def grammar() -> Grammar:
    """The compiled grammar."""
    parts = json.loads(Path(__file__).with_name("grammar.json").read_text("utf-8"))
    texts: dict[str, str] = parts["spelt"]
    words = {spelling: name for name, spelling in texts.items() if spelling.isalpha()}
    signs = {spelling: name for name, spelling in texts.items() if not spelling.isalpha()}
    assert sorted(words) == sorted(RESERVED), "grammar.lark and RESERVED disagree"
    patterns = [*parts["patterns"].items()]
    patterns += [(signs[spelling], re.escape(spelling)) for spelling in sorted(signs, key=len, reverse=True)]
    builder = Builder()
    rules = [Rule(origin, size, single, getattr(builder, name, None)) for origin, name, size, single in parts["rules"]]
    leaves = {"NAME": builder.NAME, "NUMBER": builder.NUMBER}
    return Grammar(
        table=Table(parts["states"], rules, leaves, parts["end"]),
        pattern=re.compile("|".join(f"(?P<{name}>{regexp})" for name, regexp in patterns)),
        words=words,
        signs=signs,
        texts=texts,
        ignored=frozenset(parts["ignored"]),
        patterns=parts["patterns"],
    )
