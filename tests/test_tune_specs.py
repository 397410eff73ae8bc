"""Specs of systems that decide something: each is scored, solved and proved by its own method, made small."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

import attnc
from attnc.cli import invoke
from attnc.compiler.policies import read_policy
from attnc.tune.journal import Journal

SPECS = Path(__file__).parent.parent / "specs"
SMALL = "vocab = {vocab}, dim = 16, layers = {layers}, ffn = none, norm = rms(1e-5), heads = 4, kv_heads = 2"
SMALLER = {
    "duo": {"sink(64) | window(256)": "sink(1) | window(8)"},
    "retrieval-heads": {"sink(16) | window(1024)": "sink(1) | window(8)"},
    "hylra": {"sink(64) | window(512)": "sink(1) | window(8)", "2048": "6", "0.85": "0.3"},
    "minference": {
        "sink(30) | window(100)": "sink(1) | window(4)",
        "top_k = 3500": "top_k = 9",
        "top_k = 1000": "top_k = 6",
        "top_k = 6096": "top_k = 8",
        "top_k = 800": "top_k = 5",
        "top_k = 100,": "top_k = 2,",
        "blocks(64)": "blocks(8)",
        "block_local(64)": "block_local(8)",
        "block(64)": "block(8)",
        "last(64)": "last(8)",
        "sink(100) | window(800)": "sink(2) | window(9)",
        "rows = 2500": "rows = 20",
    },
    "sparse-frontier": {
        "length < 8192": "length < 24",
        "from = 8192": "from = 24",
        "512": "6",
        "256": "8",
        "top_k = 64": "top_k = 2",
        "(64,": "(2,",
        "16)": "8)",
        "window(64)": "window(4)",
    },
    "sala": {
        "sink(64) | window(2048, aligned = 64)": "sink(8) | window(16, aligned = 8)",
        "blocks(64)": "blocks(8)",
        "budget(48..128, default = 96)": "3",
        "mean(32, stride = 16)": "mean(4, stride = 2)",
        "mean(128, stride = 64)": "mean(8, stride = 4)",
        "length < 8192": "length < 24",
        "kv_heads = 32": "kv_heads = 4",
        "[0, 9, 16, 17, 22, 29..31]: sparse": "0: sparse",
        "else                      : lightning": (
            "else: choose(per = layer, by = recall_drop(share = 50%)) { sparse: sparse, linear: lightning }"
        ),
    },
}
"""What is replaced in each, beside the model; SALA's list of layers by what chose it."""


BOTH = ("sala", "sparse-frontier")
"""Those that weigh text against passkeys; their models read bytes."""

LAYERS = {"hylra": 3, "sala": 3}


def text_of(name: str) -> str:
    text = (SPECS / f"{name}.attn").read_text()
    for old, new in SMALLER[name].items():
        assert old in text, (name, old)
        text = text.replace(old, new)
    small = SMALL.format(vocab=256 if name in BOTH else 64, layers=LAYERS.get(name, 2))
    return re.sub(r"(model \w+) \{.*?\n\}", rf"\1 {{ {small} }}", text, flags=re.DOTALL)


def weights(spec: attnc.Spec, name: str, place: Path) -> Path:
    """Of all alternatives in one folder, as training leaves them."""
    attnc.build(spec, place, init=0)
    if name == "sala":
        linear = re.sub(r"else: choose.*", "else: lightning", text_of(name))
        attnc.build(attnc.check(linear), place.with_name("linear"), init=0)
        file = place / "model.safetensors"
        save_file(load_file(place.with_name("linear") / "model.safetensors") | load_file(file), file)
    return place


@pytest.mark.parametrize("name", SMALLER)
def test_a_spec_is_decided_by_its_own_method_and_proved(name, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("attnc.tune.score.GATE_STEPS", 4)
    path = tmp_path / f"{name}.attn"
    path.write_text(text_of(name))
    spec = attnc.check(path)
    folder = weights(spec, name, tmp_path / "built")
    run, tasks = str(tmp_path / "run"), "text,passkey" if name in BOTH else "passkey"
    scoring = [
        "--weights",
        str(folder),
        "--length",
        "400" if name in BOTH else "48",
        "--samples",
        "1",
        "--task",
        tasks,
        "--device",
        "cpu",
    ]
    scoring += ["--probe", "mass,output,hidden"] if name == "minference" else []
    assert invoke(["tune", "score", str(path), "-o", run, *scoring]) == 0, capsys.readouterr().err
    solving = ["--objective", "loss"] if name == "sparse-frontier" else []
    assert invoke(["tune", "solve", run, "--device", "cpu", *solving]) == 0, capsys.readouterr().err
    if MEASURED.get(name):
        assert invoke(["tune", "refine", run, "--device", "cpu"]) == 2
        assert "methods of the spec decide all" in capsys.readouterr().err
    capsys.readouterr()
    proving = ["--trials", "1", "--max-rise", "1000", "--max-drop", "100", "--device", "cpu", "--json"]
    assert invoke(["tune", "prove", run, *proving]) == 0, capsys.readouterr().err
    verdict = json.loads(capsys.readouterr().out)
    assert verdict["proved"]
    assert verdict["worst"].split()[0] in tasks
    made = read_policy(tmp_path / f"{name}.cpu.policy.json")
    assert {row.layer for row in made.settings} == set(range(name == "sala", LAYERS.get(name, 2)))
    assert made.losses
    rows = Journal(Path(run) / "journal.jsonl").rows().values()
    assert {row.what for row in rows} == {"loss"} | MEASURED.get(name, set())


MEASURED = {"duo": {"gate"}, "retrieval-heads": {"retrieval"}, "hylra": {"similarity"}}
"""What each method measures beside losses."""
