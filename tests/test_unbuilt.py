"""What checks and does not build: found from the spec alone, at its line; whatever needs a reference refuses it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_algebra import operators, spec_of

import attnc
from attnc.compiler import check_text, graph, passes
from attnc.compiler.mixers import MIXERS
from attnc.compiler.parameters import parameters
from attnc.compiler.print_value import print_value
from attnc.compiler.table_text import table_text
from attnc.compiler.unbuilt import unbuilt
from attnc.dsl import SpecError

MODEL = "model m { vocab = 100, dim = 64, layers = 6, heads = 8, kv_heads = 4, ffn = swiglu(64), norm = rms(1e-6) }\n"

NOT_BUILT = {
    "kinds": "layers { 0: insert(landmark, every = 4) >> full, else: sink(3, detect = cosine(0.5)) }",
    "kinds_in_mixes": "mix far = full { score = grouped(5) }\nmix near = window(4) | sink(4, detect = cosine(0.5))\n"
    "layers { first(2): far + near, else: near }",
    "values": "layers { 0: sink(4, detect = cosine(0.9)), 1: full { score = grouped(5) }\n"
    "  else: recurrent(gru) { input_ema = 2 } }",
    "routes": "layers { 0: route(per = layer, by = router(mlp)) { a: full, b: window(5) }\n"
    "  1: route(per = chunk(4), by = router(linear, pool = mean)) { a: full, b: linear }\n"
    "  2: route(per = head, by = divergence(threshold = 0.1, queries = last(4))) { a: full, b: window(5) }\n"
    "  else: route(per = token, by = router(linear, init = [1, 2])) { a: full, b: sink(3) } { score = uniform } }",
    "whole_mixers": "layers { 0: when { length < 5: conv(3), else: full }, 1: choose(per = layer) { a: full, b: "
    "full + full { distribute = mesh } }, 3: choose(per = layer) { a: full + full { distribute = mesh }, b: full }\n"
    "  2: heads { 0: full, else: memory(linear) }, else: gate(full, linear, shared = [q]) }",
    "states_of_heads": "layers { 0: heads { 0: full, else: linear } { output_gate = silu }\n"
    "  1: heads { 0: full, else: linear { value_dim = 4, qk_heads = 2 } }\n"
    "  2: heads { 0: linear, else: choose(per = layer) { a: linear(decay = slopes), b: full } }\n"
    "  3: when { phase == prefill: full, else: linear }, 4: when { length < 5: heads { 0: full, else: linear }, else: full }\n"
    "  else: window(4) >> heads { 0: full, else: linear } }",
    "other_attributes": "layers { 0: when { length < 5: full { rope = none }, else: full }\n"
    "  1: when { length < 5: persistent(3) | full, else: full }\n"
    "  2: heads { 0: full { share_qk = true }, else: full } { kv_heads = 8 }\n"
    "  else: choose(per = layer) { a: full, b: full { qk_from = previous } } }",
    "wrapped": "mix ltm = memory(linear, chunk = 8)\nlayers { 0: insert(landmark, every = 4) >> full, else: "
    "context(ltm, segment = 16) { short_conv = 3 } }",
    "latents": "layers { 0: full { kv_latent = 8, qk_norm = rms, short_conv = 3 }\n"
    "  1: persistent(2) | full { kv_latent = 8, init_qk = normal }\n"
    "  2: heads { 0: full { rope = none }, else: window(4) } { kv_latent = 8 }\n"
    "  3: heads { 0: when { length < 5: full, else: window(3) }, else: window(3) } { kv_latent = 8, positions = consecutive }\n"
    "  4: gate(full, window(4), by = softmax, shared = [q]) { kv_latent = 8 }\n"
    "  5: full { qk_from = previous } }",
    "qk_from_branches": "layers { first(3): full + conv(3), else: full { qk_from = previous } }",
}


@pytest.mark.parametrize("name", NOT_BUILT)
def test_a_spec_that_does_not_build_says_so_at_its_lines(name, golden):
    spec = check_text(MODEL + NOT_BUILT[name], f"{name}.attn")
    golden(f"{name}.txt", "\n\n".join(one.render() for one in unbuilt(spec)) + "\n")
    assert table_text(spec)


@pytest.mark.parametrize("name", NOT_BUILT)
def test_whatever_needs_a_reference_refuses_what_has_none(name, tmp_path):
    spec = check_text(MODEL + NOT_BUILT[name], f"{name}.attn")
    for needs in (lambda: graph.build(spec), lambda: attnc.plan(spec), lambda: attnc.build(spec, tmp_path / "out")):
        with pytest.raises(SpecError) as caught:
            needs()
        assert {one.code for one in caught.value.diagnostics} == {"A101"}
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", [name for name, mixer in MIXERS.items() if mixer.type == "keys"])
def test_a_kind_builds_or_is_named(name):
    builds = []
    for example in MIXERS[name].examples:
        spec = check_text(f"{MODEL}layers {{ all: window(2) | {print_value(example)} }}")
        assert example in spec.layers[0].mixer.keys
        found = unbuilt(spec)
        assert all(f"`{name}`" in one.message or "`keys`" in one.message for one in found)
        builds.append(not found)
    assert any(builds) == MIXERS[name].built


def test_a_spec_that_builds_has_no_finding():
    text = (
        "layers { 0: full { kv_latent = 8, rope_dim = 4 } + conv(3), "
        "1: when { length < 5: full, else: window(3) }, else: heads { 0: full, else: sink(2) } }"
    )
    assert unbuilt(check_text(MODEL + text)) == ()


BUILT = [
    print_value(example)
    for mixer in MIXERS.values()
    if mixer.type == "keys" and mixer.built
    for example in mixer.examples
    if not unbuilt(check_text(f"{MODEL}layers {{ all: {print_value(example)} }}"))
]
unions = st.lists(st.sampled_from(BUILT), min_size=1, max_size=3).map(" | ".join)
built_expressions = st.recursive(st.one_of(unions, unions, unions, st.just("conv(3)")), operators, max_leaves=6)


@given(built_expressions)
def test_a_graph_is_made_of_whatever_has_no_finding(expression):
    try:
        spec = check_text(spec_of(expression, True))
    except SpecError:
        return
    if unbuilt(spec):
        with pytest.raises(SpecError):
            graph.build(spec)
    else:
        assert parameters(spec, passes.run(graph.build(spec)))


def test_findings_are_few_however_many_layers_have_them():
    layers = "\n".join(f"{n}: recurrent(gru) {{ input_ema = {n % 64 + 1}, scale = {n} }}" for n in range(400))
    spec = check_text(MODEL.replace("layers = 6", "layers = 400") + f"layers {{ {layers} }}")
    assert len(unbuilt(spec)) == 50
