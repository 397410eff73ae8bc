"""One run tells the mistakes of names and values beside syntax errors, and none that only follow from these."""

from __future__ import annotations

import pytest

from attnc.compiler import check_text
from attnc.dsl import SpecError

MODEL = "model m { vocab = 100, dim = 64, layers = 4, heads = 8, kv_heads = 4, ffn = swiglu(64), norm = rms(1e-6) }\n"


def found(text):
    with pytest.raises(SpecError) as caught:
        check_text(text)
    return [(one.code, one.span.text) for one in caught.value.diagnostics]


def test_unknown_names_are_told_beside_syntax_errors():
    text = MODEL + "mix near = windw(64)\nlayers {\n  0: full()\n  1: near { rpoe = none }\n  else = stride(1)\n}"
    assert found(text) == [("A100", "windw"), ("A013", "full()"), ("A102", "rpoe"), ("A018", "="), ("A104", "1")]


def test_settings_of_the_model_are_told_beside_syntax_errors_and_lost_ones_are_not_missed():
    assert found("model m { vocab = 8k, hidden = 4, dim = , norm = rsm(1e-6) }\nlayers { all: full }") == [
        ("A008", "8k"),
        ("A102", "hidden"),
        ("A014", ""),
        ("A103", "rsm(1e-6)"),
    ]


@pytest.mark.parametrize(
    "body",
    [
        "mix near = sink(4) sink\nlayers { all: near }",  # the mix is lost, not unknown
        "near = window(4)\nlayers { all: near }",
        "layers { all: choose(per = layer) { a: full, b: | } }",  # not a choice of one
        "layers { all: heads { 0 full } }",
        "layers { all: window(4k, aligned = 3) }",  # 4k is read as another number
        "layers { 0: full, 99: , else: full }",
        "layers { all: full { causal } }",
        "driver retrieve { window 4 }\nlayers { all: full }",
    ],
)
def test_what_follows_from_a_syntax_error_is_not_told(body):
    codes = [code for code, _ in found(MODEL + body)]
    assert codes
    assert all(code.startswith("A0") for code in codes), codes


def test_nothing_more_is_told_where_a_bracket_is_not_closed():
    assert found(MODEL + "layers { all: windw(4)") == [("A011", "{")]


def test_a_text_full_of_mistakes_has_a_last_one():
    text = MODEL + "layers {\n" + "".join(f"  {i}: full()\n  {i}: windw(4)\n" for i in range(40)) + "}"
    assert len(found(text)) == 50
