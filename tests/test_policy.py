"""Policies: what may be decided of a spec, the spec in which it is, and files that hold it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import attnc
from attnc.cli import invoke
from attnc.compiler.policies import of_folder, read_policy, settle
from attnc.compiler.policy import Machine, Policy, Setting, policy_text, spec_digest, written
from attnc.compiler.spec import Attention, Heads
from attnc.compiler.units import Units
from attnc.dsl import SpecError

SPECS = Path(__file__).parent.parent / "specs"
MODEL = "model m { vocab = 64, dim = 32, layers = 3, ffn = none, norm = rms(1e-5), heads = 4, kv_heads = 2 }\n"
CHOOSE = (
    MODEL + "layers { all: choose(per = head) { all: full, near: sink(2) | window(budget(4..16, default = 8, per = head)) } }"
)


def policy(spec, picks, **changes):
    """`picks(layer, group)`: the number of the candidate of every KV group."""
    from attnc.compiler.policies import rows

    units = Units(spec)
    settings = [
        row
        for unit in units.all()
        for row in rows(unit, [unit.candidates[picks(unit.layer, group)] for group in range(unit.kv_heads)], units.shared)
    ]
    base = Policy(
        model=spec.model.name,
        spec=spec_digest(spec),
        made_by="hand",
        machine=Machine(device="cpu"),
        settings=tuple(settings),
    )
    return replace(base, **changes)


@pytest.fixture
def place(tmp_path):
    (tmp_path / "m.attn").write_text(CHOOSE)
    return tmp_path


def test_a_unit_has_a_candidate_for_every_mixer_that_its_decisions_make():
    first, *_ = Units(attnc.check(CHOOSE), points=3).all()
    assert [one.name for one in first.candidates] == ["all", "near window.n=8", "near window.n=4", "near window.n=16"]
    assert (first.per, first.groups) == ("head", ((0, 0), (1, 1)))
    shared = Units(attnc.check(MODEL + "layers { first(1): full, else: window(budget(4..16, default = 8)) }"), points=2)
    assert [(unit.layer, unit.per) for unit in shared.all()] == [(1, "layer"), (2, "layer")]
    assert shared.shared == {"layers.else.window.n": (8, 4, 16)}


def test_a_settled_spec_is_the_spec_that_says_so_by_hand():
    spec = attnc.check(CHOOSE)
    settled = settle(spec, policy(spec, lambda layer, group: (layer + group) % 3))
    by_hand = attnc.check(
        MODEL
        + """layers {
          0: heads { 0: full, 1: sink(2) | window(8) }
          1: heads { 0: sink(2) | window(8), 1: sink(2) | window(4) }
          2: heads { 0: sink(2) | window(4), 1: full }
        }"""
    )
    for one, other in zip(settled.layers, by_hand.layers, strict=True):
        assert isinstance(one.mixer, Heads)
        assert isinstance(other.mixer, Heads)
        assert [(case.first, case.last, leaf(case)) for case in one.mixer.cases] == [
            (case.first, case.last, leaf(case)) for case in other.mixer.cases
        ]


def leaf(case):
    assert isinstance(case.mixer, Attention)
    return case.mixer.keys, case.mixer.attributes


def test_a_built_policy_computes_what_the_spec_by_hand_computes(place, capsys):
    spec = attnc.check(place / "m.attn")
    made = policy(spec, lambda layer, group: 2 * group)
    (place / "m.cpu.policy.json").write_text(policy_text(made))
    (place / "hand.attn").write_text(MODEL + "layers { all: heads { 0: full, 1: sink(2) | window(4) } }")
    assert invoke(["build", str(place / "m.attn"), "-o", str(place / "one"), "--init", "0", "--device", "cpu"]) == 0
    told = capsys.readouterr()
    assert "m.cpu.policy.json decides; it is not proved" in told.err
    assert invoke(["build", str(place / "hand.attn"), "-o", str(place / "other"), "--init", "0"]) == 0
    by_hand = capsys.readouterr().out
    assert told.out.partition("cache of")[2] == by_hand.partition("cache of")[2], "the cache is that of the policy"
    assert "policy " in told.out
    assert "policy " not in by_hand
    tokens = torch.arange(24)[None] % 64
    with torch.no_grad():
        one, other = (attnc.load(place / name)(tokens).logits for name in ("one", "other"))
    torch.testing.assert_close(one, other, rtol=0, atol=0)
    assert json.loads((place / "one/plan.json").read_text())["policy"]["spec"] == made.spec
    assert of_folder(place / "one").cache_spec() == settle(spec, made).cache_spec() != spec.cache_spec()


def test_a_policy_may_give_some_heads_of_a_layer_states(tmp_path):
    rest = "mix gdn = linear(update = delta, decay = scalar) { short_conv = 2, output_gate = silu }\n"
    spec = attnc.check(MODEL + rest + "layers { all: choose(per = head) { full: full, gdn: gdn } }")
    hand = attnc.check(MODEL + rest + "layers { 0..1: heads { 0: full, 1: gdn }, 2: heads { 0: gdn, 1: full } }")
    made = policy(spec, lambda layer, group: group if layer < 2 else 1 - group)
    (tmp_path / "policy.json").write_text(policy_text(made))
    attnc.build(spec, tmp_path / "one", policy=tmp_path / "policy.json", init=0)
    attnc.build(hand, tmp_path / "other", init=0)
    tokens = torch.arange(24)[None] % 64
    with torch.no_grad():
        one, other = (attnc.load(tmp_path / name)(tokens).logits for name in ("one", "other"))
    torch.testing.assert_close(one, other, rtol=0, atol=0)
    assert settle(spec, made).cache_spec() == hand.cache_spec()


def test_a_policy_for_another_device_is_left_alone_unless_it_is_named(place, capsys):
    path = place / "m.h100.policy.json"
    path.write_text(policy_text(policy(attnc.check(place / "m.attn"), lambda *_: 1, machine=Machine(device="h100"))))
    build = ["build", str(place / "m.attn"), "-o", str(place / "out"), "--device", "cpu"]
    assert invoke(build) == 0
    assert "m.h100.policy.json: made for another device, and the spec's defaults hold in 3 parts" in capsys.readouterr().err
    assert json.loads((place / "out/plan.json").read_text())["policy"] is None
    assert invoke([*build, "--policy", str(path)]) == 0
    assert json.loads((place / "out/plan.json").read_text())["policy"]["machine"]["device"] == "h100"


def damaged(text, spec):
    first = json.loads(text)["settings"][0]
    return {
        "A601": [text[:-9], text.replace('"schema_version": 1', '"schema_version": 2'), text.replace('"first"', '"begin"')],
        "A602": [
            text.replace(spec_digest(spec), "0" * 64),
            text.replace('"near"', '"far"'),
            text.replace(": 16", ": 99"),
            text.replace(json.dumps(first), f"{json.dumps(first)}, {json.dumps(first)}"),
            text.replace('"layer": 2', '"layer": 7'),
            text.replace(f"  {json.dumps(first)},\n", ""),
        ],
    }


@pytest.mark.parametrize(("code", "number"), [("A601", n) for n in range(3)] + [("A602", n) for n in range(6)])
def test_a_damaged_policy_is_an_error_that_names_what_is_wrong(place, code, number):
    spec = attnc.check(place / "m.attn")
    text = policy_text(policy(spec, lambda layer, group: 3))
    path = place / "m.cpu.policy.json"
    path.write_text(damaged(text, spec)[code][number])
    assert path.read_text() != text
    with pytest.raises(SpecError) as error:
        attnc.build(spec, place / "out", policy=path)
    assert [one.code for one in error.value.diagnostics] == [code]
    assert not (place / "out").exists()


def test_a_policy_reads_line_by_line_and_survives_its_file(place):
    made = policy(attnc.check(place / "m.attn"), lambda layer, group: 0 if layer else 2)
    (place / "p").write_text(policy_text(made))
    assert read_policy(place / "p") == made
    assert '  {"layer": 1, "first": 0, "last": 1, "choose": "all"},\n' in policy_text(made)


@pytest.mark.parametrize("words", [{}, {"": "near"}, {"0": "wide"}, {"": "near", "near": "sparse"}])
def test_the_words_of_a_setting_survive_how_they_are_written(words):
    said = written(words)
    assert isinstance(said, str) or "" not in said
    assert Setting(layer=0, first=0, last=0, choose=said).words == words


def test_groups_that_are_treated_alike_lie_side_by_side_and_their_tensors_follow(place):
    text = MODEL + "layers { all: choose(per = head) { all: full, near: sink(1) | window(4) } }"
    text = text.replace("heads = 4, kv_heads = 2", "heads = 8, kv_heads = 4, sink_logit = learned, output_gate = sigmoid")
    spec = attnc.check(text)
    (place / "p.json").write_text(policy_text(policy(spec, lambda layer, group: (layer + group) % 2)))
    attnc.build(spec, place / "plain", init=3)
    attnc.build(spec, place / "apart", policy=place / "p.json", init=3)
    attnc.build(spec, place / "moved", policy=place / "p.json", weights=place / "plain")
    moved = json.loads((place / "moved/plan.json").read_text())
    assert moved["heads"] == {"0": [0, 2, 1, 3], "1": [0, 2, 1, 3], "2": [0, 2, 1, 3]}
    assert [row["kv_heads"] for row in moved["cache"]] == [2] * 6
    tokens = torch.arange(24)[None] % 64
    with torch.no_grad():
        one, other = (attnc.load(place / name, dtype=torch.float64)(tokens).logits for name in ("apart", "moved"))
    torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    assert of_folder(place / "moved").cache_spec() != of_folder(place / "apart").cache_spec()
    attnc.build(spec, place / "back", weights=place / "moved")
    first, again = (load_file(place / name / "model.safetensors") for name in ("plain", "back"))
    assert first.keys() == again.keys()
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_tensors_of_alternatives_that_a_policy_leaves_out_are_left_out(place):
    spec = attnc.check(
        MODEL + "layers { 0..1: choose(per = layer) { state: linear(decay = slopes), near: window(4) }, 2: full }"
    )
    folders = []
    for number in range(2):
        (place / f"{number}.json").write_text(policy_text(policy(spec, lambda *_, number=number: number)))
        attnc.build(spec, place / str(number), policy=place / f"{number}.json", init=0)
        folders.append(load_file(place / str(number) / "model.safetensors"))
    (place / "both").mkdir()
    save_file(folders[0] | folders[1], place / "both/model.safetensors")
    for number, own in enumerate(folders):
        attnc.build(spec, place / str(number), policy=place / f"{number}.json", weights=place / "both")
        assert load_file(place / str(number) / "model.safetensors").keys() == own.keys()
    assert folders[0].keys() != folders[1].keys()
    with pytest.raises(SpecError, match="A544"):
        attnc.build(spec, place / "plain", weights=place / "both")


@pytest.mark.parametrize("path", sorted(SPECS.glob("*.attn")), ids=lambda path: path.stem)
def test_what_is_undecided_is_counted_without_candidates(path):
    units = Units(attnc.check(path))
    assert units.undecided() == len(units.all())


def test_more_candidates_than_can_be_measured_are_no_matter_for_building(tmp_path, capsys):
    budgets = " | ".join(
        f"{kind}(budget(2..800, default = 8, per = layer))" for kind in ("sink", "window", "stride", "block_local")
    )
    (tmp_path / "m.attn").write_text(f"{MODEL}layers {{ all: {budgets} }}")
    assert invoke(["build", str(tmp_path / "m.attn"), "-o", str(tmp_path / "out"), "--device", "cpu"]) == 0
    assert "the spec's defaults hold in 3 parts" in capsys.readouterr().err
