"""What decoding keeps, worked out by hand from each paper: bfloat16 unless said, 2 bytes a number; states in float32."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import kind_values
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from attnc.compiler import check_path, check_text
from attnc.compiler.cache_spec import CacheRow, cache_bytes, cache_spec, row_bytes
from attnc.compiler.causality import causality, refusals
from attnc.compiler.data import from_json, to_json
from attnc.compiler.laws import laws
from attnc.compiler.mixers import MIXERS
from attnc.compiler.print_value import print_value
from attnc.compiler.spec import Spec
from attnc.dsl import SpecError

SPECS = Path(__file__).parent.parent / "specs"
HEAD = "model m { vocab = 100, dim = 64, layers = 2, heads = 8, kv_heads = 4, head_dim = 16, ffn = none, norm = rms(1e-6) }\n"


def shipped(name: str, tokens: int) -> int:
    return cache_bytes(check_path(SPECS / f"{name}.attn"), tokens, "bfloat16")


def rows(expression: str, rest: str = "", dtype: str = "float16") -> dict[str, CacheRow]:
    found = cache_spec(check_text(f"{HEAD}{rest}\nlayers {{ 0: full, 1: {expression} }}"), dtype)
    return {row.name.removeprefix("layers.1").removeprefix("."): row for row in found if row.layer == 1}


def test_latent_attention_with_an_indexer():
    """DeepSeek-V3.2: 61 layers keep a latent of 512 and a rotated key of 64, and the indexer's one key of 128."""
    assert shipped("dsa", 1000) == 61 * 1000 * (512 + 64 + 128) * 2


def test_a_coarse_indexer_keeps_a_key_a_block():
    """HISA adds one pooled key of 128 for each of 1000 // 64 = 15 complete blocks."""
    assert shipped("hisa", 1000) == 61 * (1000 * (512 + 64 + 128) + 15 * 128) * 2


def test_three_branches_of_their_own():
    """NSA, 30 layers of 4 KV heads, keys of 192 and values of 128.

    Compressed: (1000 - 32) // 16 + 1 = 61 summaries, and the last 32 tokens with 15 spare; selected: every token; window:
    512 + 15. The scores come from the compressed keys, which are there.
    """
    token = 4 * (192 + 128) * 2
    assert shipped("nsa", 1000) == 30 * token * (61 + (32 + 15) + 1000 + (512 + 15))


def test_pooled_keys_that_overlap():
    """InfLLM-V2, 32 layers of 2 KV heads of 128: keys of 32 every 16, and coarser ones of 128 every 64 for the denominator."""
    pooled = ((1000 - 32) // 16 + 1) + ((1000 - 128) // 64 + 1)
    assert pooled == 61 + 14
    assert shipped("infllm-v2", 1000) == 32 * 2 * (1000 * (128 + 128) + pooled * 128) * 2


def test_bounds_of_pages():
    """Quest: 2 plain layers; 30 keep the smallest and largest key of each of 1000 // 16 = 62 pages."""
    token, page = 32 * (128 + 128) * 2, 32 * (128 + 128) * 2
    assert shipped("quest", 1000) == 32 * 1000 * token + 30 * 62 * page


def test_heavy_hitters():
    """H2O at 1000 tokens: 100 recent, 100 chosen, 15 spare, of 32 heads of 128; the score of each for each head in float32."""
    slots = 100 + 100 + 15
    assert shipped("h2o", 1000) == 32 * slots * 32 * ((128 + 128) * 2 + 4)


def test_matrix_states_with_convolutions():
    """Qwen3-Next: 36 layers hold 32 states of 128 x 128 and 3 inputs of 64 heads of 128; 12 have 2 KV heads of 256."""
    state = 32 * 128 * 128 * 4 + 3 * (16 + 16 + 32) * 128 * 2
    assert shipped("qwen3-next", 1000) == 36 * state + 12 * 1000 * 2 * (256 + 256) * 2


def test_taylor_features():
    """BASED: 5 layers of 16 states of 1 + 16 + 16 x 17 / 2 = 153 features x 64, with sums; 5 windows of 64; 17 convolutions."""
    linear = 16 * 153 * (64 + 1) * 4
    window = (64 + 15) * 16 * (64 + 64) * 2
    convolution = 2 * 4 * 1024 * 2
    assert shipped("based", 1000) == 5 * linear + 5 * window + 17 * convolution


def test_state_spaces_beside_attention():
    """Falcon-H1, 24 layers: 2 KV heads of 128; 48 heads of 64, 256 numbers a channel; 3 inputs of 48 x 64 + 2 x 256."""
    state = 48 * 64 * 256 * 4 + 3 * (48 * 64 + 2 * 256) * 2
    assert shipped("falcon-h1", 1000) == 24 * (1000 * 2 * (128 + 128) * 2 + state)


def test_mamba():
    """Jamba: 28 of 32 layers: 8192 channels of 16 numbers, 3 inputs of the convolution; 4 with 8 KV heads of 128."""
    assert shipped("jamba", 1000) == 28 * (8192 * 16 * 4 + 3 * 8192 * 2) + 4 * 1000 * 8 * (128 + 128) * 2


def test_fast_weights():
    """Titans' memory, 24 layers of 16 heads of 64: a net of 64 x 256 + 256 x 64 with its momentum, three gates of 63 tokens, in
    float32; 63 keys and values, and 3 inputs of three convolutions."""
    net = 16 * (64 * 256 + 256 * 64)
    exact = (2 * net + 3 * 63 * 16) * 4
    recent = (63 * 16 * (64 + 64) + 3 * 3 * 16 * 64) * 2
    assert shipped("titans-lmm", 1000) == 24 * (exact + recent)
    # as context: besides, keys and values of a segment's 511 tokens and of what the memory returned for them, 3 inputs of the
    # convolution of what it was asked, and its weights as the segment began
    segment = (2 * 511 * 16 * (64 + 64) + 3 * 16 * 64) * 2
    assert shipped("titans-mac", 1000) == 24 * (exact + recent + segment + 4 * net)


def test_a_gated_net_as_memory():
    """AllMem, 28 layers: 128 + 4096 + 15 slots of 8 KV heads of 128; 16 nets of 3 x 128 x 512 with momentum, two gates of 511
    tokens, 511 keys and values of 8 KV heads."""
    memory = (2 * 16 * 3 * 128 * 512 + 2 * 511 * 16) * 4 + 511 * 8 * (128 + 128) * 2
    assert shipped("allmem", 10_000) == 28 * ((128 + 4096 + 15) * 8 * (128 + 128) * 2 + memory)


def test_one_step_nets():
    """TTT-Linear, 24 layers: 16 maps of 64 x 64, one gate of 15 tokens; 15 keys and values; 3 inputs of three convolutions."""
    assert shipped("ttt-linear", 1000) == 24 * ((16 * 64 * 64 + 15 * 16) * 4 + (15 * 16 * 128 + 3 * 3 * 1024) * 2)


def test_codes_in_place_of_old_keys():
    """LongVQ, 8 layers of 8 heads of 64: a window of 512 + 15; 512 counts and mean values; 16 averages a channel of 512."""
    window, codes, averages = 527 * 8 * (64 + 64) * 2, 8 * 512 * (1 + 64) * 4, 512 * 16 * 4
    assert shipped("longvq", 100) == shipped("longvq", 100_000) == 8 * (window + codes + averages)


def test_summaries_that_run():
    """RAT: 12 layers keep 1000 // 16 = 62 summaries of 16 heads of 128, a running one in float32, 15 spare slots."""
    token = 16 * (128 + 128) * 2
    running = 16 * (128 + 128) * 4
    assert shipped("rat", 1000) == 12 * (62 * token + running + 15 * token) + 12 * (1024 + 15) * token


def test_feedback_keeps_its_keys_and_solutions():
    """Sessa: keys and values of 12 heads of 64, and a key and a float32 solution of 768, for every token of 12 layers."""
    assert shipped("sessa", 1000) == 12 * 1000 * (3 * 768 * 2 + 768 * 4)


def test_inserted_tokens_have_slots():
    """Landmark: 1000 tokens with 20 landmarks, of 32 heads of 128."""
    assert shipped("landmark", 1000) == 32 * 1020 * 32 * (128 + 128) * 2


def test_clusters_number_their_tokens():
    """Routing Transformer: blocks of 256 + 15; in the last layer 2 heads keep all 1000 tokens and the cluster of each."""
    token = (129 + 129) * 2
    assert shipped("routing-transformer", 1000) == (21 * 8 + 6) * 271 * token + 2 * 1000 * (token + 2)


def test_recurrent_cells():
    """LRCN: h and c of 512 in float32, in 2 layers."""
    assert shipped("lrcn", 1) == shipped("lrcn", 1000) == 2 * 2 * 512 * 4


def test_choices_that_hold_for_several_steps():
    """InfiniteHiP, 27 layers: 256, 256 and 128 chosen blocks for the layer,
    the mean query of each stage's block, and when it chose."""
    plain = 32 * 1000 * 8 * (128 + 128) * 2
    assert shipped("infinite-hip", 1000) == plain + 27 * ((256 + 256 + 128) * 4 + 3 * (32 * 128 + 1) * 4)


def test_detected_sinks_have_slots_beside_the_first_ones():
    """Secondary sinks: 23 layers of 16 + 2048 + 15 slots, 17 of 16 more, which are compared with the first token's state."""
    token = 8 * (128 + 128) * 2
    assert shipped("secondary-sinks", 5000) == 23 * 2079 * token + 17 * (2095 * token + 5120 * 4)


@pytest.mark.parametrize("path", sorted(SPECS.glob("*.attn")), ids=lambda path: path.stem)
def test_every_shipped_spec_has_rows_that_count_their_bytes(path):
    spec = check_path(path)
    found = cache_spec(spec, "bfloat16")
    assert len({row.name for row in found}) == len(found)
    encoder = "causal = false" in path.read_text("utf-8").partition("layers {")[0]
    assert bool(found) != encoder
    assert {row.layer for row in found} == (set() if encoder else set(range(spec.model.layers)))
    for row in found:
        if row.kind == "fixed":
            assert row_bytes(row, 1) == row_bytes(row, 10**6) == row.bytes_fixed
            assert row.bytes_per_token == 0
        elif row.kind == "growing":
            tokens = 2**20 * row.step
            grown = row_bytes(row, 2 * tokens) - row_bytes(row, tokens)
            assert abs(grown - tokens * row.bytes_per_token) <= row.bytes_per_token * row.step
        for dtype in ("float64", "float16"):
            assert row_bytes(row, 100) >= 0, dtype
    assert cache_bytes(spec, 512, "float16") == cache_bytes(spec, 512, "bfloat16")


def test_a_growing_row_has_a_slot_for_every_complete_run():
    row = rows("summary(8, stride = 4)")["summary"]
    slot = row_bytes(row, 8)
    assert slot == 4 * (16 + 16) * 2
    assert [row_bytes(row, tokens) // slot for tokens in (0, 7, 8, 11, 12, 16)] == [0, 0, 1, 1, 2, 3]


def test_states_are_exact_whatever_the_models_format():
    assert rows("linear")["linear"].dtype == "float32"
    assert rows("linear", dtype="float64")["linear"].dtype == "float64"
    assert rows("linear { short_conv = 4 }")["linear.recent"].dtype == "float16"
    assert rows("conv(3)")["conv"].dtype == "float16"


def test_widths_of_feature_maps():
    for feature, width in {"elu": 16, "softmax": 16, "hedgehog": 32, "favor": 44, "taylor(1)": 17, "taylor(2)": 153}.items():
        assert rows(f"linear(feature = {feature})")["linear"].shapes == {"state": (8, width, 16)}, feature
    assert rows("linear(decay = vector, state = vector)")["linear"].shapes == {"state": (8, 16)}


def test_shared_heads_of_q_and_k():
    found = rows("linear { heads = 8, qk_heads = 2, short_conv = 3 }")["linear.recent"]
    assert found.shapes == {"q_conv": (2, 2 * 16), "k_conv": (2, 2 * 16), "v_conv": (2, 8 * 16)}
    grouped = rows("linear { short_conv = 3 }")["linear.recent"]
    assert grouped.shapes == {"q_conv": (2, 8 * 16), "k_conv": (2, 4 * 16), "v_conv": (2, 4 * 16)}


def test_a_selector_that_only_prefill_uses_is_not_kept():
    pages = "routed(blocks(8), top_k = 2, keys = minmax)"
    assert set(rows(f"when {{ phase == prefill: {pages}, else: full }}")) == {""}
    assert set(rows(f"when {{ phase == decode: {pages}, else: full }}")) == {"", "routed"}


def test_a_summary_that_scores_is_kept_once():
    scored = "routed(blocks(8), top_k = 2, keys = summary(4))"
    assert rows(f"{scored}")["routed"].shapes == {"summary": (None, 4, 16)}
    both = rows(f"gate(compressed, {scored})", "mix compressed = summary(4)")
    assert "routed.routed" not in both
    assert both["compressed.summary"].shapes == {"k": (None, 4, 16), "v": (None, 4, 16)}


def test_each_query_head_that_drops_for_itself_needs_slots():
    """8 heads on 4 KV heads: what either head chose is kept."""
    own = rows("window(8) | routed(tokens, top_k = 16, per = head, evict = true)")[""]
    shared = rows("window(8) | routed(tokens, top_k = 16, evict = true)")[""]
    assert (own.chosen, own.tokens_kept) == (32, 8 + 32 + 15)
    assert (shared.chosen, shared.tokens_kept) == (16, 8 + 16 + 15)
    assert rows("window(8) | routed(tokens, top_k = 16, refresh = once, evict = true)")[""].kind == "growing"
    blocks = rows("window(8) | routed(blocks(4), top_k = 16, evict = true)")[""]
    assert blocks.chosen == 64


def test_what_other_cases_keep_is_dropped_with_it():
    dropping = "window(8) | routed(tokens, top_k = 16, evict = true)"
    assert rows(f"when {{ phase == decode: {dropping}, else: full }}")[""].kind == "ring"
    assert rows(f"when {{ length < 100: {dropping}, else: full }}")[""].kind == "growing"


def test_selectors_of_some_heads():
    found = rows("heads { 0..2: window(8), else: routed(blocks(8), top_k = 2, keys = minmax) }")
    assert found["heads.3"].shapes == {"k": (1, None, 16), "v": (1, None, 16)}
    assert found["heads.3.routed"].shapes == {"min": (None, 1, 16), "max": (None, 1, 16)}
    assert (found["heads.3.routed"].first, found["heads.3.routed"].kv_heads) == (3, 1)


def test_head_groups_with_a_state_keep_no_keys():
    found = rows("heads { 0..1: full, 2: linear, else: window(8) }")
    assert {name: row.kind for name, row in found.items()} == {
        "heads.0-1": "growing",
        "heads.3": "ring",
        "linear.linear": "fixed",
    }
    assert found["heads.0-1"].shapes["k"] == (2, None, 16)
    assert found["linear.linear"].shapes == {"state": (2, 16, 16)}


def test_heads_of_one_latent_keep_it_once():
    found = rows("heads { 0..1: window(8), else: window(32) } { kv_latent = 24, rope_dim = 8 }")
    assert found[""].shapes == {"latent": (32 + 15, 24), "rotated": (32 + 15, 8)}
    assert list(found) == [""]


def test_the_rows_are_found_without_torch():
    code = (
        "import sys; from attnc.compiler import check_path; "
        "from attnc.compiler.causality import refusals; "
        f"spec = check_path({str(SPECS / 'titans-mac.attn')!r}); spec.cache_spec(); refusals(spec); "
        "assert not {'torch', 'networkx', 'jinja2'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@settings(max_examples=150, suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow])
@given(kind=st.sampled_from([name for name, mixer in MIXERS.items() if mixer.type != "change"]).flatmap(kind_values.kinds))
def test_whatever_checks_has_rows_a_class_and_laws_and_survives_json(kind):
    text = f"{HEAD}layers {{ 0: full, 1: when {{ phase == train: full, else: {print_value(kind)} }} }}"
    try:
        spec = check_text(text)
    except SpecError as error:
        assert {one.code for one in error.diagnostics} <= {"A204", "A208"}, text  # noqa: PT017 - what it says is the point
        return
    found = cache_spec(spec, "bfloat16")
    assert len({row.name for row in found}) == len(found)
    assert 0 <= cache_bytes(spec, 1, "bfloat16") <= cache_bytes(spec, 100_000, "bfloat16")
    assert all(from_json(CacheRow, to_json(row)) == row for row in found)
    assert causality(spec) in ("strict", "block", "sequence")
    assert bool(refusals(spec)) <= (causality(spec) != "strict")
    assert len(laws(spec)) == 7
    assert from_json(Spec, to_json(spec)) == spec
