"""Models in which content chooses keys: built, they equal the oracle in every way to run them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from models import WAYS, Case, made
from test_check import CHOSEN
from test_models_composed import spec_text

from attnc.compiler import check_path, check_text
from attnc.compiler.reduce import reduce

SHIPPED = Path(__file__).parent.parent / "specs"

SPECS = {
    "moba": spec_text("0: block_local(4) | routed(blocks(4), top_k = 3, keys = mean, per = head, overlap = counted)\n1: full"),
    "quest": spec_text(
        "0: full\n1: when { phase == decode: block_local(3) | routed("
        "blocks(3), top_k = 4, at_least = 3, keys = minmax, per = head, overlap = counted), else: full }"
    ),
    "infllm-v2": spec_text(
        "all: when { length < 12: full, else: sink(4) | window(8, aligned = 4) | routed(blocks(4), top_k = 5,"
        " keys = mean(4, stride = 2), score = softmax(lse = mean(8, stride = 4)), fold = max, per = group(sum),"
        " overlap = counted) }"
    ),
    "a block asks as one": spec_text(
        "all: sink(2) | block_local(4) | routed(blocks(4), top_p = 70%, queries = block(6, stride = 2), score = softmax,"
        " per = layer(max), overlap = excluded, selection = noncausal)"
    ),
    "the last ask for all": spec_text(
        "all: window(3) | routed(tokens, threshold = 0.2, queries = last(5), score = softmax, at_most = 9, per = head,"
        " selection = noncausal)"
    ),
    "minference": spec_text(
        "all: when { phase == prefill: sink(1) | window(3) | routed(columns, top_k = 2, queries = last(4), score = softmax,"
        " per = head) | routed(diagonals, top_k = 3, queries = last(4), score = softmax, per = head), else: full }"
    ),
    "xattention": spec_text(
        "all: when { phase == prefill: sink(4) | block_local(4) | routed(blocks(4), top_p = 60%, queries = block(4),"
        " score = antidiagonal(2), per = head, overlap = counted), else: full }"
    ),
    "sparse-frontier": spec_text(
        "all: when { length < 8: full, phase == decode: block_local(3) | routed(blocks(3), top_k = sublinear(2, from = 8,"
        " exponent = 0.7), keys = minmax, per = group(sum), overlap = counted), phase == prefill: block_local(4) |"
        " routed(blocks(4), top_k = 2, queries = block(4), per = head, overlap = counted), else: full }"
    ),
    "two choices in a union": spec_text(
        "all: routed(tokens, top_k = 3, score = softmax, per = group(max)) | persistent(2)"
        " | routed(blocks(3), top_k = 2, keys = minmax, per = head, overlap = counted, at_most = 4) { sink_logit = learned }",
        ", score_cap = 2",
    ),
    "heads choose apart": spec_text(
        "all: heads { 0: window(4), 1: routed(blocks(2), top_k = 25%, keys = mean(3, stride = 2), fold = sum, score = softmax),"
        " 2: block_local(4) | routed(tokens, top_k = sublinear(3, from = 10, exponent = 0.5), overlap = excluded) }"
    ),
    "dsa": spec_text(
        "all: routed(tokens, top_k = 5, keys = indexer(heads = 3, head_dim = 6), per = layer)", ", kv_latent = 12, rope_dim = 4"
    ),
    "hylra": spec_text(
        "0: full { rope_scale = linear(2) }\n1: sink(2) | window(3) | routed(tokens, top_k = 4, from = previous)\n"
        "2: block_local(4) | routed(blocks(4), top_k = 2, keys = mean(4, stride = 2), score = softmax)\n"
        "3: block_local(4) | routed(blocks(4), top_k = 3, from = previous, per = head, overlap = counted)"
    ),
    "seer": spec_text(
        "0: when { phase == decode: full, else: block_local(4) | routed(blocks(4), threshold = 0.3, keys ="
        " learned(pool = [max, min, mean]), queries = block(4), score = softmax, per = head, selection = noncausal) }\n"
        "1: block_local(3) | routed(blocks(3), top_k = 2, keys = learned(pool = [mean]), score = softmax)"
    ),
    "nsa": spec_text(
        "all: gate(compressed, sink(4) | window(8, aligned = 4) | routed(blocks(4), top_k = 4, keys = compressed,"
        " score = softmax, fold = sum, per = group(sum), overlap = counted), window(5), by = sigmoid, shared = [q])",
        ", value_dim = 6",
        mixes="mix compressed = summary(4, stride = 2, pool = mlp)",
    ),
    "summaries beside tokens": spec_text("all: sink(1) | window(6, aligned = 3) | summary(3, pool = mean, value_pool = max)"),
    "recycled": spec_text(
        "all: when { phase == decode: routed(tokens, top_k = 4, score = softmax, per = group(max),"
        " refresh = [every(7), cosine(0.3, every = 2)], on_refresh = dense), else: full }"
    ),
    "a choice holds, some see all": spec_text(
        "all: window(2) | routed(blocks(3), top_k = 2, refresh = every(3), dense_queries = first(5))"
    ),
    "sala": spec_text(
        "0: when { length < 12: full, else: sink(4) | window(8, aligned = 4) | routed(blocks(4), top_k = 5,"
        " keys = mean(4, stride = 2), score = softmax(lse = mean(8, stride = 4)), fold = max, overlap = counted) }\n"
        "1: linear(decay = slopes) { rope = 10000, output_norm = rms }",
        ", rope = none, qk_norm = rms, output_gate = sigmoid",
        kv_heads=2,
    ),
}


@pytest.mark.parametrize("name", [name for name in CHOSEN if name not in ("sala", "infllm-v2")])
def test_a_shipped_spec_runs_by_lists_as_by_its_formula(name, tmp_path):
    """A prompt, then tokens one by one and several at once."""
    small, _ = reduce(check_path(SHIPPED / f"{name}.attn"), 32)
    model = made(small, tmp_path / "built")
    texts = torch.randint(0, small.model.vocab, (2, 46), generator=torch.Generator().manual_seed(1))
    found = {}
    for way in WAYS:
        cache = model.use(way).new_cache(2, 46)
        with torch.no_grad():
            found[way] = torch.cat([model(part, cache=cache).logits for part in texts.split((38, 1, 1, 6), dim=1)], dim=1)
    assert found["torch"].isfinite().all()
    torch.testing.assert_close(found["torch"], found["reference"], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", SPECS)
def test_a_model_in_which_content_chooses_equals_the_oracle(name, tmp_path):
    case = Case.of(check_text(SPECS[name]), tmp_path / "built", tokens=20 if "length <" in SPECS[name] else 16)
    case.check_sizes()
    for way in WAYS:
        case.model.use(way)
        case.check(case.model)
