"""`attnc tune kernels` on a GPU: candidates are tried and timed, the table stays, and a build takes it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from test_tune import TEXT

import attnc
from attnc.cli.tune_kernels import target_of
from attnc.codegen.build import Options, build
from attnc.codegen.tune import table as tables
from attnc.codegen.tune.tune import tune
from attnc.codegen.verify.verify import verify
from attnc.compiler import check_text

SOFTPLUS = TEXT.replace("window(7)", "window(7) { score = softplus(exponent = 2) }")


SORTS = {"softmax": (TEXT, 4, "torch"), "softplus": (SOFTPLUS, 8, "reference")}


@pytest.mark.parametrize(("text", "files", "peer"), SORTS.values(), ids=SORTS)
def test_tuned_blocks_are_right_and_taken(text: str, files: int, peer: str, tmp_path: Path) -> None:
    spec = check_text(text, "small.attn")
    build(spec, tmp_path / "plain", Options(seed=0))
    path = tmp_path / "table.json"
    report = tune(tmp_path / "plain", target_of("cuda"), ["bfloat16"], path, lambda *_: None, rounds=2, most=3)
    assert len(report.kernels) == files
    for one in report.kernels:
        right = [candidate for candidate in one.row.tries if candidate.verified]
        assert one.row.default in [candidate.blocks for candidate in right], one.row.tries
        assert all(len(candidate.seconds) == 2 and min(candidate.seconds) > 0 for candidate in right)
        assert one.row.blocks in [candidate.blocks for candidate in right]
    built = build(spec, tmp_path / "tuned", Options(seed=0, tuned=(tables.read_given(path),))).built
    assert [table.device for table in built.tuning.tables] == [torch.cuda.get_device_name()]
    assert verify(tmp_path / "tuned", "cuda", ["bfloat16"], lambda _: None).right
    texts = torch.randint(0, 16, (1, 40), device="cuda")
    exact = attnc.load(tmp_path / "plain", "cuda", torch.float64, "reference")(texts).logits
    runs = (("tuned", "triton"), ("plain", peer))
    got, theirs = (attnc.load(tmp_path / name, "cuda", torch.bfloat16, way)(texts).logits for name, way in runs)
    assert (got - exact).norm() <= 1.5 * (theirs - exact).norm()
