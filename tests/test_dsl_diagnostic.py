"""Excerpts point at the right place of any line; helpers say what they promise."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attnc.dsl import Diagnostic, Source, Span, SpecError, closest
from attnc.dsl.excerpt import WIDTH, escaped, excerpt, quoted

ANY_TEXT = st.text(st.characters(codec=None), min_size=1, max_size=300)


def pointed(text: str, start: int, end: int) -> tuple[str, str]:
    """The excerpt's line and its carets, without the gutter."""
    _, _, line, carets = excerpt(Span(Source("x.attn", text), start, end))
    gutter = line.index("|") + 2
    return line[gutter:], carets[gutter:]


def test_carets_stand_under_the_place() -> None:
    assert pointed("one two three", 4, 7) == ("one two three", "    ^^^")


def test_an_empty_span_has_one_caret() -> None:
    assert pointed("one two", 3, 3) == ("one two", "   ^")
    assert pointed("one", 3, 3) == ("one", "   ^")


def test_a_span_over_several_lines_is_marked_to_the_end_of_its_first() -> None:
    assert pointed("one two\nthree", 4, 12) == ("one two", "    ^^^")


def test_a_tab_takes_one_column() -> None:
    assert pointed("\tone\ttwo", 5, 8) == (" one two", "     ^^^")


def test_a_wide_sign_takes_two_columns_and_a_combining_one_none() -> None:
    assert pointed("\u540d x", 2, 3) == ("\u540d x", "   ^")
    assert pointed("e\u0301 x", 3, 4) == ("e\u0301 x", "  ^")


def test_signs_that_do_not_print_are_written_out() -> None:
    assert pointed("a\x1b[31m b", 7, 8) == ("a\\x1b[31m b", "          ^")
    assert pointed("\u202eab", 1, 2) == ("\\u202eab", "      ^")


def test_windows_line_ends_are_not_shown() -> None:
    assert pointed("one\r\ntwo\r\n", 5, 8) == ("two", "^^^")


def test_a_long_line_is_cropped_around_the_place() -> None:
    line, carets = pointed("a" * 500 + "X" + "b" * 500, 500, 501)
    assert line.startswith("...a")
    assert line.endswith("b...")
    assert line[carets.index("^")] == "X"
    assert len(line) <= WIDTH + 6


@given(ANY_TEXT, st.data())
def test_an_excerpt_is_four_short_printable_lines_for_any_text(text: str, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, len(text)))
    lines = excerpt(Span(Source("x", text), start, end))
    assert len(lines) == 4
    assert all(line.isprintable() for line in lines)
    assert "^" in lines[3]


@given(ANY_TEXT)
def test_text_of_a_file_in_a_message_is_printable_and_short(text: str) -> None:
    assert escaped(text).isprintable()
    assert quoted("a" * 100) == f"`{'a' * 37}...`"
    assert quoted(text).isprintable()


def test_a_source_without_text_has_only_its_name() -> None:
    assert Diagnostic("A501", "no such file", Span(Source("a\nb", ""), 0, 0)).render() == (
        "error[A501]: no such file\n  --> a\\nb"
    )


def test_all_parts_of_a_diagnostic_in_order() -> None:
    source = Source("x.attn", "one two\nthree\n")
    notes = (("the other", Span(source, 8, 13)),)
    shown = Diagnostic("A010", "unexpected `two`", Span(source, 4, 7), "`three`", notes, "write `three`\nor nothing")
    assert shown.render().split("\n") == [
        "error[A010]: unexpected `two`",
        "  --> x.attn:1:5",
        "  |",
        "1 | one two",
        "  |     ^^^",
        "   = expected: `three`",
        "note: the other",
        "  --> x.attn:2:1",
        "  |",
        "2 | three",
        "  | ^^^^^",
        "help: write `three`",
        "or nothing",
    ]


def test_an_error_holds_its_diagnostics_once_and_in_order_of_place() -> None:
    source = Source("x.attn", "one two\nthree\n")
    first = Diagnostic("A010", "first", Span(source, 0, 3))
    second = Diagnostic("A010", "second", Span(source, 8, 13))
    error = SpecError([second, first, second])
    assert error.diagnostics == (first, second)
    assert str(error) == f"{first.render()}\n\n{second.render()}\n\n2 errors in x.attn"
    assert str(SpecError([first])).endswith("\n\n1 error in x.attn")


@pytest.mark.parametrize(("word", "help_text"), [("windw", "did you mean `window`?"), ("zzz", ""), ("", "")])
def test_the_closest_word_is_offered_if_one_is_near(word: str, help_text: str) -> None:
    assert closest(word, ["window", "sink", "full"]) == help_text
