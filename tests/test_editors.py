"""Colours know the language's own words, all of them, and every spec has a colour everywhere."""

from __future__ import annotations

import json
import re
import runpy
from importlib import metadata
from pathlib import Path

import pytest
from pygments.lexers import find_lexer_class_by_name, get_lexer_for_filename
from pygments.token import Comment, Error, Keyword, Name, Number, Operator, Punctuation, Token, Whitespace

from attnc.compiler.mixers import MIXERS
from attnc.dsl import read
from attnc.dsl.grammar import RESERVED
from attnc.dsl.problems import Problems
from attnc.dsl.scan import scan
from attnc.pygments_lexer import AttnLexer

TOP = Path(__file__).parent.parent
SPECS = sorted((TOP / "specs").glob("*.attn"))
TEXTMATE = TOP / "editors" / "attn.tmLanguage.json"
PATTERNS = [(re.compile(row["match"], re.MULTILINE), row) for row in json.loads(TEXTMATE.read_text())["patterns"]]


@pytest.mark.parametrize("path", SPECS, ids=lambda path: path.stem)
def test_a_spec_has_the_words_that_the_scanner_finds_and_no_error(path: Path) -> None:
    source = read(path)
    coloured = [(kind, text) for kind, text in AttnLexer().get_tokens(source.text) if kind is not Whitespace]
    assert not [text for kind, text in coloured if kind is Error]
    assert [text for kind, text in coloured if kind is not Comment.Single] == [
        word.text for word in scan(source, Problems(source))
    ]


@pytest.mark.parametrize("word", sorted({*MIXERS, *RESERVED, "gate", "every", "none", "length"}))
def test_a_word_of_the_language_is_no_plain_name(word: str) -> None:
    ((kind, _), _) = AttnLexer().get_tokens(word)
    assert kind is not Name
    assert kind in Keyword or kind in Name
    assert any(pattern.fullmatch(word) for pattern, _ in PATTERNS)


def test_a_wrong_character_is_an_error_and_others_are_not() -> None:
    kinds = [kind for kind, text in AttnLexer().get_tokens("mix a = ? 7..9 | b { c = 1e-6 } # d") if text.strip()]
    declared, mixed, plain, key = Keyword.Declaration, Name.Function, Name, Name.Attribute
    signs = [Error, Number, Operator, Number, Operator, plain, Punctuation, key, Operator, Number, Punctuation, Comment.Single]
    assert kinds == [declared, mixed, Operator, *signs]
    assert Error in Token


def test_pygments_finds_the_lexer() -> None:
    (found,) = (point for point in metadata.entry_points(group="pygments.lexers") if point.name == "attn")
    assert found.load() is AttnLexer
    assert find_lexer_class_by_name("attn") is AttnLexer
    assert isinstance(get_lexer_for_filename("x.attn"), AttnLexer)


def test_the_editors_grammar_is_made_of_the_same_words() -> None:
    made = runpy.run_path(str(TOP / "tools" / "editors.py"))["grammar"]()
    assert TEXTMATE.read_text() == made, "run python tools/editors.py"


@pytest.mark.parametrize("path", SPECS[::6], ids=lambda path: path.stem)
def test_the_editors_grammar_colours_all_but_plain_names(path: Path) -> None:
    text = path.read_text()
    at, plain = 0, ""
    while at < len(text):
        found = [match for pattern, _ in PATTERNS if (match := pattern.search(text, at))]
        first = min(found, key=lambda match: match.start(), default=None)
        plain += text[at : first.start()] if first else text[at:]
        at = max(first.end(), at + 1) if first else len(text)
    assert re.fullmatch(r"[a-z0-9_\s]*", plain), plain
