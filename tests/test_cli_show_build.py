"""`attnc show` and `attnc build`: stages, plans, folders, and what they refuse."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import attnc
from attnc.compiler.providers import UNTRIED

SPECS = Path(__file__).parent.parent / "specs"
FULL = str(SPECS / "full.attn")
GEMMA = str(SPECS / "gemma3.attn")


@pytest.mark.parametrize(
    ("stage", "line"),
    [
        ("tree", "  model gemma3  "),
        ("spec", "  decode: decoding token by token gives what one prefill gives"),
        ("graph", "  mix.0-7 <- project  0..7: window(1024)"),
        ("plan", "plan for h100, 2 x 4096 tokens"),
        ("module", "class Model("),
    ],
)
def test_every_stage_is_shown_as_text_and_as_data(attnc_run, stage, line):
    arguments = ["show", GEMMA, "--stage", stage, "--device", "h100", "--length", "4096", "--batch", "2"]
    code, out, err = attnc_run(*arguments)
    assert (code, err) == (0, "")
    assert any(found.startswith(line) for found in out.split("\n"))
    code, out, err = attnc_run(*arguments, "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["schema_version"] == 1


def test_show_gives_every_layer_its_kernel_price_cache_and_refusals(attnc_run):
    _, out, _ = attnc_run("show", GEMMA, "--device", "h100", "--without", "gluon")
    assert "growing, 8192 B a token" in out
    assert "ring of 1039" in out
    assert "train    triton      1.8 ms, torch 1.8 ms (flash), reference 192 ms" in out
    _, on_cpu, _ = attnc_run("show", GEMMA, "--device", "cpu")
    assert "triton no: generated kernels need a GPU" in on_cpu
    _, out, _ = attnc_run("show", GEMMA, "--device", "h100", "--json")
    report = json.loads(out)
    assert sorted(layer for row in report["rows"] for layer in row["layers"]) == list(range(48))
    assert {(choice["layer"], choice["phase"]) for choice in report["plan"]["choices"]} == {
        (layer, phase) for layer in range(48) for phase in ("train", "prefill", "decode")
    }


def test_providers_that_a_machine_lacks_are_planned_with_and_others_without(attnc_run):
    asked = ("show", GEMMA, "--device", "h100")
    assert "; flex no: not installed; fa4 no: not installed" in attnc_run(*asked)[1]
    out = attnc_run(*asked, "--with", "flex,fa4", "--without", "torch")[1]
    assert "; torch no: left out by --without\n" in out
    assert all(f"{name} no: {reason}" in out for name, reason in UNTRIED.items())
    assert "train    gluon" in attnc_run(*asked, "--with", "gluon", "--without", "torch")[1]
    assert "train    fa4" in out
    for option, known in (("--with", "flex, fa4, fla, gluon"), ("--without", "triton, gluon, torch, flex, fa4, fla")):
        code, _, err = attnc_run(*asked, option, "cudnn")
        assert code == 2
        assert "there is no provider cudnn" in err
        assert f"{option} takes {known}" in err


@pytest.mark.parametrize(
    "arguments", [["--device", "h1000"], ["--stage", "dream"], ["--length", "0"], ["--length", "many"]], ids=" ".join
)
def test_show_refuses_what_there_is_not(attnc_run, arguments):
    code, out, err = attnc_run("show", FULL, *arguments)
    assert (code, out) == (2, "")
    assert "rror: " in err


def built(attnc_run, folder, *arguments):
    code, out, err = attnc_run("build", GEMMA, "-o", folder, *arguments)
    assert code == 0, err
    return out, err


def test_build_writes_a_folder_and_says_what_its_cache_takes(attnc_run, tmp_path):
    out, err = built(attnc_run, tmp_path / "out")
    assert "48 layers, 12,772,544,256 parameters" in out
    assert "tokens                 8k       128k         1M" in out
    assert "full attention" in out
    assert err == ""
    assert (tmp_path / "out" / "model.py").exists()


def test_build_gives_data(attnc_run, tmp_path):
    out, _ = built(attnc_run, tmp_path / "out", "--json")
    assert json.loads(out) == json.loads((tmp_path / "out" / "plan.json").read_text())


def test_a_built_folder_is_shown_by_its_own_plan(attnc_run, tmp_path):
    built(attnc_run, tmp_path / "out")
    code, out, err = attnc_run("show", tmp_path / "out")
    assert (code, err) == (0, "")
    assert out.startswith("gemma3: 48 layers")
    _, out, _ = attnc_run("show", tmp_path / "out", "--stage", "module")
    assert out == (tmp_path / "out" / "model.py").read_text()


@pytest.mark.parametrize("arguments", [["--reduce"], ["--reduce", "64"], ["--reduce=64"]], ids=" ".join)
def test_reduce_has_a_default_and_says_what_changed(attnc_run, tmp_path, arguments):
    out, err = built(attnc_run, tmp_path / "out", *arguments, "--init", "7")
    assert "gemma3, 2 layers" in out
    assert "layers: 48 -> 2" in err
    model = attnc.load(tmp_path / "out")
    assert len(model.model.layers) == 2


def test_set_replaces_one_setting_before_checking(attnc_run, tmp_path):
    out, _ = built(attnc_run, tmp_path / "out", "--set", "model.layers=6", "--set", "model.vocab=1000")
    assert "gemma3, 6 layers" in out


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--set", "model.layers"], 2, "has no value"),
        (["--set", "layers=3"], 2, "A111"),
        (["--set", "model.layers=0"], 3, "A104"),
        (["--target", "sm_80,sm_1"], 2, "no target sm_1"),
        (["--device", "toaster"], 2, "no device toaster"),
        (["--reduce", "3"], 2, "--reduce"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value),
)
def test_build_refuses_what_it_cannot_do_and_writes_nothing(attnc_run, tmp_path, arguments, code, message):
    found, out, err = attnc_run("build", GEMMA, "-o", tmp_path / "out", *arguments)
    assert (found, out) == (code, "")
    assert message in err
    assert list(tmp_path.iterdir()) == []


def test_build_leaves_other_people_s_files_alone(attnc_run, tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    code, out, err = attnc_run("build", GEMMA, "-o", tmp_path)
    assert (code, out) == (2, "")
    assert "`thesis.tex`" in err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    ("arguments", "expected"), [(["show", "--stage", "graph"], 3), (["show", "--mask", "0"], 2), (["build", "-o", "out"], 3)]
)
def test_what_is_not_built_is_shown_as_its_file_has_it(attnc_run, tmp_path, monkeypatch, arguments, expected):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / "a.attn"
    model = "model m { vocab = 100, dim = 64, layers = 2, heads = 4, ffn = none, norm = rms(1e-6), causal = false }"
    path.write_text(f"# first\n{model}\nlayers {{\n  all:  select( ssm(s4d), keep = 50%, by = gumbel )  # as it is\n}}\n")
    code, _, err = attnc_run(arguments[0], "in/a.attn", *arguments[1:])
    assert code == expected
    assert "in/a.attn:4:3" in err
    assert "4 |   all:  select( ssm(s4d), keep = 50%, by = gumbel )  # as it is" in err
