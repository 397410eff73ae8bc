"""Decoding from latents: queries go to what the cache holds, which gives what expanded keys and values give."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest
from models import Case
from test_plan import planned

from attnc.compiler import check_text

MODEL = """model latent {{
  vocab = 64, dim = 24, layers = 1, heads = 6, kv_heads = 3, head_dim = 8, value_dim = 6, ffn = swiglu(32), norm = rms(1e-6)
  {more}
}}
layers {{ all: {keys} {{ kv_latent = 10, {rest} }} }}
"""
SPECS = {
    "everything": ("full", "rope_dim = 4", ""),
    "rings, sink logits, a cap": ("sink(1) | window(5)", "rope_dim = 4, sink_logit = learned", ", score_cap = 5"),
    "heads apart, nothing rotated": ("heads { 0: full, else: window(4) }", "rope = none", ""),
}


@pytest.mark.parametrize("name", SPECS)
def test_decoding_reads_latents_alone_and_equals_the_oracle(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys, rest, more = SPECS[name]
    case = Case.of(check_text(MODEL.format(keys=keys, rest=rest, more=more)), tmp_path / "built", tokens=30)
    (mix,) = case.model.launches()
    latent = import_module(f"{type(mix).__module__.rpartition('.')[0]}.latent")
    read = []

    def noted(*arguments):
        read.append(begin(*arguments))
        return read[-1]

    begin = latent.begin_absorbed
    monkeypatch.setattr(latent, "begin_absorbed", noted)
    monkeypatch.setattr(latent, "cached", None)  # which would expand what the cache holds
    case.check(case.model, ("decode", "decode by 16", "padded decode"))
    for (part,) in read:
        runs = part.read(0, 2, 0)
        assert part.k is part.v, "latents are keys and values"
        assert all(run.k.stride(1) == run.v.stride(1) == 0 for run in runs), "one head for all"


def test_a_plan_reads_latents_where_that_is_cheaper_and_says_so() -> None:
    text = MODEL.format(keys="full", rest="rope_dim = 4", more="").replace(
        "heads = 6, kv_heads = 3", "heads = 16, kv_heads = 16"
    )
    wide = text.replace("kv_latent = 10", "kv_latent = 512").replace("head_dim = 8, value_dim = 6", "head_dim = 128")
    (decode,) = (one for one in planned(check_text(wide), length=32768).choices if one.phase == "decode")
    (triton,) = (price for price in decode.others if price.provider == "triton")
    assert (decode.provider, decode.how) == ("torch", "latents")
    assert triton.seconds > decode.seconds, "it expands all heads' keys and values"
