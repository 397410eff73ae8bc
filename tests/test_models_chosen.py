"""Models in which content chooses keys: built, they equal the oracle in every way to run them."""

from __future__ import annotations

import pytest
from models import WAYS, Case
from test_models_composed import spec_text

from attnc.compiler import check_text

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
    "sala": spec_text(
        "0: when { length < 12: full, else: sink(4) | window(8, aligned = 4) | routed(blocks(4), top_k = 5,"
        " keys = mean(4, stride = 2), score = softmax(lse = mean(8, stride = 4)), fold = max, overlap = counted) }\n"
        "1: linear(decay = slopes) { rope = 10000, output_norm = rms }",
        ", rope = none, qk_norm = rms, output_gate = sigmoid",
        kv_heads=2,
    ),
}


@pytest.mark.parametrize("name", SPECS)
def test_a_model_in_which_content_chooses_equals_the_oracle(name, tmp_path):
    case = Case.of(check_text(SPECS[name]), tmp_path / "built", tokens=30)
    case.check_sizes()
    for way in WAYS:
        case.model.use(way)
        case.check(case.model)
