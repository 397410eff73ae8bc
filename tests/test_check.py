"""What a checked spec says: inheritance, selectors, groups, blocks, names, budgets, caches, laws."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from attnc.compiler import check_path, check_text
from attnc.compiler.attributes import Yarn
from attnc.compiler.cache_spec import cache_bytes, cache_spec, full_attention_bytes
from attnc.compiler.laws import owed
from attnc.compiler.print_value import print_keys
from attnc.compiler.recipe import Recipe, Retrieve
from attnc.compiler.spec import Attention, Choose, Gate, Heads, Mixing, Route, Sum, When
from attnc.compiler.tuning import Coverage, TrainedGate
from attnc.compiler.unbuilt import unbuilt
from attnc.compiler.value import Share
from attnc.dsl import SpecError

SPECS = Path(__file__).parent.parent / "specs"
CHOSEN = ("dsa", "infllm-v2", "minference", "moba", "nsa", "quest", "recycled", "sala", "seer", "sparse-frontier", "xattention")
"""Specs that are built in which content chooses keys."""

BUILT = (
    *("full", "window-global", "gemma3", "gpt-oss", "llama4", "smollm3", "masformer", "ls-attention", "sparse-transformer"),
    *("power", "softplus", "tempscale", "random-features", "longlora", "echoatt", "streaming-llm", "duo", "retrieval-heads"),
    *("infiniretri", "based", "hybrid-gdn", "hybrid-hgrn2", "qwen3-next", "kimi-linear", "hydrahead", "hylra", "ucm"),
    *CHOSEN,
    *("jamba", "falcon-h1", "titans-lmm", "titans-mag", "titans-mal", "ttt-linear", "ttt-mlp", "allmem"),
    *("lrcn", "sessa", "titans-mac", "longvq", "cca", "combiner", "rat"),
)
"""Specs that are built."""


def check(layers: str, model: str = "", rest: str = "", count: int = 6):
    head = f"vocab = 100, dim = 64, layers = {count}, heads = 8, kv_heads = 4, ffn = none, norm = rms(1e-6)"
    return check_text(f"model m {{ {head}{', ' * bool(model)}{model} }}\n{rest}\nlayers {{ {layers} }}")


def mixer(expression: str, model: str = "", rest: str = ""):
    return check(f"all: {expression}", model, rest).layers[0].mixer


def owners(layers: str, count: int = 12):
    """Which layers see everything, of those that see everything or a window."""
    return [layer.index for layer in check(layers, count=count).layers if print_keys(layer.mixer.keys) == "full"]


def test_attributes_default_to_the_models_and_those_to_the_languages():
    a = mixer("full", "qk_norm = rms").attributes
    assert (a.heads, a.kv_heads, a.head_dim, a.value_dim, a.rope_dim) == (8, 4, 8, 8, 8)
    assert (a.rope, a.qk_norm, a.causal) == (10000.0, "rms", True)


def test_inner_attributes_win_over_outer_ones_and_those_over_the_models():
    inner = "((full { rope = 1 }) { rope = 2, scale = 2 }) { rope = 3, scale = 3, temperature = 3 }"
    a = mixer(inner, "rope = 4, scale = 4, temperature = 4, output_norm = rms").attributes
    assert (a.rope, a.scale, a.temperature, a.output_norm) == (1, 2, 3, "rms")


def test_a_mix_takes_the_attributes_of_the_place_where_it_is_used():
    spec = check("0: near { rope = 5 }, else: near", rest="mix near = sink(1) | window(2)", model="qk_norm = l2")
    assert spec.layers[0].mixer.attributes.rope == 5
    assert spec.layers[1].mixer.attributes.rope == 10000
    assert spec.layers[1].mixer.attributes.qk_norm == "l2"


def test_heads_set_on_a_mixer_set_its_kv_heads_but_those_of_the_same_brace_stay():
    assert mixer("full { heads = 2 }").attributes.kv_heads == 2
    assert mixer("full { heads = 2 }").attributes.head_dim == 32
    assert mixer("full { heads = 6, kv_heads = 3, head_dim = 4 }").attributes.kv_heads == 3
    assert mixer("(full { kv_heads = 2 }) { heads = 16 }").attributes.kv_heads == 2
    assert mixer("(full { heads = 16 }) { kv_heads = 2 }").attributes.kv_heads == 16


def test_value_width_follows_the_key_width_unless_it_is_said():
    a = mixer("full { head_dim = 16 }").attributes
    assert (a.head_dim, a.value_dim, a.rope_dim) == (16, 16, 16)
    a = mixer("full { head_dim = 16 }", "value_dim = 4, rope_dim = 2").attributes
    assert (a.head_dim, a.value_dim, a.rope_dim) == (16, 4, 2)


def test_the_models_rope_reaches_key_sets_only():
    parts = mixer("full + conv(3)", "rope = 77").parts
    assert isinstance(parts[1], Mixing)
    assert [part.attributes.rope for part in parts] == [77, None]


def test_yarn_stretches_the_models_trained_length():
    assert mixer("full", "rope_scale = yarn(8), context = 512").attributes.rope_scale == Yarn(factor=8, original=512)
    assert mixer("full { rope_scale = yarn(8, original = 99) }", "context = 512").attributes.rope_scale.original == 99


@pytest.mark.parametrize(
    ("selector", "layers"),
    [
        ("3", [3]),
        ("3..5", [3, 4, 5]),
        ("first(2)", [0, 1]),
        ("last(2)", [10, 11]),
        ("every(4)", [3, 7, 11]),
        ("every(5)", [4, 9]),
        ("every(4, at = 0)", [0, 4, 8]),
        ("every(7, at = [0, 4])", [0, 4, 7, 11]),
        ("every(3, at = 0, in = 2..9)", [2, 5, 8]),
        ("every(3, in = 2..9)", [4, 7]),
        ("every(budget(4..7, default = 6))", [5, 11]),
        ("[0, 9, 3..4]", [0, 3, 4, 9]),
        ("[first(2), every(6)]", [0, 1, 5, 11]),
    ],
)
def test_a_selector_picks(selector, layers):
    assert owners(f"{selector}: full, else: window(3)") == layers


def test_the_order_of_rules_decides_nothing():
    assert owners("0..2: window(3), 3: full, 4..11: window(3)") == [3]
    assert owners("4..11: window(3), 3: full, 0..2: window(3)") == [3]


def test_layers_of_one_rule_share_one_mixer():
    spec = check("every(2): full, else: window(3)")
    assert spec.layers[1].mixer is spec.layers[3].mixer is spec.layers[5].mixer
    assert spec.layers[0].mixer is not spec.layers[1].mixer


@pytest.mark.parametrize(
    ("cases", "ranges"),
    [
        ("0: full, else: sink(1)", [(0, 0), (1, 3)]),
        ("50%: full, else: sink(1)", [(0, 1), (2, 3)]),
        ("25%: full, 50%: sink(1), 25%: sink(2)", [(0, 0), (1, 2), (3, 3)]),
        ("2..3: full, else: sink(1)", [(0, 1), (2, 3)]),
        ("[0, 2]: full, else: sink(1)", [(0, 0), (1, 1), (2, 2), (3, 3)]),
        ("0..2: full, 3: sink(1)", [(0, 2), (3, 3)]),
    ],
)
def test_heads_split_the_groups_in_order(cases, ranges):
    found = mixer(f"heads {{ {cases} }}")
    assert isinstance(found, Heads)
    assert [(case.first, case.last) for case in found.cases] == ranges


def test_a_union_distributes_over_blocks():
    rest = "mix halves = heads { 50%: window(2), else: window(3) }"
    found = mixer("sink(4) | halves", rest=rest)
    assert [print_keys(case.mixer.keys) for case in found.cases] == ["sink(4) | window(2)", "sink(4) | window(3)"]
    found = mixer("when { length < 5: full, else: heads { 0: stride(2), else: window(2) } } | sink(1)")
    assert print_keys(found.cases[0].mixer.keys) == "full | sink(1)"
    assert print_keys(found.cases[1].mixer.cases[0].mixer.keys) == "stride(2) | sink(1)"


def test_attributes_reach_into_blocks():
    found = mixer("when { length < 5: full, else: sink(2) } { scale = 3 }")
    assert [case.mixer.attributes.scale for case in found.cases] == [3, 3]


def test_dim_is_decided_by_the_checker():
    assert print_keys(mixer("when { dim > 63: full, else: sink(1) }").keys) == "full"
    assert print_keys(mixer("when { dim < 64: full, else: sink(1) }").keys) == "sink(1)"
    found = mixer("when { length > dim: full, dim == 64: sink(2), else: sink(1) }")
    assert isinstance(found, When)
    assert [str(case.condition and case.condition.right) for case in found.cases] == ["64", "None"]
    assert mixer("when { 9 > length: full, else: sink(1) }").cases[0].condition.operator == "<"


def test_parts_are_called_after_mixes_or_kinds():
    found = mixer(
        "near + near + conv(3) + (sink(1) | window(2)) + heads { 0: full, else: sink(1) }", rest="mix near = window(2)"
    )
    assert isinstance(found, Sum)
    assert found.names == ("near", "near_2", "conv", "sink_window", "heads")
    found = mixer("gate(full, window(2) { rope = none }, by = softmax, shared = [q])")
    assert isinstance(found, Gate)
    assert (found.names, found.by, found.shared) == (("full", "window"), "softmax", ("q",))


def test_choose_keeps_its_method_and_its_first_alternative_is_the_default():
    found = check_path(SPECS / "duo.attn").layers[0].mixer
    assert isinstance(found, Choose)
    assert found.by == TrainedGate(data="passkey", loss="hidden_mse", l1=0.05, share=Share(percent=50))
    assert [alternative.name for alternative in found.alternatives] == ["retrieval", "streaming"]


def test_route_per_token_keeps_its_router():
    found = mixer("route(per = token, by = router(linear, estimator = straight_through)) { a: full, b: window(3) }")
    assert isinstance(found, Route)
    assert (found.router.network, found.router.estimator) == ("linear", "straight_through")


def test_a_budget_stands_at_its_default_and_is_recorded_once():
    rest = "mix near = window(budget(2..9, default = 5)) { temperature = budget(0.5..1, default = 0.8) }"
    spec = check(
        "0: near, 1: near, every(3, in = 2..5): full, else: when { length < budget(1..9, default = 4): near, else: near }",
        rest=rest,
    )
    assert spec.layers[0].mixer.keys[0].n == 5
    assert [(site.path, site.low, site.high, site.default) for site in spec.budgets] == [
        ("mix.near.window.n", 2, 9, 5),
        ("mix.near.temperature", 0.5, 1, 0.8),
        ("layers.else.when.length", 1, 9, 4),
    ]
    rest = "mix short = when { length < budget(1..9, default = 4): full, else: window(2) }"
    spec = check("0: short, else: short { scale = 2 }", rest=rest)
    assert [site.path for site in spec.budgets] == ["mix.short.when.length"]
    share = check("all: window(budget(10%..50%, default = 25%, per = head, by = coverage(90%)))").budgets[0]
    assert (share.share, share.low, share.default, share.per, share.by) == (
        True,
        10,
        25,
        "head",
        Coverage(share=Share(percent=90)),
    )


def test_set_replaces_or_adds_a_setting_of_the_model():
    text = (SPECS / "full.attn").read_text()
    spec = check_text(
        text, overrides={"model.layers": "3", "model.qk_norm": "rms", "model.rope_scale": "yarn(4, original = 64)"}
    )
    assert spec.model.layers == 3
    assert spec.layers[0].mixer.attributes.qk_norm == "rms"
    assert "qk_norm = rms" in spec.text
    assert check_text(spec.text).layers[0].mixer.attributes == spec.layers[0].mixer.attributes


def test_recipe_and_driver_are_carried():
    spec = check_path(SPECS / "infiniretri.attn")
    assert spec.driver == Retrieve(window=1024, layer="last", queries="question", smooth=8, top_k=300, expand="sentence")
    assert check_path(SPECS / "longlora.attn").recipe == Recipe(lora=("q", "k", "v", "o"), train=("embedding", "norm"))


@pytest.mark.parametrize("path", sorted(SPECS.glob("*.attn")), ids=lambda path: path.stem)
def test_every_shipped_spec_checks_and_names_what_is_not_built(path):
    spec = check_path(path)
    assert len(spec.layers) == spec.model.layers
    found = unbuilt(spec)
    assert {one.code for one in found} == (set() if path.stem in BUILT else {"A101"})
    lines = path.read_text().split("\n")
    for one in found:
        assert one.message
        assert one.help
        assert one.span.source.name == path.name
        assert re.search(r"\w+", one.span.text)[0] in lines[one.span.line - 1], one.render()


def test_a_cache_keeps_what_any_reachable_case_needs():
    def kept(expression, model=""):
        rows = [row for row in cache_spec(check(f"all: {expression}", model), "float16") if row.layer == 0]
        return [
            (row.name.removeprefix("layers.0"), row.kind, row.kv_heads, row.tokens_kept, row.bytes_per_token, row.bytes_fixed)
            for row in rows
        ]

    slot = 2 * (8 + 8)
    assert kept("full") == [("", "growing", 4, None, 4 * slot, 0)]
    assert kept("sink(4) | window(10)") == [("", "ring", 4, 29, 0, 29 * 4 * slot)]
    assert kept("window(25%)") == [("", "ring", 4, Share(percent=25), slot, 15 * 4 * slot)]
    assert kept("heads { 0: full, else: window(5) }") == [
        (".heads.0", "growing", 1, None, slot, 0),
        (".heads.1-3", "ring", 3, 20, 0, 20 * 3 * slot),
    ]
    assert kept("when { phase == train: full, else: window(5) }") == [("", "ring", 4, 20, 0, 20 * 4 * slot)]
    assert kept("when { phase == decode: sink(2), phase == prefill: window(5), else: full }") == [
        ("", "ring", 4, 22, 0, 22 * 4 * slot)
    ]
    assert kept("when { length < 9: full, else: window(5) }") == [("", "growing", 4, None, 4 * slot, 0)]
    assert kept("choose(per = head) { a: window(5), b: full }") == [("", "ring", 4, 20, 0, 20 * 4 * slot)]
    assert kept("power_of_two(4)") == kept("stride(4)") == kept("full")
    assert kept("persistent(4)") == [("", "ring", 4, 15, 0, 15 * 4 * slot)]
    assert kept("full", "causal = false") == []
    route = "route(per = token, by = router(linear)) { a: window(5), b: sink(1), c: window(2) }"
    assert kept(route) == [("", "growing", 4, None, 4 * (slot + 2 * 3), 0)]
    assert kept("conv(3, expand = 2)") == [(".conv", "fixed", 0, 0, 0, 2 * 2 * 128)]
    assert kept("window(5) { short_conv = 4 }")[1] == (".short_conv", "fixed", 0, 0, 0, 2 * 3 * (64 + 32 + 32))


def test_a_layer_that_takes_q_and_k_keeps_values_alone():
    rows = cache_spec(check("0: full, else: full { qk_from = previous }"), "float32")
    assert [tuple(row.shapes) for row in rows[:2]] == [("k", "v"), ("v",)]


def test_cache_bytes_are_the_rows_bytes_and_full_attention_is_the_most():
    spec = check_path(SPECS / "window-global.attn")
    slot = 4 * (128 + 128) * 2
    assert cache_bytes(spec, 8192, "bfloat16") == slot * (4 * 8192 + 20 * 1039)
    assert full_attention_bytes(spec, 8192, "bfloat16") == slot * 24 * 8192


@pytest.mark.parametrize(
    ("expression", "names"),
    [
        ("sink(1) | window(5) { positions = consecutive }", {"causal", "packed", "padded", "chunked", "decode", "prefix"}),
        ("when { length < 9: full, else: window(5) }", {"causal", "packed", "padded", "by_phase"}),
        ("when { phase == train: full, else: window(5) }", {"causal", "packed", "padded", "by_phase"}),
        ("window(25%)", {"causal", "packed", "padded", "by_phase"}),
        ("block_local(8, shift = 50%)", {"causal", "packed", "padded", "chunked", "decode", "prefix"}),
        ("choose(per = layer) { a: full, b: window(25%) }", {"causal", "packed", "padded", "chunked", "decode", "prefix"}),
        ("full { causal = false }", {"packed", "padded"}),
    ],
)
def test_laws_owed(expression, names):
    assert owed(check(f"all: {expression}")) == names


def test_origins_name_the_line_and_its_canonical_text():
    model = "model m { vocab=9,dim=8,layers=1,heads=1,ffn=none,norm=rms(1e-6) }"
    spec = check_text(f"{model}\nmix a = sink( 4 )|window(5)\nlayers {{ all : a{{rope=none}} }}", "f.attn")
    layer = spec.layers[0]
    assert isinstance(layer.mixer, Attention)
    assert str(layer.origin) == "f.attn:3  all: a { rope = none }"
    assert str(layer.mixer.origin) == "f.attn:2  sink(4) | window(5)"


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_checking_imports_no_heavy_package():
    code = (
        "import sys, attnc.compiler as c, attnc.compiler.table_text as t, attnc.compiler.reduce as r;"
        f"s = c.check_path({str(SPECS / 'power.attn')!r}); t.table_text(r.reduce(s)[0]);"
        "print(sorted({'torch', 'networkx', 'jinja2', 'triton', 'numpy'} & set(sys.modules)))"
    )
    assert run(code) == "[]\n"


def test_checking_is_quick():
    """The time of a processor for a whole process and 128 layers: 0.4 s on an idle machine, twice that on a busy one."""
    code = (
        f"import attnc.compiler as c, time;c.check_path({str(SPECS / 'sparse-transformer.attn')!r}); print(time.process_time())"
    )
    assert min(float(run(code)) for _ in range(2)) < 0.8


def test_a_large_file_is_checked_in_time():
    mixes = "\n".join(f"mix a{n} = sink({n}) | window({n + 1})" for n in range(2000))
    start = time.process_time()
    check("all: a1999", rest=mixes)
    assert time.process_time() - start < 10


def test_a_thousand_layers_of_64_heads_each_with_a_rule_of_its_own_check_in_time():
    halves = " , ".join(f"{head}: window({head + 1})" for head in range(64))
    rules = "\n".join(f"{layer}: unlike {{ scale = {layer + 1} }}" for layer in range(1000))
    model = "model m { vocab = 9, dim = 512, layers = 1000, heads = 64, kv_heads = 64, ffn = none, norm = rms(1e-6) }"
    start = time.process_time()
    spec = check_text(f"{model}\nmix unlike = heads {{ {halves} }}\nlayers {{ {rules} }}")
    assert time.process_time() - start < 20
    assert len({id(layer.mixer) for layer in spec.layers}) == 1000


HOSTILE = {
    "rules": "\n".join(["0..5: full"] * 8000),
    "alternatives": "all: choose(per = head) {" + "\n".join(f"a{n}: window({n + 1})" for n in range(4000)) + "}",
    "key sets": "all: " + " | ".join(f"window({n + 1})" for n in range(8000)),
    "terms": "all: " + " + ".join(f"window({n + 1})" for n in range(8000)),
    "settings": "all: full {" + "\n".join(f"k{n} = 3" for n in range(8000)) + "}",
    "arguments": "all: window(" + ", ".join(f"k{n} = 3" for n in range(8000)) + ")",
    "branches": "all: gate(" + ", ".join(["full"] * 20000) + ")",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_spec_costs_no_more_than_errors(name):
    start = time.process_time()
    with pytest.raises(SpecError) as caught:
        check(HOSTILE[name])
    assert len(caught.value.diagnostics) <= 51
    assert time.process_time() - start < 10
