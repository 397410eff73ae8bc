"""Which later tokens decide what a query sees, against a table written by hand from the papers, and what is refused then."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from attnc.compiler import check_path, check_text
from attnc.compiler.causality import by_layer, causality, choices, refusals, refuse
from attnc.compiler.laws import laws, owed
from attnc.compiler.spec import Spec
from attnc.dsl import SpecError

SPECS = Path(__file__).parent.parent / "specs"
HEAD = "model m { vocab = 100, dim = 64, layers = 4, heads = 8, kv_heads = 4, ffn = none, norm = rms(1e-6) }\n"

CLASSES = {
    # each token asks for itself, and units not yet complete are no candidates
    **dict.fromkeys(
        ("moba", "quest", "infllm-v2", "sala", "nsa", "dsa", "hisa", "longheads", "recycled", "hylra", "ucm"), "strict"
    ),
    **dict.fromkeys(("cca", "combiner", "rat", "h2o", "sinklora", "sea", "longvq", "landmark", "sessa"), "strict"),
    # keys and values are sent by what they are, or by what their complete chunk is
    **dict.fromkeys(("per-token", "nats-l"), "strict"),
    # a block of queries asks by its mean, or over its antidiagonals
    **dict.fromkeys(("dhsa", "hip", "infinite-hip", "seer", "xattention"), "block"),
    # the last queries, a profile of the whole prompt, or the whole sequence decide
    **dict.fromkeys(
        ("minference", "flexprefill", "snapkv", "tca", "flux", "sparse-frontier", "routing-transformer"), "sequence"
    ),
    # encoders
    **dict.fromkeys(("maelre", "selective-s4", "tempscale", "random-features"), "none"),
}


def spec(layers: str, rest: str = "", model: str = "") -> Spec:
    head = HEAD.replace(" }", f", {model} }}") if model else HEAD
    return check_text(f"{head}{rest}\nlayers {{ {layers} }}")


def routed(arguments: str, unit: str = "blocks(16)") -> str:
    return f"block_local(16) | routed({unit}, top_k = 4, {arguments})"


@pytest.mark.parametrize("name", sorted(path.stem for path in SPECS.glob("*.attn")))
def test_the_class_of_every_shipped_spec(name):
    assert causality(check_path(SPECS / f"{name}.attn")) == CLASSES.get(name, "strict")


def test_specs_without_a_choice_are_not_in_the_table_by_mistake():
    for path in SPECS.glob("*.attn"):
        text = path.read_text("utf-8")
        if "routed(" in text or "route(" in text or "causal = false" in text:
            assert path.stem in CLASSES, path.name


PRIMITIVES = {
    "queries = each": "strict",
    "queries = all, score = softmax": "strict",
    "queries = block(1)": "strict",
    "queries = block(16)": "block",
    "queries = last(8)": "sequence",
    "queries = last(1)": "sequence",
    "keys = minmax": "strict",
    "keys = last": "strict",
    "keys = descent": "strict",
    "keys = two_step": "strict",
    "keys = hash(64)": "strict",
    "keys = mean(8, stride = 4)": "strict",
    "keys = summary(8)": "strict",
    "keys = indexer(heads = 2, head_dim = 8)": "strict",
    "keys = learned(pool = [max])": "strict",
    "keys = mean(chunks = predicted(window = 4, nms = 8))": "block",
    "queries = block(16), score = antidiagonal(8)": "block",
    "score = estimated(width = 8, feature = favor)": "strict",
    "per = head, adaptive = 10%": "strict",
    "refresh = every(8)": "strict",
    "within = routed(blocks(32), top_k = 4)": "strict",
    "within = routed(blocks(32), top_k = 4, queries = block(16))": "block",
    "queries = block(16), within = routed(blocks(32), top_k = 4, queries = last(4))": "sequence",
}


@pytest.mark.parametrize(("arguments", "expected"), PRIMITIVES.items())
def test_the_class_of_each_primitive(arguments, expected):
    assert causality(spec(f"all: {routed(arguments)}")) == expected


def test_a_taken_over_choice_has_the_class_of_the_layer_that_makes_it():
    reuse = "routed(blocks(16), top_k = 4, from = previous)"
    asks = routed("queries = block(16)")
    assert by_layer(spec(f"0: {asks}, else: {reuse}")) == ("block",) * 4
    assert by_layer(spec(f"0: {asks}, 1: full, else: {reuse}")) == ("block", "strict", "strict", "strict")
    assert by_layer(spec(f"0: full, 1: {reuse}, 2: {routed('queries = last(4)')}, 3: {reuse}")) == (
        *("strict", "strict"),
        *("sequence", "sequence"),
    )


def test_an_encoder_sees_later_tokens_whatever_it_chooses():
    found = spec(f"all: {routed('queries = block(16)')}", model="causal = false")
    assert causality(found) == "none"
    assert not refusals(found)
    assert by_layer(spec(f"0: full {{ causal = false }}, else: {routed('queries = last(4)')}"))[:2] == ("none", "sequence")


def codes(found: Spec) -> dict[str, int | None]:
    return {one.code: one.multiple for one in refusals(found)}


def test_strict_choices_are_refused_nowhere():
    assert codes(spec(f"all: {routed('queries = each')}")) == {}


def test_a_blocks_choice_may_be_prefilled_in_whole_blocks_but_not_trained():
    assert codes(spec(f"all: {routed('queries = block(48)')}")) == {"A301": None, "A302": 48, "A303": 48}
    both = routed("queries = block(48), within = routed(blocks(32), top_k = 4, queries = block(32))")
    assert codes(spec(f"all: {both}")) == {"A301": None, "A302": 96, "A303": 96}


def test_chunks_that_content_decides_have_no_multiple():
    assert codes(check_path(SPECS / "dhsa.attn")) == {"A301": None, "A302": None, "A303": None}


def test_what_the_last_queries_choose_is_refused_in_chunks_and_prefixes():
    assert codes(spec(f"all: {routed('queries = last(4)')}")) == {"A301": None, "A302": None, "A303": None}


def test_refusals_are_of_the_phases_that_a_choice_meets():
    choice = routed("queries = last(4)")
    assert set(codes(spec(f"all: when {{ phase == train: full, else: {choice} }}"))) == {"A302", "A303"}
    assert set(codes(spec(f"all: when {{ phase == prefill: full, else: {choice} }}"))) == {"A301"}
    assert codes(spec(f"all: when {{ phase == decode: {choice}, else: full }}")) == {}


def test_dropped_keys_make_another_prefix():
    assert set(codes(check_path(SPECS / "snapkv.attn"))) == {"A303"}


def test_noncausal_selection_accepts_all_three():
    found = check_path(SPECS / "routing-transformer.attn")
    assert causality(found) == "sequence"
    assert not refusals(found)
    assert codes(spec(f"all: {routed('queries = last(4), selection = noncausal')}")) == {}


def test_a_route_by_the_prompt_is_trained_as_it_is_and_refused_in_chunks():
    assert set(codes(check_path(SPECS / "flux.attn"))) == {"A302", "A303"}


def test_a_refusal_names_all_layers_and_the_place():
    (training, *_) = refusals(check_path(SPECS / "tca.attn"))
    assert training.layers == tuple(range(32))
    assert training.origin.file == "tca.attn"
    assert "last(1)" in training.message


@pytest.mark.parametrize(("use", "code"), [("training", "A301"), ("chunked_prefill", "A302"), ("prefix_cache", "A303")])
def test_a_refused_use_is_a_diagnostic_with_code_and_place(use, code):
    with pytest.raises(SpecError) as caught:
        refuse(check_path(SPECS / "hip.attn"), use)
    (one,) = caught.value.diagnostics
    assert (one.code, one.span.source.name) == (code, "hip.attn")
    assert "layers 3..31" in one.message
    assert ("multiples of 32" in one.expected) == (use != "training")
    assert one.help
    refuse(check_path(SPECS / "moba.attn"), use)


def test_alternatives_that_the_tuner_may_take_count():
    found = spec(f"all: choose(per = head) {{ a: full, b: {routed('queries = last(4)')} }}")
    assert causality(found) == "sequence"
    assert {one.phases for one in choices(found)} == {("train", "prefill", "decode")}


REASONS = {
    "top_k = 10%": "depends on the length",
    "top_k = sublinear(4, from = 16, exponent = 0.5)": "depends on the length",
    "top_k = log_gaussian(16, mean = 2, std = 1)": "depends on the length",
    "top_k = 4, dense_queries = last(8)": "depends on the length",
    "top_k = 4, refresh = every(8)": "several steps",
    "top_k = 4, evict = true": "drops keys",
    "top_k = 4, within = window(25%)": "share of the length",
    "top_k = 4, within = routed(blocks(8), top_k = 25%)": "depends on the length",
}


@pytest.mark.parametrize(("arguments", "reason"), REASONS.items())
def test_laws_fall_with_what_depends_on_length_or_steps(arguments, reason):
    found = spec(f"all: window(8) | routed(tokens, {arguments})")
    assert owed(found) == {"causal", "packed", "padded", "by_phase"}
    (chunked,) = [law for law in laws(found) if law.name == "chunked"]
    assert reason in chunked.reason


def test_laws_of_strict_choices_are_all_owed():
    for arguments in ("top_k = 4", "top_p = 90%", "threshold = 0.1", "top_k = 4, dense_queries = first(8)"):
        found = spec(f"all: window(8) | routed(tokens, {arguments})")
        assert owed(found) == {"causal", "packed", "padded", "chunked", "decode", "prefix"}


def test_laws_of_choices_that_look_ahead():
    found = spec(f"all: {routed('queries = block(16)')}")
    assert owed(found) == {"packed", "padded", "by_phase"}
    encoder = spec("all: full", model="causal = false")
    assert owed(encoder) == {"packed", "padded"}


def test_the_table_as_data_names_class_and_refusals(capsys):
    from attnc.cli import invoke

    assert invoke(["show", str(SPECS / "hip.attn"), "--stage", "spec", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["causality"] == "block"
    assert [(one["code"], one["multiple"]) for one in report["refused"]] == [("A301", None), ("A302", 32), ("A303", 32)]
