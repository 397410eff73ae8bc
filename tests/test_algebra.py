"""Expressions of every kind under every operator: they check or are explained; what checks prints, survives and is counted."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attnc.compiler import check_text
from attnc.compiler.cache_spec import cache_bytes, cache_spec
from attnc.compiler.causality import causality
from attnc.compiler.data import from_json, to_json
from attnc.compiler.laws import laws
from attnc.compiler.mixers import MIXERS
from attnc.compiler.print_value import print_value
from attnc.compiler.spec import Change, Choose, Context, Gate, Heads, Route, Select, Spec, When
from attnc.compiler.table import table
from attnc.compiler.table_text import table_text
from attnc.compiler.unbuilt import unbuilt
from attnc.compiler.walk import every, parts
from attnc.dsl import SpecError

EXAMPLES = {
    sort: [print_value(example) for mixer in MIXERS.values() if mixer.type == sort for example in mixer.examples]
    for sort in ("keys", "mixer", "change")
}
MEMORIES = [print_value(example) for example in MIXERS["memory"].examples]
ATTRIBUTES = ("scale = 2", "output_norm = rms", "rope = none", "temperature = 2", "output_gate = silu", "short_conv = 3")
PER = ("layer", "head")

key_sets = st.lists(st.sampled_from(EXAMPLES["keys"]), min_size=1, max_size=3).map(" | ".join)
mixers = st.sampled_from(EXAMPLES["mixer"])


def operators(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """One operator around expressions."""
    two = st.tuples(inner, inner)
    router = st.sampled_from(["router(linear)", "router(mlp, pool = mean)", "divergence(threshold = 0.1, queries = last(4))"])
    per_route = st.sampled_from([*PER, "token", "chunk(4)"])
    cases = two.map(lambda pair: f"{{ a: {pair[0]}, b: {pair[1]} }}")
    return st.one_of(
        two.map(lambda pair: f"({pair[0]} + {pair[1]})"),
        two.map(lambda pair: f"({pair[0]} >> {pair[1]})"),
        st.tuples(two, st.sampled_from(["sigmoid", "softmax", "product"])).map(
            lambda x: f"gate({x[0][0]}, {x[0][1]}, by = {x[1]})"
        ),
        two.map(lambda pair: f"gate({pair[0]}, {pair[1]}, shared = [q])"),
        two.map(lambda pair: f"when {{ length < 9: {pair[0]}, phase == decode: {pair[1]}, else: {pair[0]} }}"),
        two.map(lambda pair: f"heads {{ 0: {pair[0]}, else: {pair[1]} }}"),
        st.tuples(st.sampled_from(PER), cases).map(lambda x: f"choose(per = {x[0]}) {x[1]}"),
        st.tuples(per_route, router, cases).map(lambda x: f"route(per = {x[0]}, by = {x[1]}) {x[2]}"),
        st.tuples(st.sampled_from(MEMORIES), st.sampled_from([16, 60, 64])).map(lambda x: f"context({x[0]}, segment = {x[1]})"),
        inner.map(lambda one: f"select({one}, keep = 50%, by = gumbel)"),
        st.tuples(inner, st.sampled_from(ATTRIBUTES)).map(lambda x: f"(({x[0]}) {{ {x[1]} }})"),
    )


def whole(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """A whole layer: now and then a change of the sequence before its mixer."""
    changed = st.tuples(st.sampled_from(EXAMPLES["change"]), inner).map(lambda x: f"{x[0]} >> {x[1]}")
    return st.one_of(inner, inner, inner, changed)


expressions = whole(st.recursive(st.one_of(key_sets, key_sets, mixers), operators, max_leaves=6))


def spec_of(expression: str, causal: bool) -> str:
    sizes = "vocab = 9, dim = 64, layers = 3, heads = 4, kv_heads = 4, head_dim = 16, ffn = none, norm = rms(1e-6)"
    return f"model m {{ {sizes}, causal = {str(causal).lower()} }}\nlayers {{ 0: full, 1: {expression}, else: full }}"


def holds(spec: Spec) -> None:
    """Everything that is computed of a checked spec without a reference."""
    assert table_text(spec)
    assert {layer for row in table(spec) for layer in row.layers} == {0, 1, 2}
    again = check_text(spec.text)
    assert again.text == spec.text
    assert [layer.mixer.node for layer in again.layers] == [layer.mixer.node for layer in spec.layers]
    assert from_json(Spec, to_json(spec)) == spec
    rows = cache_spec(spec, "float32")
    assert len({row.name for row in rows}) == len(rows)
    assert cache_bytes(spec, 1, "float32") <= cache_bytes(spec, 100, "float32")
    scopes = {(layer.index, part.scope) for layer in spec.layers for part in parts(layer.mixer)}
    assert {(row.layer, row.scope) for row in rows} <= scopes
    firsts = {row.layers[0] for row in table(spec)}
    assert {one.name for row in table(spec) for one in row.cache} == {row.name for row in rows if row.layer in firsts}
    assert laws(spec)
    assert causality(spec)
    for one in unbuilt(spec):
        assert one.render()


@given(expressions, st.sampled_from([True, True, True, False]))
def test_an_expression_checks_or_is_explained(expression, causal):
    try:
        spec = check_text(spec_of(expression, causal))
    except SpecError as error:
        for one in error.diagnostics:
            assert one.code != "A101", "check refuses nothing for being not built"
            assert one.expected
            assert one.help
        return
    holds(spec)


@pytest.mark.parametrize(
    ("expression", "node"),
    [
        ("heads { 0: full, else: linear(update = delta) }", Heads),
        ("when { length < 9: full + conv(3), else: ssm(mamba) }", When),
        ("choose(per = head, by = retrieval_score(share = 25%)) { a: full, b: linear { qk_norm = l2 } }", Choose),
        ("route(per = chunk(4), by = router(linear)) { a: full { qk_norm = rms }, b: linear { qk_norm = l2 } }", Route),
        ("route(per = layer, by = router(mlp, pool = ends(9), init = [1, 2])) { a: full, b: conv(3) + full }", Route),
        ("gate(window(4), full, by = softmax, shared = [q, k, v])", Gate),
        ("context(memory(linear, chunk = 8) { short_conv = 3 }, segment = 16, persistent = 4)", Context),
    ],
)
def test_whole_mixers_stand_in_blocks(expression, node):
    spec = check_text(spec_of(expression, True))
    assert isinstance(spec.layers[1].mixer, node)
    holds(spec)


@pytest.mark.parametrize(
    ("expression", "node"),
    [
        ("select(full + ssm(s4d), keep = 12.5%, by = gumbel(ema = 0.9))", Select),
        ("merge(25%, by = bipartite) >> full { proportional = true }", Change),
        ("insert(landmark, every = 3) >> merge(25%, by = bipartite) >> full", Change),
    ],
)
def test_encoders_select_and_merge(expression, node):
    spec = check_text(spec_of(expression, False))
    assert any(isinstance(one, node) for one in every(spec.layers[1].mixer))
    holds(spec)


def test_parts_of_nested_blocks_have_places_of_their_own():
    inner = "when { length < 9: linear, phase == decode: linear, else: full }"
    spec = check_text(spec_of(f"when {{ length < 5: linear, length < 7: {inner}, else: linear }}", True))
    holds(spec)
    rows = [row for row in table(spec) if row.layers == (1,)]
    assert [row.scope for row in rows] == ["linear", "when.linear", "when.linear_2", "", "linear_2"]
    assert [one.scope for one in parts(spec.layers[1].mixer)] == ["", "linear", "when.linear", "when.linear_2", "linear_2"]


def test_a_softmax_that_no_default_comes_to_keeps_nothing():
    spec = check_text(spec_of("choose(per = layer) { a: linear + linear, b: full }", True))
    holds(spec)
    met = {one.scope: bool(one.phases) for one in parts(spec.layers[1].mixer)}
    assert met == {"": False, "a.linear": True, "a.linear_2": True}


def test_attributes_around_an_expression_reach_every_mixer_in_it():
    mixer = check_text(spec_of("(full + feedback) { activation = gelu, output_gate = linear }", True)).layers[1].mixer
    assert [(one.attributes.activation, one.attributes.output_gate) for one in mixer.parts] == [("gelu", "linear")] * 2
    context = check_text(spec_of("context(memory(linear), segment = 64) { output_norm = rms }", True)).layers[1].mixer
    assert context.attributes.output_norm == context.memory.attributes.output_norm == "rms"


def test_attributes_around_a_chain_stand_before_its_first_mixer_and_behind_its_last():
    around = "{ activation = gelu, output_gate = linear, qk_norm = l2 }"
    mixer = check_text(spec_of(f"(full >> conv(3) >> window(4) {{ scale = 2 }}) {around}", True)).layers[1].mixer
    first, _, last = (one.attributes for one in mixer.parts)
    assert (first.activation, first.output_gate, first.qk_norm) == ("gelu", None, "l2")
    assert (last.activation, last.output_gate, last.qk_norm, last.scale) == (None, "linear", "l2", 2)
    assert mixer.gated
    own = "(full >> window(4) { output_gate = silu }) { output_gate = linear }"
    assert not check_text(spec_of(own, True)).layers[1].mixer.gated


def test_a_choice_is_taken_over_from_a_full_layer_or_one_that_chooses():
    head = spec_of("full", True).partition("layers {")[0].replace("layers = 3", "layers = 4")
    reuse = "window(3) | routed(tokens, top_k = 2, from = previous)"
    check_text(f"{head}layers {{ 0: full, else: {reuse} }}")
    check_text(f"{head}layers {{ 0: window(3) | routed(tokens, top_k = 2), 1..2: conv(3), 3: {reuse} }}")
    check_text(
        f"{head}layers {{ all: choose(per = layer, by = similarity(threshold = 0.8)) {{ dense: full, reuse: {reuse} }} }}"
    )
    for layers in (
        f"all: choose(per = layer) {{ reuse: {reuse}, dense: full }}",
        f"first(3): choose(per = layer) {{ near: window(3), dense: full }}, 3: {reuse}",
    ):
        with pytest.raises(SpecError) as caught:
            check_text(f"{head}layers {{ {layers} }}")
        assert [one.code for one in caught.value.diagnostics] == ["A209"]
