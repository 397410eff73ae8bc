"""All shipped specs parse, and what is read is what was written."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest

from attnc.dsl import Source, Span, SpecError, parse, read, tree
from attnc.dsl.codes import CODES
from attnc.dsl.scan import MOST_BYTES, MOST_LETTERS, MOST_NESTING

SPECS = sorted((Path(__file__).parent.parent / "specs").glob("*.attn"))
BODY = "model m { dim = 8 }\n"


def nodes(node: object, around: Span | None = None) -> Iterator[tuple[object, Span | None]]:
    """Every node of a tree with the span of the node around it."""
    if isinstance(node, tuple):
        for part in node:
            yield from nodes(part, around)
    elif hasattr(node, "span"):
        yield node, around
        for field in fields(node):
            yield from nodes(getattr(node, field.name), node.span)


def body(text: str) -> tree.Expression:
    mix = parse(Source("given", f"{BODY}mix given = {text}\nlayers {{ all: full }}\n")).items[1]
    assert isinstance(mix, tree.Mix)
    return mix.body


def test_all_specs_are_here() -> None:
    assert len(SPECS) == 73


@pytest.mark.parametrize("path", SPECS, ids=lambda path: path.stem)
def test_a_shipped_spec_parses_and_every_span_lies_in_the_one_around_it(path: Path) -> None:
    file = parse(read(path))
    for node, around in nodes(file.items):
        assert node.span.text.strip() == node.span.text != ""
        if around:
            assert around.start <= node.span.start < node.span.end <= around.end
        if isinstance(node, tree.Name):
            assert node.span.text == node.text


def test_operators_bind_from_choice_of_keys_to_chain() -> None:
    expression = body("a | b { x = 1 } + c >> d")
    assert isinstance(expression, tree.Chain)
    add, last = expression.parts
    assert isinstance(add, tree.Add)
    attributed, c = add.parts
    assert isinstance(attributed, tree.With)
    assert isinstance(attributed.body, tree.Union)
    assert [part.text for part in (*attributed.body.parts, c, last)] == ["a", "b", "c", "d"]


@pytest.mark.parametrize(
    ("text", "value", "share"),
    [
        ("7", 7, False),
        ("-0.85", -0.85, False),
        ("1e-6", 1e-6, False),
        ("25%", 25, True),
        ("0.5%", 0.5, True),
        ("2e3", 2e3, False),
    ],
)
def test_numbers_have_their_value(text: str, value: float, share: bool) -> None:
    number = body(text)
    assert isinstance(number, tree.Number)
    assert (number.value, type(number.value), number.share) == (value, type(value), share)


@pytest.mark.parametrize(
    "text",
    [
        "model m { dim = 8, }\nlayers { all: full, }\n",
        "model m {\n  dim = 8\n}\nlayers {\n  all: full\n}\n",
        "model m{dim=8}layers{all:full}",
        "# c\nmodel m { # c\n dim = 8 # c }\n }\r\nlayers\n{\nall\n:\nfull\n}",
        "layers { all: (full) }\nmodel m { dim = 8 }\n",
    ],
)
def test_commas_line_ends_and_comments_only_separate(text: str) -> None:
    assert {type(item) for item in parse(Source("given", text)).items} == {tree.Model, tree.Layers}


def test_layers_and_heads_may_be_keys_and_arguments() -> None:
    parse(
        Source("given", "model m { layers = 2, heads = 4 }\nlayers { all: full { heads = 2 } + mesh(layers = 1, heads = 2) }\n")
    )


@pytest.mark.parametrize("depth", [MOST_NESTING, MOST_NESTING + 1])
def test_the_bound_of_nesting_is_exact(depth: int) -> None:
    text = f"{BODY}mix deep = {'(' * depth}a{')' * depth}\nlayers {{ all: full }}\n"
    if depth > MOST_NESTING:
        with pytest.raises(SpecError, match="A003"):
            parse(Source("given", text))
    else:
        parse(Source("given", text))


def test_the_bounds_of_names_and_files_are_exact() -> None:
    layers = "layers { all: full }\n"
    parse(Source("given", f"model {'m' * MOST_LETTERS} {{ dim = 8 }}\n{layers}"))
    text = BODY + layers
    parse(Source("given", text + "#" * (MOST_BYTES - len(text))))
    with pytest.raises(SpecError, match="A002"):
        parse(Source("given", text + "#" * (MOST_BYTES - len(text) + 1)))
    with pytest.raises(SpecError, match="A002"):
        parse(Source("given", text + "#" + "\u540d" * (MOST_BYTES // 3)))


def test_reading_twice_gives_equal_trees_whatever_the_file_is_called() -> None:
    text = SPECS[0].read_text()
    assert parse(Source("one", text)) == parse(Source("two", text))
    assert hash(parse(Source("one", text)).items) == hash(parse(Source("two", text)).items)


def test_importing_the_room_loads_nothing_heavy() -> None:
    heavy = ["lark", "pydantic", "torch", "networkx", "jinja2", "numpy"]
    code = f"import sys, attnc.dsl; print([name for name in {heavy!r} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_every_code_has_a_title_of_one_line() -> None:
    assert all(title and "\n" not in title and not title.endswith(".") for title, _ in CODES.values())
