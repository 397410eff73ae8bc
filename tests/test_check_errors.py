"""What a wrong spec is told: every code of the checker, with the place, what was expected, and help."""

from __future__ import annotations

import pytest

from attnc.compiler import check_text
from attnc.compiler.codes import CODES
from attnc.dsl import SpecError

MODEL = "model m { vocab = 100, dim = 64, layers = 6, heads = 8, kv_heads = 4, ffn = swiglu(64), norm = rms(1e-6) }\n"
DEEP = "\n".join(["mix a0 = full + full", *(f"mix a{n} = a{n - 1} + a{n - 1}" for n in range(1, 12))])
NESTED = "\n".join(
    ["mix a0 = full", *(f"mix a{n} = a{n - 1} {{ tie = 1 }}".replace("tie = 1", "scale = 1") for n in range(1, 80))]
)

WITHIN = "\n".join(
    [
        "mix a0 = routed(tokens, top_k = 1)",
        *(f"mix a{n} = a{n - 1} | routed(tokens, top_k = {n + 1}, within = a{n - 1})" for n in range(1, 30)),
    ]
)

WRONG = {
    "unknown_kind": MODEL + "layers { all: windw(12) }",
    "unknown_mix_among_others": MODEL + "mix local = window(12)\nlayers { all: locl }",
    "mix_before_its_definition": MODEL + "mix one = two\nmix two = full\nlayers { all: one }",
    "mix_of_itself": MODEL + "mix one = sink(4) | one\nlayers { all: one }",
    "attributes_of_a_convolution": MODEL + "layers { all: full + conv(3) { rope = none } }",
    "learned_keys_twice": MODEL + "layers { 0: persistent(2) | full | persistent(3), else: full }",
    "unknown_argument": MODEL + "layers { all: window(12, algined = 4) }",
    "too_many_arguments": MODEL + "layers { 0: full(3), else: sink(3, 4) }",
    "unknown_attribute": MODEL + "layers { all: full { rop = none } }",
    "unknown_setting": MODEL.replace("ffn", "fnn") + "layers { all: full }",
    "wrong_sorts": MODEL
    + "layers { 0: window(full), 1: sink(3%), 2: full { causal = 1 }, 3: full { rope = [1, 2] }, else: stride(2.5) }",
    "out_of_bounds": MODEL
    + "layers { 0: window(0), 1: sink(65537), 2: stride(1), 3: window(101%), else: full { short_conv = 9 } }",
    "a_billion_layers": MODEL.replace("layers = 6", "layers = 1000000000") + "layers { all: full }",
    "huge_numbers": MODEL + "layers { 0: window(999999999999999999999999), else: full { rope = 1e308 } }",
    "missing_arguments": MODEL
    + "layers { 0: window, 1: window(aligned = 4), else: choose(by = loss(data = tasks)) { a: full, b: sink(1) } }",
    "missing_settings": "model m { vocab = 100 }\nlayers { all: full }",
    "given_twice": MODEL + "layers { all: window(12, n = 13) }",
    "choose_names": MODEL
    + "layers { 0: choose(per = head) { a: full, a: sink(1) }, 1: choose(per = head) { 3: full, b: sink(1) } }",
    "one_alternative": MODEL + "layers { all: choose(per = head) { a: full } }",
    "budget_where_none_may_be": MODEL + "layers { all: conv(budget(2..4, default = 3)) }",
    "budgets_that_contradict": MODEL
    + "layers { 0: window(budget(9..30, default = 31)), 1: window(budget(1..50%, default = 3)), 2: window(budget(9..30)) }",
    "budget_as_a_mixer": MODEL + "layers { all: budget(1..2, default = 1) }",
    "budget_method": MODEL + "layers { all: window(budget(1..9, default = 3, per = head, by = coverge(90%))) }",
    "taken_name": MODEL + "mix window = full\nmix linear = full\nlayers { all: full }",
    "mixes_that_explode": MODEL + DEEP + "\nlayers { all: a11 }",
    "arguments_that_explode": MODEL + WITHIN + "\nlayers { all: a29 }",
    "mixes_that_nest": MODEL + NESTED + "\nlayers { all: a79 }",
    "two_rules": MODEL + "layers { 0..3: full, every(2): window(5), else: full }",
    "all_beside_others": MODEL + "layers { all: full, 3: window(5) }",
    "uncovered": MODEL + "layers { first(2): full, 4: window(5) }",
    "no_such_layer": MODEL + "layers { 6: full, 2..9: full, [1, 7]: full, first(9): full, every(3, at = 3): full, else: full }",
    "rule_without_layers": MODEL + "layers { every(7): full, else: window(5) }",
    "selector_words": MODEL + "layers { frist(2): full, 50%: full, every(2, in = 3..8): full, else: full }",
    "key_set_or_mixer": MODEL
    + "mix one = window(5) { rope = none }\nlayers { 0: sink(4) | one, 1: conv(3) | full, else: (full + full) | sink(1) }",
    "sizes": "model m { vocab = 9, dim = 65, layers = 2, heads = 6, kv_heads = 4, ffn = none, norm = rms(1e-6) }\n"
    "layers { 0: full, 1: window(10, aligned = 4) { head_dim = 8 } }",
    "share_of_aligned": MODEL + "layers { all: window(25%, aligned = 4) }",
    "groups_twice": MODEL + "layers { all: heads { 0..2: full, 2..3: window(5) } }",
    "groups_missing": MODEL + "layers { all: heads { 0: full, 2: window(5) } }",
    "no_such_group": MODEL + "layers { all: heads { 0..6: full, else: window(5) } }",
    "empty_else_of_heads": MODEL + "layers { all: heads { 0..3: full, else: window(5) } }",
    "uneven_share": MODEL + "layers { 0: heads { 30%: full, else: window(5) }, else: heads { 75%: full, 50%: window(5) } }",
    "heads_in_heads": MODEL + "layers { all: heads { 0: heads { 0: full, else: sink(1) }, else: full } }",
    "heads_with_other_weights": MODEL
    + "layers { 0: heads { 0: conv(3), else: full }, else: heads { 0: full { head_dim = 4 }, else: full } }",
    "alternatives_of_other_shapes": MODEL + "layers { all: when { length < 9: full, else: full { kv_heads = 8 } } }",
    "gate_of_one": MODEL
    + "layers { 0: gate(full), 1: gate(full, full, full, by = product), else: gate(full, conv(3), shared = [q]) }",
    "qk_from_nowhere": MODEL + "layers { 0: conv(3), else: full { qk_from = previous } }",
    "qk_from_others": MODEL
    + "layers { first(3): window(9), 3: full { qk_from = previous }, else: window(9) { qk_from = previous, rope = none } }",
    "qk_from_other_groups": MODEL
    + "layers { 0: heads { 0: full, else: sink(3) }, else: heads { 0..1: full, else: sink(3) } { qk_from = previous } }",
    "shared_weights": MODEL + "layers { 0: heads { 0: full { qk_norm = rms }, else: full },\n"
    "  else: when { length < 5: full { scale = 2 }, else: full } }",
    "when_without_else": MODEL + "layers { all: when { length < 9: full } }",
    "when_twice": MODEL + "layers { all: when { length < 9: full, 9 > length: sink(1), else: window(2) } }",
    "conditions": MODEL
    + "layers { 0: when { phase < train: full, else: full }, 1: when { phase == training: full, else: full }\n"
    "  2: when { tokens < 5: full, else: full }, 3: when { long: full, else: full },\n"
    "  else: when { length < 9%: full, else: full } }",
    "rope_widths": MODEL + "layers { 0: full { rope_dim = 5 }, 1: full { rope_dim = 12 }, else: full { head_dim = 7 } }",
    "contradictions": MODEL
    + "layers { 0: full { score = softplus, sink_logit = learned }, 1: full { score = uniform, temperature = 2 }\n"
    "  2: full { positions = chunk }, 3: full { share_qk = true }, else: persistent(3) { share_qk = true, kv_heads = 8 } }",
    "causal_only": MODEL + "layers { all: conv(3) { causal = false } }",
    "route_of_blocks": MODEL
    + "layers { all: route(per = token, by = router(linear)) { a: full, b: when { length < 3: full, else: sink(2) } } }",
    "recipe_words": MODEL + "layers { all: full }\nrecipe { freeze = [qq], distill = [kl(wieght = 1)], techer = full }",
    "driver_words": MODEL + "layers { all: full }\ndriver retreive { window = 5 }",
    "driver_settings": MODEL + "layers { all: full }\ndriver retrieve { window = 5, smooth = 0 }",
    "changes_in_parts": MODEL + "mix marks = insert(landmark, every = 4)\n"
    "layers { 0: heads { 0: insert(landmark, every = 4) >> full, else: full }, 1: full + marks, 2: gate(full, marks >> full)\n"
    "  3: when { length < 5: marks >> full, else: full }, 4: marks | full, else: select(marks >> full, keep = "
    "50%, by = gumbel) }",
    "changes_alone": MODEL + "mix marks = insert(landmark, every = 4)\nmix twice = marks >> merge(25%, by = bipartite)\n"
    "layers { 0: marks, 1: full >> marks, 2: full >> marks >> full, 3: twice, 4: marks { rope = none }, else: "
    "full >> (marks >> full) }",
    "changes_in_numbers": MODEL
    + "layers { 0: insert(landmark, every = 0) >> full, 1: insert(every = 4) >> full, 2: insert(marker, every = 4) >> full\n"
    "  3: merge(60%, by = bipartite) >> full, 4: merge(0%, by = bipartite) >> full, else: merge(25%) >> full }",
    "changes_twice": MODEL + "layers { first(3): insert(landmark, every = 4) >> full, else: full { score = grouped(4) } }",
    "merge_in_causal_models": MODEL
    + "layers { 0: merge(25%, by = bipartite) >> full, else: select(full, keep = 50%, by = gumbel) }",
    "contexts": MODEL + "mix ltm = memory(linear, chunk = 64)\n"
    "layers { 0: context(full, segment = 128), 1: context(ltm, segment = 0), 2: context(ltm, segment = 100), 3: context(ltm)\n"
    "  4: context(segment = 5), else: context(ltm + ltm, segment = 128, persistent = 5000) }",
    "contexts_both_ways": MODEL
    + "mix ltm = memory(linear, chunk = 8)\nlayers { all: context(ltm, segment = 16) { causal = false } }",
    "selects": MODEL.replace("heads = 8", "causal = false, heads = 8")
    + "layers { 0: select(full, keep = 0%, by = gumbel), 1: select(full, keep = 5, by = gumbel), 2: "
    "select(full, full, keep = 5%)\n"
    "  3: select(select(full, keep = 50%, by = gumbel), keep = 50%, by = gumbel), 4: select(full, keep = 50%, by = gumble)\n"
    "  else: heads { 0: select(full, keep = 50%, by = gumbel), else: full } }",
    "gates": MODEL + "layers { 0: gate(full, sink(1), shared = [q, q]), 1: gate(full, sink(1), shared = [o]), 2: gate(full, "
    "sink(1), by = mean)\n"
    "  else: gate }",
    "methods": MODEL + "layers { 0: choose(per = head, by = retrieval_score) { a: full, b: sink(1) }\n"
    "  1: choose(per = head, by = retrieval_score(threshold = 0.1, share = 25%)) { a: full, b: sink(1) }\n"
    "  2: choose(per = head, by = trained_gate(loss = hidden_mse)) { a: full, b: sink(1) }\n"
    "  3: choose(per = token) { a: full, b: sink(1) }\n"
    "  else: window(budget(1..9, default = 3, by = coverage(rows = 5))) }",
    "routes": MODEL
    + "layers { 0: route(per = token, by = divergence(threshold = 0.1, queries = last(4))) { a: full, b: sink(1) }\n"
    "  1: route(per = token, by = router(linear, pool = mean)) { a: full, b: sink(1) }\n"
    "  2: route(per = layer, by = router(mlp, init = [1, 2, 3])) { a: full, b: sink(1) }\n"
    "  3: route(per = head, by = router(linear)) { a: full, b: conv(3) }\n"
    "  4: route(per = chunk(0), by = router(linear)) { a: full, b: sink(1) }\n"
    "  else: route(per = chunk(4), by = router(linear, pool = ends(3))) { a: full, b: full + conv(3) } }",
    "choices_per_head": MODEL
    + "layers { 0: choose(per = head) { a: full, b: full + conv(3) }, else: choose(per = head) { a: full, b: "
    "linear { heads = 2 } } }",
    "heads_of_states": MODEL + "layers { all: heads { 0: full, else: linear { heads = 2 } } }",
    "choice_from_nowhere": MODEL + "layers { first(2): window(4) | routed(tokens, top_k = 3, from = previous), else: full }",
    "choice_from_before_a_change": MODEL
    + "layers { 0: full, 1: insert(landmark, every = 3) >> window(4) | routed(tokens, top_k = 3, from = "
    "previous), else: full }",
    "budgets_of_layers": MODEL
    + "layers { first(budget(1..40, default = 2)): full, every(budget(2..5, default = 4), at = 3): full, else: window(4) }",
    "budgets_apart": MODEL + "layers { every(budget(2..5, default = 4, per = head)): full\n"
    "  else: when { length < budget(1..9, default = 4, per = head): full, else: window(4) } }",
    "recipes": MODEL + "layers { all: full }\n"
    "recipe { freeze = [attention, attention], train = [attention, memory], distill = [kl], randomize = budgets }",
    "recipes_that_miss": MODEL + "layers { all: full }\nrecipe { train = [memory], randomize = budgets }",
    "recipe_without_a_lesson": MODEL + "layers { all: full }\nrecipe { teacher = full }",
    "drivers": MODEL + "layers { all: full }\ndriver retrieve { window = 100, layer = 6, top_k = 50 }",
    "driver_without_room": MODEL + "layers { all: full }\ndriver retrieve { window = 100, top_k = 100 }",
    "words_of_operators": MODEL + "mix select = full\nmix context = full\nlayers { all: full }",
    "blocks_of_landmarks": MODEL
    + "layers { 0: insert(landmark, every = 4) >> full { score = grouped(4) }, else: block_local(6) { score = grouped(5) } }",
    "memory_as_keys": MODEL
    + "layers { 0: memory(linear) | full, 1: select | full, else: context(memory(linear), segment = 64) | full }",
    "everything_at_once": "model m { vocab = 100, dim = 64, layers = 6, heads = 8, norm = rms(2), ffn = swiglu }\n"
    "mix near = sink(4) | windw(3)\nlayers { 0..7: near, else: full { rope = fast } }",
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_spec_is_explained(name, golden):
    with pytest.raises(SpecError) as caught:
        check_text(WRONG[name], f"{name}.attn")
    golden(f"{name}.txt", str(caught.value) + "\n")
    for one in caught.value.diagnostics:
        assert one.expected
        assert one.help
        assert one.message.startswith("KV ") or not one.message[0].isupper()
        assert not one.message.endswith(".")


def test_every_code_of_the_checker_is_met():
    met = set()
    for name, text in WRONG.items():
        with pytest.raises(SpecError) as caught:
            check_text(text, name)
        met |= {one.code for one in caught.value.diagnostics}
    asked = {code for code in CODES if code < "A300"} - {"A101", "A111", "A113"}
    assert met & asked == asked


@pytest.mark.parametrize("key", ["layers", "model.", "model.layers.x", "mix.a", "model.LAYERS"])
def test_set_names_a_setting_of_the_model(key):
    with pytest.raises(SpecError, match=r"--set") as caught:
        check_text(MODEL + "layers { all: full }", overrides={key: "3"})
    assert [one.code for one in caught.value.diagnostics] == ["A111"]


@pytest.mark.parametrize("value", ["", "1, dim = 3", "3 }", "3 } mix x = full", "# 3", "full | full"])
def test_set_takes_one_value(value):
    with pytest.raises(SpecError) as caught:
        check_text(MODEL + "layers { all: full }", overrides={"model.layers": value})
    assert [one.code for one in caught.value.diagnostics] == ["A111"]


def test_a_wrong_value_of_set_is_shown_as_it_was_given():
    with pytest.raises(SpecError) as caught:
        check_text(MODEL + "layers { all: full }", overrides={"model.layers": "9999"})
    (one,) = caught.value.diagnostics
    assert one.span.source.name == "--set model.layers"
    assert one.span.text == "9999"
