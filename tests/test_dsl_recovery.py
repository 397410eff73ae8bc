"""After a mistake reading goes on at the next entry or item; nothing but SpecError ever comes out; nothing takes long."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from attnc.dsl import Source, SpecError, parse

SPECS = sorted((Path(__file__).parent.parent / "specs").glob("*.attn"))
TEXTS = [path.read_text() for path in SPECS]
BODY = "model m { dim = 8 }\n"
RULE = "layers { all: full }\n"
WORD = re.compile(r"#[^\n]*|[a-z][a-z0-9_]*|-?\d[\d.e%-]*|\.\.|>>|[<>=]=|\S")
INSERTED = ["(", ")", "[", "]", "{", "}", ",", ":", "=", "|", "+", ">>", "..", "==", "else", "when", "layers", "heads", "mix"]
INSERTED += ["model", "recipe", "full", "7", "25%", "\n", "choose", ";", '"', "\u2013", "Full", "9e999", "x-y", "()", "{}", "#"]


def lines_of_errors(text: str) -> list[int]:
    try:
        parse(Source("bad.attn", text))
    except SpecError as error:
        str(error)
        return [d.span.line for d in error.diagnostics]
    return []


CASES = [
    " = full",
    ": full full",
    ": window(8, aligned 2)",
    ": full |",
    ": | full",
    ": full)",
    ": full]",
    ": window 8",
]
SETTINGS = [" =", " = 8 9", " = a | b", " 8", " = )", " = when", ": 8", " == 8", " = = 8", " = [1, | 2]", " = f()"]
ITEMS = [
    "mix a",
    "mix = full",
    "mix a = full full",
    "mix a = full)",
    "a = full",
    "mix x{i} = full {{ b }}",
    "layers",
    "recipe b {{ a = 1 }}",
    "mix a = ]",
]
UNCLOSED_CASES = [": window(8", ": (full", ": [1, 2", ": full { a = 1", ": f(g(1), [2"]
UNCLOSED_SETTINGS = [" = [1, 2", " = rms(1", " = f(1, a = [2"]
UNCLOSED_ITEMS = ["mix a = (full", "mix a = a {{", "mix a = f(1,", "layers {{", "recipe {{ a = [", "mix a = when {{ a: b"]


def some_of(*mistakes: list[str]) -> st.SearchStrategy[list[str | None]]:
    """Lines, right ones (None) and wrong ones."""
    return st.lists(st.sampled_from([None, *mistakes]), min_size=2, max_size=12)


def cases(mistakes: list[str | None]) -> str:
    lines = [f"  {i}{mistake or ': full'}" for i, mistake in enumerate(mistakes)]
    return "\n".join(["layers {", *lines, "  else: full", "}", BODY])


def settings(mistakes: list[str | None]) -> str:
    lines = [f"  k{i}{mistake or ' = 8'}" for i, mistake in enumerate(mistakes)]
    return "\n".join(["model m {", *lines, "  last = 8", "}", RULE])


def items(mistakes: list[str | None]) -> str:
    lines = [(mistake or "mix good{i} = full").format(i=i) for i, mistake in enumerate(mistakes)]
    return "\n".join(["# items", *lines, BODY, RULE])


def wrong_lines(mistakes: list[str | None]) -> list[int]:
    return [i + 2 for i, mistake in enumerate(mistakes) if mistake]


@given(some_of(*CASES))
def test_each_broken_case_is_reported_in_its_own_line_and_no_other(mistakes: list[str | None]) -> None:
    assert lines_of_errors(cases(mistakes)) == wrong_lines(mistakes)


@given(some_of(*SETTINGS))
def test_each_broken_setting_is_reported_in_its_own_line_and_no_other(mistakes: list[str | None]) -> None:
    assert lines_of_errors(settings(mistakes)) == wrong_lines(mistakes)


@given(some_of(*ITEMS))
def test_each_broken_item_is_reported_in_its_own_line_and_no_other(mistakes: list[str | None]) -> None:
    assert lines_of_errors(items(mistakes)) == wrong_lines(mistakes)


@pytest.mark.parametrize(
    ("text", "mistake"),
    [
        (text, mistake)
        for text, all_of in ((cases, UNCLOSED_CASES), (settings, UNCLOSED_SETTINGS), (items, UNCLOSED_ITEMS))
        for mistake in all_of
    ],
)
def test_a_bracket_left_open_is_reported_in_its_line_and_hides_no_later_mistake(text, mistake: str) -> None:
    other = {cases: ": | full", settings: " = )", items: "mix = full"}[text]
    mistakes = [None, mistake, None, other, None, mistake]
    assert lines_of_errors(text(mistakes)) == wrong_lines(mistakes)


def test_one_run_tells_mistakes_of_words_of_grammar_and_of_rules() -> None:
    text = "model m { dim = 8, dim = 9 }\nmix a = Full\nmix b = window 8\nmix b = full\nlayers {\n  0: full(\n  else: full\n}\n"
    with pytest.raises(SpecError) as caught:
        parse(Source("bad.attn", text))
    assert [(d.code, d.span.line) for d in caught.value.diagnostics] == [("A027", 1), ("A009", 2), ("A010", 3), ("A011", 6)]


def test_entries_before_and_behind_a_mistake_are_still_compared() -> None:
    text = "model m {\n  a = 1\n  b = \n  a = 2\n}\n" + RULE
    with pytest.raises(SpecError) as caught:
        parse(Source("bad.attn", text))
    assert [(d.code, d.span.line) for d in caught.value.diagnostics] == [("A014", 3), ("A027", 4)]


@st.composite
def mutated(draw: st.DrawFn) -> str:
    """A shipped spec with a few words deleted, doubled, exchanged or put in."""
    text = draw(st.sampled_from(TEXTS))
    for _ in range(draw(st.integers(1, 4))):
        places = list(WORD.finditer(text)) or [re.compile("").match(text)]
        at = places[draw(st.integers(0, len(places) - 1))]
        other = places[draw(st.integers(0, len(places) - 1))]
        new = draw(st.sampled_from(["", at.group() + " " + at.group(), other.group(), *INSERTED]))
        keep = at.group() if draw(st.booleans()) else ""
        text = f"{text[: at.start()]}{keep} {new} {text[at.end() :]}"
    return text


@given(mutated())
def test_a_mutated_spec_gives_a_tree_or_a_spec_error(text: str) -> None:
    lines_of_errors(text)


@given(st.text(max_size=200) | st.text(st.sampled_from("(){}[]=:,|+>.<%-#\n ae07"), max_size=200))
@example("\ud800")
@example("{")
@example("-" * 9)
def test_any_text_gives_a_tree_or_a_spec_error(text: str) -> None:
    lines_of_errors(text)
    lines_of_errors(BODY + RULE + "mix a = " + text)


HOSTILE = {
    "parentheses": BODY + "mix a = " + "(" * 10_000 + "a" + ")" * 10_000,
    "calls": BODY + "mix a = " + "a(" * 10_000,
    "braces": "layers { a: when " * 10_000,
    "never closed": "[" * 1_000_000,
    "closers": "}" * 1_000_000,
    "digits": f"model m {{ dim = {'9' * 5_000} }}",
    "many digits": "9" * 1_000_000,
    "exponent": "model m { dim = 1e999999999999999999 }",
    "minus": "-" * 1_000_000,
    "dots": "." * 1_000_000,
    "dotted": "1." * 500_000,
    "hyphens": "a-" * 500_000,
    "capitals": "A" * 1_000_000,
    "long name": "a" * 1_000_000,
    "quotes": '"' * 1_000_000,
    "look-alikes": "\uff0c" * 300_000,
    "letters": "\u0430 " * 300_000,
    "controls": "\x01" * 1_000_000,
    "nul": "\0" * 1_000_000,
    "ten megabytes": "a" * 10_000_000,
    "words": "a " * 500_000,
    "unions": BODY + "mix a = " + "a|" * 400_000 + "a",
    "bad settings": "model m {" + "a = ," * 9_000 + "}",
    "bad cases": "layers {\n" + "a b\n" * 20_000 + "}",
    "bad items": "mix a = full full\n" * 9_000,
    "same keys": "model m {" + "a = 1," * 9_000 + "}",
    "elses": "layers {" + "else: a," * 9_000 + "}",
    "one long line": BODY + RULE + " " * 900_000 + "?",
    "line ends": "\n" * 900_000 + "?;" * 49,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_text_costs_no_more_than_an_error(name: str) -> None:
    start = time.process_time()
    with pytest.raises(SpecError) as caught:
        parse(Source("hostile.attn", HOSTILE[name]))
    message = str(caught.value)
    assert time.process_time() - start < 2
    assert len(message) < 50_000
    assert len(caught.value.diagnostics) <= 51


@pytest.mark.parametrize(
    ("text", "codes"),
    [
        ("model m: { vocab: 1 }\nlayers: { all: full }", ["A018", "A018", "A018"]),
        ("model m = { vocab = 1 }\nlayers = { all: full }", ["A018", "A018"]),
        ("model = { vocab = 1 }\nlayers { all: full }", ["A014", "A018"]),
        ("model: { vocab = 1, dim: 2 }\nlayers { all: full }", ["A014", "A018", "A018"]),
    ],
)
def test_a_sign_between_a_name_and_its_braces_hides_nothing_behind_it(text, codes):
    with pytest.raises(SpecError) as caught:
        parse(Source("a.attn", text))
    assert [one.code for one in caught.value.diagnostics] == codes
