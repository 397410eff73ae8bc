"""Weights of one model in another that has something new beside its attention."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

import attnc
from attnc.cli import invoke
from attnc.dsl import SpecError

MODEL = "model m { vocab = 64, dim = 32, layers = 2, ffn = swiglu(48), norm = rms(1e-5), heads = 4, kv_heads = 2 }\n"
BESIDE = "mix near = sink(2) | window(16)\nmix state = linear { scale = learned(init = 0) }\nlayers { all: near + state }"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    path = tmp_path_factory.mktemp("filling")
    for name, layers in {"old": "layers { all: full }", "new": BESIDE, "two": "layers { all: window(4) + full }"}.items():
        (path / f"{name}.attn").write_text(MODEL + layers)
    attnc.build(attnc.check(path / "old.attn"), path / "old", init=3)
    return path


def test_a_branch_that_adds_nothing_yet_leaves_the_model_as_it_was(place, capsys):
    build = ["build", str(place / "new.attn"), "-o", str(place / "new"), "--weights", str(place / "old")]
    assert invoke(build) == 1
    assert "`--init SEED` starts what is new" in capsys.readouterr().err
    assert invoke([*build, "--init", "0"]) == 0
    told = capsys.readouterr().err
    assert "the attention of 2 layers of the weights is `mixer.near` here" in told
    assert "10 tensors that the weights lack start from seed 0: mixer.state.q_proj.weight, " in told
    tokens = torch.arange(16)[None]  # as far as the window reaches
    with torch.no_grad():
        old, new = (attnc.load(place / name)(tokens).logits for name in ("old", "new"))
    torch.testing.assert_close(new, old, rtol=0, atol=0)


def test_what_was_filled_once_is_whole_and_other_seeds_start_other_numbers(place):
    spec = attnc.check(place / "new.attn")
    for name, source, seed in (("first", "old", 0), ("second", "old", 1), ("again", "first", 7)):
        report = attnc.build(spec, place / name, weights=place / source, init=seed)
        assert any("start from seed" in line for line in report.decisions) == (source == "old")
    first, second, again = (load_file(place / name / "started-1.safetensors") for name in ("first", "second", "again"))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(*(one["model.layers.0.mixer.state.q_proj.weight"] for one in (first, second)))


def test_attention_that_could_stand_in_two_places_is_not_guessed(place):
    with pytest.raises(SpecError, match=r"self_attn\.q_proj"):
        attnc.build(attnc.check(place / "two.attn"), place / "two", weights=place / "old", init=0)
