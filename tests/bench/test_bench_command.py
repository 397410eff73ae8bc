"""`attnc bench`: its report, its table, its picture, and what it says of slips."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from benched import LENGTH, TEXT, Odd, rows

from attnc.bench import fields, libraries, plot, report, run, table
from attnc.bench import work as works
from attnc.cli import bench as command
from attnc.cli.schema import SCHEMAS, schema_of
from attnc.compiler.data import from_json

ARGUMENTS = ("--length", "32,64", "--seconds", "0.001", "--against", "sdpa,flex,fla,fa4", "--phases", "forward,decode")


def test_a_report_is_of_the_shape_of_its_schema_and_says_all_that_was_asked(folder, attnc_run):
    code, out, err = attnc_run("bench", folder, *ARGUMENTS, "--json")
    assert code == 0
    found = from_json(report.BenchReport, out)
    assert set(json.loads(out)) == set(schema_of("bench")["properties"])
    assert SCHEMAS["bench"][1] == "BenchReport"
    assert found.machine.torch == torch.__version__
    assert (found.dtype, found.machine.capability) == ("float32", None)
    assert [(row.phase, row.length) for row in found.rows[:4]] == [
        ("forward", 32),
        ("forward", 64),
        ("decode", 32),
        ("decode", 64),
    ]
    names = {tuple(result.name for result in row.results) for row in found.rows if row.reason is None}
    assert names == {("torch", "triton", "sdpa", "flex", "fa4")}
    assert [row.reason for row in found.rows if not row.results] == ["a layer that looks ahead does not decode"] * 2
    assert "no GPU here; 32, 64 tokens in float32 on the CPU" in err
    assert "timed in turns" in err


def test_the_table_fits_a_terminal(known):
    facts = report.Machine(device="A GPU", capability="sm_90", driver=None, torch="2.11.0+cu130", triton="3.6.0", python="3.12",
                           attnc="0.1.0", commit="0123456789abcdef")  # fmt: skip
    found = [rows(known, launch=words, phase=phase) for words in known for phase in works.PHASES]
    found[1] = replace(found[1], words="window(4096) | " * 12 + "full", length=1048576)
    whole = report.BenchReport(
        command=("attnc", "bench"), file="x", machine=facts, dtype="bfloat16",
        ceiling=report.Ceiling(flops=7.1e14, bandwidth=4e12), rows=tuple(found),
        skipped=(report.Skip(launch="Conv", words="conv(3)", reason="no kernel " * 12),),
    )  # fmt: skip
    text = table.header_text(whole) + table.skipped_text(whole)
    text += "".join(map(table.row_text, found, (None, *found)))
    assert max(map(len, text.splitlines())) <= 80
    assert "products 710 TFLOP/s, copies 4 TB/s" in text
    assert "triton    generated kernels need a GPU" in text


def stopped(row):
    yield row
    raise KeyboardInterrupt


def test_a_spec_is_built_on_the_way_and_ours_being_wrong_ends_with_1(tmp_path, attnc_run, monkeypatch):
    path = tmp_path / "one.attn"
    path.write_text(TEXT.replace("layers = 8", "layers = 1").split("layers {")[0] + "layers { all: window(9) }\n")
    words = ("bench", path, "--length", "24", "--seconds", "0.001", "--phases", "forward", "--against", "")
    code, out, _ = attnc_run(*words)
    assert code == 0
    assert "* torch" in out
    with monkeypatch.context() as patched:  # a run that is stopped keeps the rows that it has
        several = run.run
        patched.setattr(run, "run", lambda *given: stopped(next(several(*given))))
        code, out, _ = attnc_run(*words)
    assert code == 130
    assert "* torch" in out
    monkeypatch.setitem(libraries.PEERS, "torch", Odd(lambda o: o * 1.001, "torch"))
    code, out, _ = attnc_run(*words)
    assert code == 1
    assert "wrong: the result is off by" in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--against", "sdpa,fa3"], "--against does not know fa3"),
        (["--phases", "sideways"], "--phases does not know sideways"),
        (["--phases", ","], "--phases names none"),
        (["--length", "4k"], "--length 4k is no number of tokens"),
        (["--length", "0"], "--length 0 is no number of tokens"),
        (["--dtype", "fp4"], "there is no number type fp4"),
    ],
)
def test_a_slip_is_said_before_anything_runs(folder, attnc_run, words, said):
    code, out, err = attnc_run("bench", folder, *words)
    assert (code, out) == (2, "")
    assert said in err


def test_a_picture_without_matplotlib_says_how_to_get_it(folder, attnc_run, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    code, out, err = attnc_run("bench", folder, "--plot", "out.png")
    assert (code, out) == (4, "")
    assert "pip install 'attnc[plot]'" in err


def test_the_command_knows_the_same_words_as_the_bench():
    assert set(fields.AGAINST) == set(command.AGAINST)
    assert command.PHASES == works.PHASES
    assert set(command.USUAL.split(",")) <= set(command.AGAINST)
    assert set(plot.ORDER) == {"triton", *fields.AGAINST}


def test_a_picture_has_a_panel_for_each_launch_and_phase(known):
    found = [rows(known, phase=phase) for phase in ("forward", "decode")]
    found.append(replace(found[0], length=2 * LENGTH))
    panels = plot.panels(reversed(found))
    name = known["sink(4) | window(16)"].name
    assert list(panels) == [(name, "forward"), (name, "decode")]
    points = panels[name, "forward"]
    assert set(points) == {"torch", "sdpa"}
    assert [point[0] for point in points["sdpa"]] == [LENGTH, 2 * LENGTH]
    _, median, least, most = points["sdpa"][0]
    assert least <= median <= most
    assert median == 1e3 * next(result.timed.median for result in found[0].results if result.name == "sdpa")


def test_a_picture_is_drawn(folder, attnc_run, tmp_path):
    path = tmp_path / "out.png"
    code, _, err = attnc_run("bench", folder, *ARGUMENTS, "--plot", path)
    assert code == 0
    assert f"drawn in {path}" in err
    assert path.read_bytes().startswith(b"\x89PNG")
    assert Path(path).stat().st_size > 10_000
