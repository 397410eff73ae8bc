"""`attnc calibrate` and the tables that it writes: what is measured, where it lies, who reads it, and damaged ones."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from dataclasses import replace

import pytest
import torch

import attnc
from attnc.bench import calibrate, tables
from attnc.bench.launches import launches, open_folder
from attnc.bench.machine import machine
from attnc.bench.peers import Provided
from attnc.bench.report import Result, Row, Timed
from attnc.bench.states import states_launches
from attnc.bench.tables_report import CalibrationReport
from attnc.cli.schema import schema_of
from attnc.compiler import device as devices
from attnc.compiler.data import from_json, to_data
from attnc.compiler.device import Device

CPU = torch.device("cpu")
SPEC = """model tiny { vocab = 64, dim = 64, layers = 1, heads = 4, norm = rms(1e-6), ffn = swiglu(64) }
layers { all: full }
"""


@pytest.fixture
def settings(tmp_path, monkeypatch):
    """An empty folder of settings; the folder in it where tables lie."""
    monkeypatch.setenv("ATTNC_CONFIG_DIR", str(tmp_path / "settings"))
    return tmp_path / "settings" / "devices"


@pytest.fixture
def small(monkeypatch):
    """A quick calibration."""
    monkeypatch.setitem(calibrate.LENGTHS, "cpu", {"forward": 48, "backward": 48, "decode": 64})


@pytest.fixture
def spec(tmp_path):
    path = tmp_path / "tiny.attn"
    path.write_text(SPEC)
    return path


def put(folder, name="cpu", text=None, **changes):
    """A table in the settings: the shipped one of the CPU with other numbers, or a text."""
    folder.mkdir(parents=True, exist_ok=True)
    table = Device(**{**vars(devices.shipped("cpu")), "name": name, **changes})
    path = folder / f"{name}.toml"
    path.write_text(text if text is not None else tables.toml(table, machine(CPU), "2026-11-23"), encoding="utf-8")
    return path


# --- measuring


def test_the_cpu_is_measured_and_its_table_is_the_one_that_counts(settings, small, spec, attnc_run):
    before = json.loads(attnc_run("show", spec, "--json")[1])["plan"]
    code, out, err = attnc_run("calibrate", "--seconds", "0.001", "--json")
    assert code == 0
    report = from_json(CalibrationReport, out)
    assert set(json.loads(out)) == set(schema_of("calibrate")["properties"])
    assert report.path == str(settings / "cpu.toml")
    assert (report.old, report.new) == (devices.shipped("cpu"), devices.device("cpu"))
    assert (report.lacks, report.failures) == ((), ())
    assert report.new.efficiency.keys() == {"torch"}
    assert all(share > 0 for share in report.new.efficiency["torch"].values())
    assert "torch: compared with float64" in err
    after = json.loads(attnc_run("show", spec, "--json")[1])["plan"]
    assert after["device"] == before["device"] == "cpu"
    assert after["choices"] != before["choices"]


def test_the_old_numbers_stand_beside_the_new_ones(settings, small, attnc_run):
    code, out, err = attnc_run("calibrate", "--seconds", "0.001")
    assert code == 0
    words = [line.split()[0] for line in out.splitlines()]
    assert words == ["cpu:", "shipped", *tables.UNITS, "torch", "torch", "torch"]
    assert "160 GFLOP/s" in out
    assert max(map(len, out.splitlines())) <= 80
    assert f"written to {settings / 'cpu.toml'}" in err


def timed(name, seconds):
    numbers = {"errors": {}, "allowed": {}, "share": 1.0, "rate": 1.0, "ratio": 1.0, "rounds": 5, "host": 0.0}
    return Result(name=name, ours=True, status="timed", timed=Timed(median=seconds, least=seconds, most=seconds, **numbers))


@pytest.mark.parametrize("phase", calibrate.PHASES)
@pytest.mark.parametrize("provider", ["triton", "torch", "flash", "flex", "fa4", "scan", "fla"])
def test_the_measured_share_makes_the_plans_price_the_measured_time(tmp_path, provider, phase):
    of_states = provider in calibrate.STATE_ROWS
    text = calibrate.STATES if of_states else calibrate.TEXT.format(**calibrate.SIZES["cuda"])
    attnc.build(attnc.check(text), tmp_path / "built")
    usual = states_launches(open_folder(tmp_path / "built")) if of_states else launches(open_folder(tmp_path / "built"))[0]
    assert of_states or [launch.words.count("full") for launch in usual] == [1, 0, 1, 0]
    peaks, asked, asked_for = replace(devices.shipped("h100"), efficiency={}), calibrate.Asked(CPU, 1.0, print, {}), 0
    for launch in usual:
        length, seconds = 16384, 3e-2
        table, runs = devices.shipped("h100"), calibrate.KERNELS.get(provider, provider)
        refused = isinstance(calibrate.price(runs, phase, launch, table, length, asked), str)
        if refused or phase not in table.efficiency[provider] or not calibrate._tells(provider, launch):
            continue
        asked_for += 1
        names = ("words", "sizes", "layers", "heads", "kv_heads", "key_width", "value_width")
        about = {name: getattr(launch, name) for name in names}
        about |= {"launch": launch.name, "length": length, "batch": 1, "planned": "triton", "flops": 1.0, "bytes": 1.0}
        rows = [(launch, Row(**about, phase=part, results=(timed(runs, seconds),))) for part in calibrate.PHASES[phase]]
        share = calibrate._share(provider, phase, launch, peaks, rows, asked)
        found = replace(peaks, efficiency={provider: {phase: share}})
        price = calibrate.price(runs, phase, launch, found, length, asked)
        assert price == pytest.approx(seconds * len(calibrate.PHASES[phase]), rel=1e-3)
    decode = phase == "decode"
    assert (
        asked_for
        == {
            "triton": 4,
            "torch": 1,
            "flash": int(not decode),
            "flex": 0 if decode else 4,
            "fa4": 2 - decode,
            "scan": 3,
            "fla": 3,
        }[provider]
    )


def test_a_wrong_provider_keeps_the_shipped_share_and_ends_with_1(settings, small, attnc_run, monkeypatch):
    prepare = Provided.prepare

    def off(self, work):
        prepared = prepare(self, work)
        return type(prepared)(lambda **given: prepared.run(**given) * 1.001, *list(vars(prepared).values())[1:])

    monkeypatch.setattr(Provided, "prepare", off)
    code, out, _ = attnc_run("calibrate", "--seconds", "0.001", "--json")
    assert code == 1
    report = from_json(CalibrationReport, out)
    assert report.new.efficiency == report.old.efficiency
    assert {lack.phase for lack in report.lacks} == {"train", "prefill", "decode"}
    assert all(lack.reason.startswith("wrong: the result is off by") for lack in report.lacks)
    assert len(report.failures) == 3


def test_a_provider_that_is_not_here_or_not_asked_is_named_with_the_reason(tmp_path):
    attnc.build(attnc.check(calibrate.TEXT.format(**calibrate.SIZES["cpu"])), tmp_path / "built")
    usual, _ = launches(open_folder(tmp_path / "built"))
    asked, table = calibrate.Asked(CPU, 1.0, print, {}), devices.shipped("h100")
    assert calibrate._lack("fa4", "train", usual[0], table, asked) == "flash-attn-4 is not installed"
    assert calibrate._lack("flex", "train", usual[0], table, asked) == "flex_attention's kernels need a GPU"
    assert calibrate._lack("torch", "train", usual[1], table, asked) == "another launch tells it"
    assert calibrate._lack("torch", "train", usual[0], table, asked) is None


# --- where tables lie


def test_a_table_goes_where_it_is_told_under_its_own_name(settings, small, spec, attnc_run, tmp_path):
    code, _, err = attnc_run("calibrate", "--seconds", "0.001", "-o", tmp_path / "quiet.toml")
    assert code == 0
    assert f"written to {tmp_path / 'quiet.toml'}" in err
    assert not settings.exists()
    assert tomllib.loads((tmp_path / "quiet.toml").read_text())["name"] == "quiet"
    assert attnc_run("show", spec, "--device", "quiet")[0] == 2
    settings.mkdir(parents=True)
    (tmp_path / "quiet.toml").rename(settings / "quiet.toml")
    code, out, _ = attnc_run("show", spec, "--device", "quiet")
    assert code == 0
    assert "plan for quiet" in out


@pytest.mark.parametrize("name", ["table", "Table.toml", "a b.toml", "nowhere/x.toml", ".toml"])
def test_a_path_that_names_no_table_is_refused_before_anything_is_measured(settings, attnc_run, tmp_path, name):
    code, out, err = attnc_run("calibrate", "-o", tmp_path / name)
    assert (code, out) == (2, "")
    assert "products" not in err


def test_a_table_is_written_whole_or_not_at_all(settings, monkeypatch):
    path = put(settings)
    before = path.read_text()

    def refuse(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError, match="No space"):
        tables.write(path, "other")
    assert path.read_text() == before
    assert os.listdir(settings) == ["cpu.toml"]


@pytest.mark.parametrize("name", devices.shipped_names())
def test_what_is_written_is_read_as_it_was(settings, name):
    table = Device(**{**vars(devices.shipped(name)), "title": 'A "GPU" \\ of ours'})
    tables.write(settings / f"{name}.toml", tables.toml(table, machine(CPU), "2026-11-23"))
    assert to_data(devices.device(name)) == to_data(table)


# --- who reads them


def test_a_measured_table_comes_before_the_shipped_one(settings):
    shipped = devices.device("cpu")
    assert shipped == devices.shipped("cpu")
    put(settings, bandwidth=1e9)
    assert devices.device("cpu").bandwidth == 1e9
    put(settings, bandwidth=2e9)
    assert devices.device("cpu").bandwidth == 2e9


def test_a_gpu_is_found_by_its_title_or_by_a_word_of_it(settings):
    assert devices.device_of("NVIDIA H200") == "h200"
    assert devices.device_of("NVIDIA A100-SXM4-80GB") == "a100"
    assert devices.device_of("NVIDIA GeForce RTX 4090") is None
    put(settings, "nvidia-geforce-rtx-4090", title="NVIDIA GeForce RTX 4090", architecture="sm_80")
    assert devices.device_of("NVIDIA GeForce RTX 4090") == "nvidia-geforce-rtx-4090"
    put(settings, "mine", title="NVIDIA H200", architecture="sm_90")
    assert devices.device_of("NVIDIA H200") == "mine"


def test_new_names_are_words_of_the_title(monkeypatch):
    gpu = torch.device("cuda")
    for title, name, basis in (
        ("NVIDIA H200", "h200", "h200"),
        ("NVIDIA GeForce RTX 4090", "nvidia-geforce-rtx-4090", "h100"),
    ):
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_, title=title: title)
        assert (calibrate.own_name(gpu), calibrate.basis(gpu).name) == (name, basis)


def test_a_provider_that_a_table_lacks_has_the_share_of_the_shipped_one(settings):
    efficiency = {"triton": {"train": 0.3, "prefill": 0.5, "decode": 0.9}}
    put(settings, "mine", architecture="sm_90", efficiency=efficiency)
    found = devices.device("mine").efficiency
    assert found["triton"] == efficiency["triton"]
    assert found["torch"] == devices.shipped("h100").efficiency["torch"]


def test_a_folder_planned_for_a_table_of_another_machine_is_shown(settings, spec, attnc_run, tmp_path):
    path = put(settings, "mine", architecture="sm_90", matrix_flops=7e14, bandwidth=4e12, exponentials=4e12)
    assert attnc_run("build", spec, "-o", tmp_path / "built", "--device", "mine")[0] == 0
    path.unlink()
    assert attnc_run("show", tmp_path / "built")[0] == 0
    plan = json.loads((tmp_path / "built" / "plan.json").read_text())["plans"]["cuda"]
    assert plan["device"] == "mine"


# --- damaged ones

GOOD = tables.toml(devices.shipped("cpu"), machine(CPU), "2026-11-23")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("bandwidth = = 3", "it cannot be read"),
        (GOOD.replace('name = "cpu"\n', ""), "name: field required"),
        (GOOD.replace("bandwidth = ", "bandwith = "), "bandwidth: field required"),
        (GOOD.replace("bandwidth = 20000000000.0", 'bandwidth = "fast"'), "bandwidth: input should be a valid number"),
        (GOOD.replace("bandwidth = 20000000000.0", "bandwidth = -1.0"), "bandwidth is not above 0"),
        (GOOD.replace("bandwidth = 20000000000.0", "bandwidth = nan"), "bandwidth is not above 0"),
        (GOOD.replace("decode = 0.5", "decode = 0.0"), "efficiency.torch.decode is not above 0"),
        (
            GOOD.replace("decode = ", "decoding = "),
            "efficiency.torch has the phase 'decoding'; phases are",
        ),
        (GOOD.replace('name = "cpu"', 'name = "tpu"'), "it is named 'tpu', and its file 'cpu'"),
        (GOOD.replace("schema_version = 1", "schema_version = 2"), "its schema_version is 2, and this attnc reads 1"),
        ("", "field required"),
    ],
)
def test_a_damaged_table_is_an_error_that_names_the_file(settings, spec, attnc_run, text, said):
    assert text != GOOD
    path = put(settings, text=text)
    code, out, err = attnc_run("show", spec)
    assert (code, out.count("plan for")) == (4, 0)
    assert "error[A519]: the device table `cpu.toml` cannot be used: " in err
    assert said in err
    assert str(path) in err
    assert "measure again with `attnc calibrate`" in err


def test_a_table_that_is_no_text_is_damaged(settings, spec, attnc_run):
    put(settings).write_bytes(b"\xff\xfe\x00")
    code, _, err = attnc_run("show", spec)
    assert code == 4
    assert "error[A519]" in err


def test_a_damaged_table_is_measured_again(settings, small, attnc_run):
    put(settings, text="[[[")
    assert attnc_run("calibrate", "--seconds", "0.001")[0] == 0
    assert devices.device("cpu").name == "cpu"


def test_checking_a_spec_looks_for_no_tables(spec):
    code = (
        f"import sys; from attnc.cli import invoke; invoke(['check', {str(spec)!r}]);"
        "print([m for m in ('torch', 'platformdirs', 'pydantic', 'attnc.compiler.device') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[-1] == "[]"
