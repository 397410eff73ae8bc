"""Methods of specs and tables of others, from measurements that are made up."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

import attnc
from attnc.cli import invoke
from attnc.compiler.policies import read_policy
from attnc.compiler.policy import Machine, spec_digest
from attnc.compiler.units import FULL
from attnc.dsl import SpecError
from attnc.tune.journal import Row
from attnc.tune.runs import Run, Settings
from attnc.tune.solve import Wanted, solve
from attnc.tune.table import Table
from attnc.tune.tables import imported


def run_of(path, text, rows):
    """A run of a spec whose journal holds these rows."""
    spec = attnc.check(text)
    settings = Settings(
        file=str(path / "x.attn"),
        spec=spec_digest(spec),
        weights_from="",
        weights="",
        data="",
        tasks=("passkey",),
        lengths=(4096,),
        samples=1,
        probes=("mass", "output"),
    )
    run = Run.begin(path / "run", spec, settings)
    losses = [
        Row(
            what="loss",
            task="passkey",
            length=4096,
            layer=unit.layer,
            first=first,
            last=last,
            candidate=one.name,
            values={
                "kl": 0.1 * (one is not unit.candidates[0]),
                "output": 0.1,
                "mass": 0.0 if one is unit.candidates[0] else 0.05 * (1 + unit.layer),
            },
        )
        for unit in run.all
        for first, last in unit.groups
        for one in unit.candidates
    ]
    run.journal.add([*losses, *rows])
    return run


def heads_of(run, **changes):
    """The names of the alternatives that the spec's method takes, by layer."""
    table = replace(Table(run, "h100", 4096), **changes)
    found = {}
    for layer, _, first, last, name in solve(table, Wanted("kv_bytes", {})).solution.picks:
        found.setdefault(layer, []).extend([name.split()[0]] * (last - first + 1))
    return found


def shortened(name, layers):
    text = (Path(__file__).parent.parent / "specs" / f"{name}.attn").read_text()
    return text.replace("layers = 32", f"layers = {layers}")


def scores(what, values):
    return [
        Row(what=what, task="passkey", length=4096, layer=layer, first=group, last=group, values={what: value})
        for layer, row in enumerate(values)
        for group, value in enumerate(row)
    ]


def test_gates_keep_the_share_that_needs_it_and_retrieval_the_heads_above_a_threshold(tmp_path):
    gates = [[0.9, 0.1, 0.2, 0.8, 0.3, 0.3, 0.7, 0.0], [1.0, 1.0, 0.4, 0.6, 0.5, 0.2, 0.1, 0.95]]
    duo = run_of(tmp_path / "duo", shortened("duo", 2), scores("gate", gates))
    kept = sorted((value for row in gates for value in row), reverse=True)[7]
    assert heads_of(duo) == {at: ["retrieval" if v >= kept else "streaming" for v in row] for at, row in enumerate(gates)}
    assert sum(row.count("retrieval") for row in heads_of(duo, rounds=2).values()) == 11
    values = [[0.01 * head for head in range(32)]]
    copying = run_of(tmp_path / "copy", shortened("retrieval-heads", 1), scores("retrieval", values))
    assert heads_of(copying)[0] == ["local"] * 10 + ["retrieval"] * 22


def test_similar_layers_take_over_choices(tmp_path, monkeypatch):
    alike = [[1.0, 0.9, 0.5, 0.4], [0.0, 1.0, 0.9, 0.2], [0.0, 0.0, 1.0, 0.95], [0.0, 0.0, 0.0, 1.0]]
    rows = [
        Row(
            what="similarity",
            task="passkey",
            length=4096,
            layer=at,
            values={str(n): v for n, v in enumerate(row)} | {"lost": 0.0},
        )
        for at, row in enumerate(alike)
    ]
    run = run_of(tmp_path, shortened("hylra", 4), rows)
    free = dict.fromkeys(("decode_ms", "prefill_ms", "kv_bytes"), 1.0)
    priced = {(*unit.place, name): free for unit in run.all for name in ("dense", "reuse", FULL.name)}
    monkeypatch.setattr(Table, "costs", priced)
    assert heads_of(run) == {0: ["dense"] * 8, 1: ["reuse"] * 8, 2: ["dense"] * 8, 3: ["reuse"] * 8}


def test_tables_of_duo_and_minference_become_policies(tmp_path):
    said = []
    spec = attnc.check(shortened("duo", 2))
    (tmp_path / "heads.tsv").write_text("0.9\t0.1\t0.2\t0.8\t0.3\t0.35\t0.7\t0\n" + "\t".join(["0.5"] * 8) + "\n")
    made = imported(spec, tmp_path / "heads.tsv", "duo", Machine(device="h100"), said.append)
    assert [row.choose for row in made.settings[:3]] == ["retrieval", "streaming", "retrieval"]
    assert said == ["8 of 16 KV heads keep retrieval"]
    mine = attnc.check(shortened("minference", 1))
    patterns = [["vertical_and_slash", 1000, 6096, 0.9]] * 8 + [["stream_llm", 100, 800, 1]] * 4
    patterns += [["vertical_and_slash", 30, 800, 0.9]] * 3 + [["block_sparse", 100, 0, 1]] * 17
    (tmp_path / "best.json").write_text(json.dumps([{str(head): row for head, row in enumerate(patterns)}]))
    made = imported(mine, tmp_path / "best.json", "minference", Machine(device="h100"), said.append)
    names = [(row.first, row.last, row.choose["0"]) for row in made.settings]
    assert names == [(0, 1, "wide"), (2, 2, "a_shape"), (3, 3, "slanted"), (4, 7, "squares")]
    assert said[1:] == [
        "3 heads: lines 30 + 800 becomes slanted, the nearest that the spec has",
        "1 heads do what most heads of their KV group do",
    ]
    (tmp_path / "heads.tsv").write_text("0.9\t0.1\n")
    with pytest.raises(SpecError, match=r"heads\.tsv has 1 x 2 numbers, duo 2 x 8 KV heads"):
        imported(spec, tmp_path / "heads.tsv", "duo", Machine(device="h100"), said.append)


def test_one_spec_has_other_answers_for_other_devices_and_they_say_why(tmp_path, capsys):
    """A tenth of a decode step at 8192 tokens: on a CPU that is bytes, an H100 launches for most of that time anyway."""
    text = (Path(__file__).parent.parent / "docs/evidence/tuned.attn").read_text().replace("layers = 30", "layers = 2")
    run_of(tmp_path, text, [])
    near, everywhere = {}, {}
    for device in ("cpu", "h100"):
        given = ["--objective", "loss", "--limit", "decode_ms=90%", "--device", device, "--length", "8192"]
        assert invoke(["tune", "solve", str(tmp_path / "run"), *given, "-o", str(tmp_path / f"{device}.json")]) == 0
        made = read_policy(tmp_path / f"{device}.json")
        near[device] = sum(row.last - row.first + 1 for row in made.settings if row.choose == "near")
        table = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("near"))
        everywhere[device] = float(table.split()[-3].rstrip("%"))
    assert 0 < near["cpu"] < near["h100"]
    assert everywhere["cpu"] < 10 < 50 < everywhere["h100"] < 90
    given = ["--objective", "loss", "--limit", "decode_ms=50%", "--device", "h100", "--length", "8192"]
    assert invoke(["tune", "solve", str(tmp_path / "run"), *given]) == 3
    assert "decode_ms is at least" in capsys.readouterr().err
