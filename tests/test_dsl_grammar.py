"""The tables that are read are those of the grammar that is written."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
from lark import Lark
from lark.exceptions import LarkError

from attnc.dsl import Source
from attnc.dsl.grammar import grammar
from attnc.dsl.problems import Problems
from attnc.dsl.scan import scan
from attnc.dsl.source import Span
from attnc.dsl.words import Word

TOP = Path(__file__).parent.parent
SPECS = sorted((TOP / "specs").glob("*.attn"))
LARK = Lark((TOP / "dsl" / "grammar.lark").read_text(), parser="lalr", lexer="basic", keep_all_tokens=True)


def test_the_tables_are_those_of_the_grammar() -> None:
    compiled = runpy.run_path(str(TOP / "tools" / "grammar.py"))["compiled"]
    assert (TOP / "dsl" / "grammar.json").read_text() == compiled(), "run python tools/grammar.py"


def words_of(text: str) -> list[Word]:
    source = Source("given", text)
    end = Span(source, len(text), len(text))
    return [*scan(source, Problems(source)), Word("$END", "", end, first=True)]


@pytest.mark.parametrize("path", SPECS[::5], ids=lambda path: path.stem)
def test_the_parser_accepts_at_every_word_what_lark_accepts(path: Path) -> None:
    theirs, ours = LARK.parse_interactive(), grammar().start()
    for word in words_of(path.read_text()):
        assert ours.accepts() == theirs.accepts()
        assert ours.feed(word) == (word.type in theirs.accepts())
        theirs.feed_token(word)


@pytest.mark.parametrize("wrong", ["=", "}", ">>", "model", "else", "7"])
def test_a_word_that_does_not_fit_changes_nothing(wrong: str) -> None:
    (odd, _) = words_of(wrong)
    parser = grammar().start()
    for word in words_of(SPECS[0].read_text()):
        if odd.type not in parser.accepts():
            states, values = list(parser.states), list(parser.values)
            assert not parser.feed(odd)
            assert (parser.states, parser.values) == (states, values)
        assert parser.feed(word)


def test_a_conflict_in_the_grammar_would_be_found() -> None:
    with pytest.raises(LarkError):
        Lark('start: a | b\na: "x"\nb: "x"', parser="lalr")
