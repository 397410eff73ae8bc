"""docs/language.md: its specs check, its codes exist, and its words are the language's."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from attnc.compiler import check_text
from attnc.compiler.codes import CODES
from attnc.compiler.fields import fields, items, options, tag
from attnc.compiler.mixers import MIXERS
from attnc.compiler.read_operator import OPERATORS
from attnc.compiler.recipe import Recipe, Retrieve
from attnc.compiler.tuning import Coverage, Loss, RecallDrop, RetrievalScore, Router, Similarity, TrainedGate
from attnc.compiler.unbuilt import unbuilt
from attnc.dsl.codes import CODES as DSL_CODES

PAGE = (Path(__file__).parent.parent / "docs" / "language.md").read_text("utf-8")
BLOCKS = re.findall(r"```attn\n(.*?)```", PAGE, re.DOTALL)


def test_every_spec_of_the_page_checks_and_one_has_everything_that_is_not_built():
    found = {}
    for number, block in enumerate(BLOCKS):
        spec = check_text(block, f"block {number}")
        found[spec.model.name] = unbuilt(spec)
    assert {name for name, waiting in found.items() if waiting} == {"declared"}
    assert len(found) == len(BLOCKS) >= 4


def test_every_code_of_the_page_exists():
    named = set(re.findall(r"`(A\d{3})`", PAGE))
    assert named
    assert named <= {*CODES, *DSL_CODES}


@pytest.mark.parametrize("word", [*MIXERS, *OPERATORS])
def test_every_kind_and_operator_has_its_row(word):
    assert re.search(rf"^\| `{word}\b", PAGE, re.MULTILINE), word


@pytest.mark.parametrize(("owner", "title"), [(Recipe, "recipe"), (Retrieve, "driver retrieve")])
def test_every_key_and_word_of_a_recipe_and_driver_is_on_the_page(owner, title):
    table = PAGE.partition(f"| key of `{title}` |")[2].partition("\n\n")[0]
    for field in fields(owner).values():
        row = next(line for line in table.split("\n") if re.match(rf"\| (`\w+`, )*`{field.key}`", line))
        absent = {"none"} if field.default is None else set()
        for word in {*options(field.types), *options(items(field.types))} - absent:
            assert re.search(rf"\b{word}\b", row), (field.key, word)


@pytest.mark.parametrize("owner", [TrainedGate, RetrievalScore, Similarity, Coverage, RecallDrop, Loss, Router])
def test_every_argument_of_a_method_is_on_the_page(owner):
    word = tag(owner)
    row = next(line for line in PAGE.split("\n") if re.search(rf"\b{word}\(.*=", line))
    for field in fields(owner).values():
        assert field.positional or re.search(rf"\b{field.key}\b", row), field.key
