"""A method on another model's body: what moves, what stays, and what is said when rules do not fit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from attnc.compiler.check import check
from attnc.compiler.graft import graft, resampled
from attnc.dsl import Source, SpecError, parse, tree

SPECS = Path(__file__).parent.parent / "specs"

BODY = """# A small model, imported.
model small {{
  vocab = 96, dim = 48, layers = {layers}, ffn = swiglu(64), norm = rms(1e-5), tie = true
  heads = {heads}, kv_heads = {groups}, head_dim = 8, rope = 500, qk_norm = rms
}}

layers {{ all: full {{ temperature = 2 }} }}
"""


def body(layers: int = 30, heads: int = 9, groups: int = 3) -> tree.File:
    return parse(Source("model.attn", BODY.format(layers=layers, heads=heads, groups=groups)))


def method(layers: str, *, count: int = 36, groups: int = 8, rest: str = "") -> tree.File:
    text = (
        "# Two sorts of layers: near and far. Training-free.\n"
        f"model method {{ vocab = 7, dim = 64, layers = {count}, norm = layer(1e-3)\n"
        f"  heads = 8, kv_heads = {groups}, rope = 3 }}\n"
        f"mix near = sink(4) | window(16)\n{rest}layers {{ {layers} }}\n"
    )
    return parse(Source("method.attn", text))


def refused(method: tree.File, onto: tree.File) -> SpecError:
    with pytest.raises(SpecError) as raised:
        graft(method, onto)
    return raised.value


def fixed(text: str, error: SpecError) -> str:
    """The text after all proposed edits, each once, from the end."""
    edits = {(d.fix.span.start, d.fix.span.end, d.fix.text) for d in error.diagnostics if d.fix}
    for start, end, new in sorted(edits, reverse=True):
        text = text[:start] + new + text[end:]
    return text


def test_mixes_layers_recipe_and_driver_move_and_the_model_stays() -> None:
    driver = "driver retrieve { window = 8, layer = last, queries = question, top_k = 3 }\n"
    rest = f"recipe {{ train = [attention], lora = [q, k] }}\n{driver}"
    text = graft(method("every(6): full { rope = 9 }, else: near", rest=rest), body())
    assert text == (
        "# Two sorts of layers, on small.\n"
        "model small {\n"
        "  vocab = 96, dim = 48, layers = 30, ffn = swiglu(64), norm = rms(1e-5), tie = true\n"
        "  heads = 9, kv_heads = 3, head_dim = 8, rope = 500, qk_norm = rms\n"
        "}\n\n"
        "mix near = sink(4) | window(16)\n\n"
        "recipe { train = [attention], lora = [q, k] }\n\n"
        "driver retrieve { window = 8, layer = last, queries = question, top_k = 3 }\n\n"
        "layers {\n"
        "  every(6): full { rope = 9 }\n"
        "  else    : near\n"
        "}\n"
    )


def test_what_the_methods_model_sets_for_its_mixers_is_left_behind() -> None:
    spec = check(parse(Source("new.attn", graft(method("every(6): full { rope = 9 }, else: near"), body()))))
    here = check(body())
    assert spec.model == here.model
    attributes = {layer.index % 6 == 5: layer.mixer.attributes for layer in spec.layers}
    kept = here.layers[0].mixer.attributes
    assert attributes[False] == replace(kept, temperature=1.0)
    assert attributes[True] == replace(kept, temperature=1.0, rope=9.0)


@pytest.mark.parametrize(
    "name", ["full", "window-global", "masformer", "power", "duo", "retrieval-heads", "streaming-llm", "softplus"]
)
def test_shipped_methods_go_onto_another_body_and_check(name: str) -> None:
    path = SPECS / f"{name}.attn"
    text = graft(parse(Source(str(path), path.read_text())), body(layers=24, heads=32, groups=4))
    spec = check(parse(Source("new.attn", text)))
    assert (spec.model.name, len(spec.layers)) == ("small", 24)
    assert (
        graft(parse(Source("new.attn", text)), body(layers=24, heads=32, groups=4)).split("\n", 1)[1] == text.split("\n", 1)[1]
    )


def test_layers_that_are_not_there_come_with_rules_that_fit() -> None:
    wrong = method("[0..1, 34..35]: full, else: near")
    error = refused(wrong, body())
    assert [diagnostic.code for diagnostic in error.diagnostics] == ["A202", "A202"]
    first = error.diagnostics[0]
    assert first.span.text == "34"
    assert [(text, span.text) for text, span in first.notes] == [("the model that the method is grafted onto", "layers = 30")]
    assert first.help == "at the same places of 30 layers: `[0..1, 28..29]: ...`, `else: ...`"
    again = parse(Source("method.attn", fixed(wrong.source.text, error)))
    spec = check(parse(Source("new.attn", graft(again, body()))))
    assert [layer.index for layer in spec.layers if layer.origin.text.endswith("full")] == [0, 1, 28, 29]


def test_layers_without_a_rule_come_with_rules_that_fit() -> None:
    wrong = method("0..17: full, 18..35: near")
    error = refused(wrong, body(layers=48))
    assert [diagnostic.code for diagnostic in error.diagnostics] == ["A201"]
    spec = check(parse(Source("new.attn", graft(parse(Source("m", fixed(wrong.source.text, error))), body(layers=48)))))
    assert [layer.origin.text.endswith("full") for layer in spec.layers] == [True] * 24 + [False] * 24


def test_kv_groups_that_are_not_there_come_with_groups_that_fit() -> None:
    wrong = method("all: heads { 0..1: full, 2..7: near }")
    error = refused(wrong, body())
    (diagnostic,) = error.diagnostics
    assert diagnostic.code == "A205"
    assert diagnostic.notes[-1][1].text == "kv_heads = 3"
    assert diagnostic.help == "at the same places of 3 KV groups: `0: ...`, `1..2: ...`"
    assert "0   : full\n    1..2: near" in graft(parse(Source("m", fixed(wrong.source.text, error))), body())


def test_a_share_that_does_not_divide_the_groups_is_said_with_one_that_fits() -> None:
    wrong = method("all: heads { 50%: full, else: near }")
    error = refused(wrong, body())
    assert [diagnostic.code for diagnostic in error.diagnostics] == ["A207"]
    graft(parse(Source("m", fixed(wrong.source.text, error))), body())


def test_nothing_is_proposed_where_a_rule_would_be_left_without_a_layer() -> None:
    error = refused(method("0: full, 1..34: near, 35: full { rope = none }"), body(layers=2))
    assert error.diagnostics
    assert all(diagnostic.fix is None for diagnostic in error.diagnostics)


def test_mistakes_of_the_method_itself_are_passed_on() -> None:
    error = refused(method("all: nera"), body())
    assert [diagnostic.code for diagnostic in error.diagnostics] == ["A100"]


@pytest.mark.parametrize(
    ("owner", "count", "expected"), [([0, 1], 4, [0, 0, 1, 1]), ([0, 0, 1, 1], 2, [0, 1]), ([0, 1, 2], 3, [0, 1, 2])]
)
def test_rules_keep_their_relative_places(owner: list[int], count: int, expected: list[int]) -> None:
    assert resampled(owner, count) == expected
