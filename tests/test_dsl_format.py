"""Printing is reading's inverse."""

from __future__ import annotations

from pathlib import Path

import pytest
from dsl_trees import AT, expressions, files
from hypothesis import given
from hypothesis import strategies as st

from attnc.dsl import Source, parse, read, tree
from attnc.dsl.dump import tree_text
from attnc.dsl.format import WIDTH, print_expression, print_file, print_number

SPECS = sorted((Path(__file__).parent.parent / "specs").glob("*.attn"))
BODY = "model m { dim = 8 }\nlayers { all: full }\n"


def expression(text: str) -> tree.Expression:
    mix = parse(Source("given", f"{BODY}mix given = {text}\n")).items[-1]
    assert isinstance(mix, tree.Mix)
    return mix.body


@given(files())
def test_a_printed_file_reads_back_as_the_same_tree(file: tree.File) -> None:
    assert parse(Source("printed", print_file(file))) == file


@given(expressions())
def test_a_printed_expression_is_one_ascii_line_that_reads_back_as_the_same_tree(node: tree.Expression) -> None:
    text = print_expression(node)
    assert text.isascii()
    assert "\n" not in text
    assert expression(text) == node


@pytest.mark.parametrize("path", SPECS, ids=lambda path: path.stem)
def test_a_shipped_spec_printed_reads_back_as_the_same_tree(path: Path) -> None:
    file = parse(read(path))
    printed = print_file(file)
    assert parse(Source(path.name, printed)) == file
    assert max(map(len, printed.splitlines())) <= WIDTH


@given(st.floats(allow_nan=False, allow_infinity=False).filter(lambda value: len(repr(value)) <= 24), st.booleans())
def test_a_printed_number_reads_back_with_every_bit(value: float, share: bool) -> None:
    read_back = expression(print_number(tree.Number(value, share, AT)))
    assert isinstance(read_back, tree.Number)
    assert (float(read_back.value).hex(), read_back.share) == (value.hex(), share)


@pytest.mark.parametrize("text", ["7", "-0.85", "1e-6", "25%", "1e11", "0.5%", "1.5e-8", "0", "0.02", "1e-4", "123456", "0.0"])
def test_a_number_keeps_its_usual_spelling(text: str) -> None:
    assert print_expression(expression(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "(a >> b) >> c",
        "a >> b >> c",
        "a + (b >> c)",
        "(a + b) { x = 1 }",
        "a | b { x = 1 }",
        "a | (b { x = 1 })",
        "(a { x = 1 }) { y = 2 }",
        "(a | b) | c",
        "when { length < 8: a + b, else: c } { x = [q, k, 0..3] } + heads { 50%: a, else: b }",
        "gate(a | b, c >> d, by = sigmoid)",
    ],
)
def test_parentheses_are_printed_where_they_mean_something(text: str) -> None:
    assert print_expression(expression(text)) == text


@pytest.mark.parametrize("text", ["(a)", "((a | b))", "(a | b) { x = 1 }", "(a) | (b)", "(a + b) >> c"])
def test_parentheses_that_mean_nothing_are_left_out(text: str) -> None:
    plain = text.replace("(", "").replace(")", "")
    assert expression(text) == expression(plain)
    assert print_expression(expression(text)) == plain


@pytest.mark.parametrize("stem", ["full", "flexprefill", "minference", "ucm", "nats-l", "landmark", "dsa", "allmem"])
def test_the_layout_of_shipped_specs(stem: str, golden) -> None:
    golden(f"{stem}.attn", print_file(parse(read(SPECS[0].with_name(f"{stem}.attn")))))


@pytest.mark.parametrize("stem", ["gemma3", "landmark", "infiniretri"])
def test_the_outline_of_a_tree(stem: str, golden) -> None:
    golden(f"{stem}.tree", tree_text(parse(read(SPECS[0].with_name(f"{stem}.attn")))))
