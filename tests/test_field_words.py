"""What papers and libraries call a thing leads to how the language writes it."""

from __future__ import annotations

import pytest

from attnc.compiler import check_text
from attnc.compiler.field_words import KINDS, SELECTORS
from attnc.compiler.mixers import MIXERS
from attnc.dsl import SpecError

MODEL = "model m { vocab = 100, dim = 64, layers = 4, heads = 8, kv_heads = 4, ffn = swiglu(64), norm = rms(1e-6) }\n"


def helps(body):
    with pytest.raises(SpecError) as caught:
        check_text(MODEL + body)
    return [one.help for one in caught.value.diagnostics]


@pytest.mark.parametrize("word", KINDS)
def test_a_word_of_the_field_is_told_what_is_written_here_and_that_checks(word):
    assert word not in MIXERS
    assert helps(f"layers {{ all: {word} }}") == [f"it is written `{KINDS[word]}` here"]
    check_text(f"{MODEL}layers {{ all: {KINDS[word]} }}")


@pytest.mark.parametrize("word", SELECTORS)
def test_a_selector_of_another_language_is_told_what_is_written_here(word):
    if SELECTORS[word] != "all":  # which stands alone
        text = f"layers {{ first(1): full, {word}: window(4) }}"
        assert helps(text)[0] == f"write `{SELECTORS[word]}`"
    text = f"layers {{ {word}: full }}"
    assert helps(text) == [f"write `{SELECTORS[word]}`"]


def test_a_mix_of_the_spec_is_nearer_than_a_word_of_the_field():
    assert helps("mix locl = full\nlayers { all: local }") == ["did you mean `locl`?"]


@pytest.mark.parametrize("block", ["when length < 9", "heads 0"])
def test_a_block_without_braces_is_told_how_it_is_written(block):
    (line,) = helps(f"layers {{ all: {block} }}")
    assert line.startswith(f"write `{block.split()[0]} {{ ")
    check_text(f"{MODEL}layers {{ all: {line.removeprefix('write `').removesuffix('`')} }}")
