"""How folders and plans take tuned blocks, and what the command line says of them."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
import torch
import triton
from tune_folder import H200, TEXT, small

import attnc
from attnc import cli
from attnc.codegen import kernels
from attnc.codegen.build import Options, build
from attnc.codegen.importing import import_folder
from attnc.codegen.triton.blocks import blocks
from attnc.codegen.tune import table as tables
from attnc.codegen.tune.table import BYTES, FolderTuning, Table, Tuned
from attnc.codegen.tune.tune import fresh, kernel_texts
from attnc.compiler import check_text
from attnc.compiler.data import from_json, to_json


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small(tmp_path_factory.mktemp("tune"))


def table_of(folder: Path, winners: dict[str, tuple[int, ...]], **changes) -> Table:
    rows = []
    for file, text in kernel_texts(folder).items():
        row = fresh(file, text, "bfloat16", H200)
        rows.append(replace(row, blocks=winners.get(file)))
    return replace(Table(device="NVIDIA H200", architecture="sm_90", triton="3.6.0", kernels=tuple(rows)), **changes)


def test_a_build_takes_the_blocks_of_its_own_kernels(folder: Path, tmp_path: Path) -> None:
    table = table_of(folder, {"softmax_prefill_0": (128, 128, 8, 2), "softmax_decode_0": (32, 2, 4, 3)})
    stranger = Tuned(
        kernel="softmax_prefill", sha256="1" * 64, dtype="float32", default=(1, 1, 1, 1), tries=(), blocks=(1, 1, 1, 1)
    )
    report = build(check_text(TEXT, "small.attn"), tmp_path / "out", Options(tuned=(table.with_row(stranger),)))
    data = json.loads((tmp_path / "out" / "tuning.json").read_text("utf-8"))
    (found,) = data["tables"]
    assert (found["device"], found["architecture"], found["triton"]) == ("NVIDIA H200", "sm_90", "3.6.0")
    rows = {row["kernel"]: (row["bytes"], tuple(row["blocks"])) for row in found["kernels"]}
    assert rows == {"softmax_prefill_0": (2, (128, 128, 8, 2)), "softmax_decode_0": (2, (32, 2, 4, 3))}
    plan = json.loads((tmp_path / "out" / "plan.json").read_text("utf-8"))
    assert plan["tuning"] == data
    assert "tuning.json" in plan["files"]
    assert to_json(report.built.tuning) == to_json(from_json(FolderTuning, json.dumps(data)))
    empty = build(check_text(TEXT, "small.attn"), tmp_path / "out", Options())
    assert empty.built.tuning.tables == ()


@pytest.mark.parametrize(("device", "taken"), [("NVIDIA H200", True), ("NVIDIA H100", False), (None, False)])
def test_kernels_take_them_on_that_gpu_alone(
    device: str | None, taken: bool, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = table_of(folder, {"softmax_prefill_0": (128, 128, 8, 2)}, triton=triton.__version__)
    build(check_text(TEXT, "small.attn"), tmp_path / "out", Options(tuned=(table,)))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: device is not None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: device)
    package = import_folder(tmp_path / "out").__name__
    index = import_module(f"{package}.kernels")
    (launch,) = index.FILES
    index.kernel(launch)
    module = import_module(f"{package}.kernels.softmax_prefill_0")
    default = blocks("softmax_prefill", 64)
    assert (module.BLOCKS["sm_90", 2] == (128, 128, 8, 2)) == taken
    assert module.BLOCKS["sm_90", 4] == default["sm_90", 4]
    assert module.BLOCKS["sm_80", 2] == default["sm_80", 2]
    assert {key[0] for key in module.variants("sm_90", 2)[0][1].items()} >= {"BLOCK_Q", "BLOCK_K"}


def test_another_version_of_triton_takes_none(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from attnc.runtime.tuning import blocks as read

    (tmp_path / "tuning.json").write_text(
        tables.folder_text(tables.for_folder([table_of(folder, {"softmax_decode_0": (32, 2, 4, 3)})], kernel_texts(folder)))
    )
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200")
    assert read(tmp_path / "tuning.json", "softmax_decode_0", "3.6.0") == {("sm_90", 2): (32, 2, 4, 3)}
    assert read(tmp_path / "tuning.json", "softmax_decode_0", "3.7.1") == {}
    assert read(tmp_path / "tuning.json", "softmax_prefill_0", "3.6.0") == {}
    assert read(tmp_path / "missing.json", "softmax_decode_0", "3.6.0") == {}


ROW = '{"kernel": "softmax_prefill_0", "bytes": 2, "blocks": [64, 64, 4, 3]}'
TABLE = '{"device": "x", "architecture": "sm_90", "triton": "3.6.0", "kernels": [ROW]}'


@pytest.mark.parametrize(
    "damaged",
    [
        "{",
        "[]",
        '{"tables": []}',
        '{"schema_version": 2, "tables": []}',
        '{"schema_version": 1}',
        '{"schema_version": 1, "tables": [{}]}',
        '{"schema_version": 1, "tables": [TABLE]}'.replace("TABLE", TABLE).replace("ROW", ROW.replace("64, 64", '"64", 64')),
        '{"schema_version": 1, "tables": [TABLE]}'.replace("TABLE", TABLE).replace("ROW", ROW.replace("64, 64", "64")),
        '{"schema_version": 1, "tables": [TABLE]}'.replace("TABLE", TABLE).replace(
            "ROW", ROW.replace("[64, 64, 4, 3]", "[0, 1, 1, 1]")
        ),
    ],
)
def test_a_damaged_tuning_json_is_an_error_and_never_half_used(damaged: str, folder: Path, tmp_path: Path) -> None:
    from attnc.runtime.tuning import TuningError, read

    path = tmp_path / "tuning.json"
    path.write_text(damaged)
    with pytest.raises(TuningError, match="A550") as caught:
        read(path)
    assert caught.value.code == "A550"
    assert str(path) in str(caught.value)
    path.write_text('{"schema_version": 1, "tables": [TABLE]}'.replace("TABLE", TABLE).replace("ROW", ROW))
    assert len(read(path)) == 1


def test_a_model_with_a_damaged_tuning_json_does_not_load_its_kernels(tmp_path: Path) -> None:
    build(check_text(TEXT, "small.attn"), tmp_path / "out", Options(seed=0))
    (tmp_path / "out" / "tuning.json").write_text("{")
    with pytest.raises(ValueError, match="A550"):
        attnc.load(tmp_path / "out", "cpu", use="triton")
    attnc.load(tmp_path / "out", "cpu", use="torch")


# --- the command


def command(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    code = cli.invoke([*map(str, words)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_without_a_gpu_it_says_that_nothing_can_be_measured(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.fail("tests/gpu has the other side", pytrace=False)
    code, out, err = command(capsys, "tune", "kernels", folder)
    assert (code, out) == (4, "")
    assert "cannot be measured without a GPU" in err
    assert "help: run it on a machine with a GPU" in err


def test_slips_are_answered(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(capsys, "tune", "budgets", folder)[0] == 2
    code, _, err = command(capsys, "tune", "kernels", tmp_path)
    assert (code, "not a built folder" in err) == (2, True)
    code, _, err = command(capsys, "build", tmp_path / "x.attn", "-o", tmp_path / "o", "--tuned", tmp_path / "none.json")
    assert code != 0


def test_a_build_takes_the_users_own_tables_or_the_one_it_is_given(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "small.attn").write_text(TEXT)
    table = table_of(folder, {"softmax_prefill_0": (128, 128, 8, 2)})
    own = tables.table_path(tmp_path / "data" / "tuned", "NVIDIA H200", "3.6.0")
    tables.update(own, table, lambda same: same)
    tables.update(tmp_path / "other.json", table, lambda same: replace(same, device="NVIDIA A100", architecture="sm_80"))
    monkeypatch.setenv("ATTNC_DATA_DIR", str(tmp_path / "data"))
    for words, device in (((), "NVIDIA H200"), (("--tuned", tmp_path / "other.json"), "NVIDIA A100")):
        code, _, err = command(capsys, "build", tmp_path / "small.attn", "-o", tmp_path / "out", *words)
        assert (code, err) == (0, "")
        (found,) = json.loads((tmp_path / "out" / "tuning.json").read_text("utf-8"))["tables"]
        assert found["device"] == device
    shown = command(capsys, "show", tmp_path / "small.attn", "--device", "h200")[1]
    assert "softmax_prefill_0, 2 bytes a number: 128 128 8 2 (tuned on NVIDIA H200, Triton 3.6.0)" in shown
    own.write_text("{")
    code, _, err = command(capsys, "build", tmp_path / "small.attn", "-o", tmp_path / "out")
    assert code == 4
    assert "error[A513]" in err


def test_a_plan_without_tuned_blocks_says_so(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = command(capsys, "show", folder, "--device", "h200")[1]
    assert "the table in each kernel's file" in shown
    assert "blocks of" not in command(capsys, "show", folder, "--device", "cpu")[1]


def test_sizes_and_digests_agree_with_those_of_the_kernels() -> None:
    assert all(getattr(torch, name).itemsize == size for name, size in BYTES.items())
    assert kernels.digest("a") != tables.identity("b")
