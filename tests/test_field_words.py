"""What papers and libraries call a thing leads to how the language writes it."""

from __future__ import annotations

import pytest

from attnc.cli.fixing import check_source, fix_source
from attnc.compiler import check_text
from attnc.compiler.attributes import Attributes
from attnc.compiler.field_words import KINDS, RENAMED, SELECTORS, VALUES, WRITTEN, WRITTEN_VALUES
from attnc.compiler.fields import fields, options
from attnc.compiler.mixers import MIXERS
from attnc.compiler.model_settings import ModelSettings
from attnc.dsl import Source, SpecError

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


def fixed(text):
    return fix_source("a.attn", Source("a.attn", text)).text


SETTINGS = {**fields(ModelSettings), **fields(Attributes)}
ARGUMENTS = {key for mixer in MIXERS.values() for key in fields(mixer.parameters)} | {"segment", "persistent"}


@pytest.mark.parametrize("word", RENAMED)
def test_a_key_of_another_library_is_none_here_and_leads_to_one(word):
    assert word not in SETTINGS
    assert set(RENAMED[word]) <= {*SETTINGS, *ARGUMENTS}


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("vocab_size = 100, dim = 64, n_layers = 4", "vocab = 100, dim = 64, layers = 4"),
        ("vocab = 100, hidden_size = 64, num_hidden_layers = 4", "vocab = 100, dim = 64, layers = 4"),
        ("vocab = 100, dim = 64, layers = 4, rope_theta = 5e5", "vocab = 100, dim = 64, layers = 4, rope = 5e5"),
        ("vocab = 100, dim = 64, layers = 4, tie_embeddings = yes", "vocab = 100, dim = 64, layers = 4, tie = true"),
        ("vocab = 100, dim = 64, layers = 4, qk_norm = false", "vocab = 100, dim = 64, layers = 4, qk_norm = none"),
        ("vocab = 100, dim = 64, layers = 4, output_gate = swish", "vocab = 100, dim = 64, layers = 4, output_gate = silu"),
        ("vocab = 100, dim = 64, layers = 4tokens", "vocab = 100, dim = 64, layers = 4"),
    ],
)
def test_settings_as_other_libraries_write_them_are_fixed(wrong, right):
    frame = "model m {{ {}, heads = 8, ffn = none, norm = rms(1e-6) }}\nlayers {{ all: full }}\n"
    assert fixed(frame.format(wrong)) == frame.format(right)


def test_a_setting_with_another_name_is_not_missed_as_well():
    text = "model m { vocab = 100, d_model = 64, layers = 4, heads = 8, ffn = none, norm = rms(1e-6) }\nlayers { all: full }"
    assert [one.help for one in check_source("a.attn", Source("a.attn", text)).mistakes] == ["did you mean `dim`?"]


@pytest.mark.parametrize("word", WRITTEN)
def test_a_setting_that_is_written_in_another_way_is_told_how(word):
    text = MODEL.replace("vocab", f"{word} = 4, vocab") + "layers { all: full }"
    with pytest.raises(SpecError) as caught:
        check_text(text)
    assert [one.help for one in caught.value.diagnostics] == [f"it is written `{WRITTEN[word]}` here"]
    setting = WRITTEN[word].partition(" = ")[0]
    assert setting in SETTINGS or WRITTEN[word].startswith(("layers {", "routed("))


@pytest.mark.parametrize(
    ("body", "line"),
    [
        ("gate(full, window(4)) { by = softmax }", "`by` is an argument of `gate`: write it in its parentheses"),
        ("window(4) { aligned = 2 }", "`aligned` is an argument of `window`: write it in its parentheses"),
        ("(sink(2) | window(4)) { aligned = 2 }", "`aligned` is an argument of `window`: write it in its parentheses"),
        ("window(4, rope = none)", "`rope` is an attribute: write it in braces behind the mixer, `{ rope = ... }`"),
        ("ssm(mamba, d_conv = 4)", "`short_conv` is an attribute: write it in braces behind the mixer, `{ short_conv = ... }`"),
        ("memory(mlp, depth = 2)", "`depth` is an argument of `mlp`: write it in its parentheses"),
        ("memory(mlp(2))", "give it by its key: `depth = 2`, or what it is"),
        ("routed(blocks(4), 2)", "give it by its key: `top_k = 2`, or what it is"),
        ("full { activation = swiglu }", "it is written `ffn = swiglu(5632)` here"),
        ("linear(normalize = true)", "write `sum`"),
        ("window(0.5)", "a share is written `50%`; a number of tokens is whole"),
    ],
)
def test_what_stands_in_the_wrong_place_is_told_where_it_belongs(body, line):
    assert helps(f"layers {{ all: {body} }}") == [line]


@pytest.mark.parametrize("word", sorted({*VALUES, *WRITTEN_VALUES}))
def test_a_value_of_another_library_leads_to_one_that_some_field_takes(word):
    taken = {one for mixer in MIXERS.values() for field in fields(mixer.parameters).values() for one in options(field.types)}
    taken |= {one for field in SETTINGS.values() for one in options(field.types)} | {"product", "decode"}
    meant = VALUES.get(word) or (word,)
    assert set(meant) <= taken


@pytest.mark.parametrize(
    "text",
    [
        MODEL + "layers { all: recurrent(rglru) }",  # is no misspelt gru
        MODEL + "layers { all: ssm(mamba) { short_conv = 4, d_conv = 4 } }",  # a second short_conv would be another mistake
        MODEL + "layers { all: full, else: window(4) }",  # a second else as well
    ],
)
def test_what_may_be_meant_otherwise_is_not_fixed_by_machine(text):
    assert fixed(text) == text


def test_a_letter_with_a_mark_is_read_without_it():
    assert fixed(MODEL + "layers { all: w\u00efndow(4) }") == MODEL + "layers { all: window(4) }"


def test_messages_show_what_is_written_and_not_what_was_read():
    with pytest.raises(SpecError) as caught:
        check_text(MODEL + 'layers { all: "two words" full }')
    assert "`x`" not in str(caught.value)


@pytest.mark.parametrize(
    ("body", "right"),
    [
        ("when { decode: full, else: window(4) }", "when { phase == decode: full, else: window(4) }"),
        ("gate(full, window(4), shared = q)", "gate(full, window(4), shared = [q])"),
    ],
)
def test_a_word_that_lacks_what_stands_around_it_is_fixed(body, right):
    assert fixed(f"{MODEL}layers {{ all: {body} }}") == f"{MODEL}layers {{ all: {right} }}"


@pytest.mark.parametrize("block", ["choose", "route"])
def test_a_block_without_arguments_is_told_how_it_is_written(block):
    (line,) = helps(f"layers {{ all: {block} {{ a: full, b: window(4) }} }}")
    assert line.startswith(f"write `{block}(per = ")
    check_text(f"{MODEL}layers {{ all: {line.removeprefix('write `').removesuffix('`')} }}")


def test_what_is_missing_is_shown_with_what_it_needs_itself():
    (line,) = helps("layers { all: route(per = token) { a: full, b: window(4) } }")
    assert line == "add `by = router(linear)`"


def test_another_number_in_a_name_is_no_misspelling():
    text = MODEL + "layers { all: ssm(mamba3) }"
    assert fixed(text) == text
