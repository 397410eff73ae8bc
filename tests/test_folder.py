"""Output folders: other people's files stay, earlier builds are replaced whole, and a build that dies loses nothing."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import attnc
from attnc.codegen import folder as folders
from attnc.codegen.build import Options, build
from attnc.compiler import check_text
from attnc.dsl import SpecError

TEXT = """model small {{ vocab = 16, dim = 16, layers = 1, ffn = swiglu(16), norm = rms(1e-6), heads = 2, rope = 10000 }}
layers {{ all: window({n}) }}
"""


def spec(n: int = 4):
    return check_text(TEXT.format(n=n), "small.attn")


def content(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def refused(code: str, action) -> str:
    with pytest.raises(SpecError) as caught:
        action()
    (diagnostic,) = caught.value.diagnostics
    assert diagnostic.code == code
    assert diagnostic.help
    return diagnostic.message


def test_a_build_replaces_an_earlier_one_whole(tmp_path):
    build(spec(4), tmp_path / "out", Options(seed=0))
    first = content(tmp_path / "out")
    build(spec(5), tmp_path / "out", Options(seed=0))
    second = content(tmp_path / "out")
    assert first["model.py"] != second["model.py"]
    assert set(json.loads(second["plan.json"])["files"]) == set(second)
    assert [path.name for path in tmp_path.iterdir()] == ["out"], "nothing is left beside the folder"
    build(spec(4), tmp_path / "out", Options())
    assert "model.safetensors" not in content(tmp_path / "out"), "files of the earlier build are gone"


def test_a_folder_that_was_run_is_still_ours(tmp_path):
    build(spec(), tmp_path / "out", Options(seed=0))
    attnc.load(tmp_path / "out")
    (tmp_path / "out" / "__pycache__").mkdir(exist_ok=True)
    (tmp_path / "out" / "__pycache__" / "model.pyc").write_bytes(b"")
    build(spec(5), tmp_path / "out", Options(seed=0))


@pytest.mark.parametrize("before", ["nothing", "a build"])
def test_files_of_others_are_never_touched(tmp_path, before):
    out = tmp_path / "out"
    out.mkdir()
    if before == "a build":
        build(spec(), out, Options(seed=0))
    (out / "thesis.txt").write_text("ten years of work")
    kept = content(out)
    assert "`thesis.txt`" in refused("A510", lambda: build(spec(5), out, Options(seed=0)))
    assert content(out) == kept


def test_a_foreign_plan_does_not_make_files_ours(tmp_path):
    for plan in ("[1, 2", "[]", '{"files": 3}', '{"files": null}'):
        (tmp_path / "plan.json").write_text(plan)
        assert "`plan.json`" in refused("A510", lambda: build(spec(), tmp_path, Options(seed=0)))


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "out").write_text("mine")
    refused("A510", lambda: build(spec(), tmp_path / "out", Options(seed=0)))
    assert (tmp_path / "out").read_text() == "mine"


@pytest.mark.parametrize("step", ["mkdtemp", "write_text", "copyfile", "replace"])
@pytest.mark.parametrize("earlier", [False, True])
def test_a_full_disk_loses_nothing(tmp_path, monkeypatch, step, earlier):
    out = tmp_path / "out"
    if earlier:
        build(spec(4), out, Options(seed=0))
    kept = content(out)

    def full(*_arguments, **_options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    place = {"mkdtemp": folders.tempfile, "write_text": Path, "copyfile": shutil, "replace": folders.os}[step]
    monkeypatch.setattr(place, step, full)
    assert "no space left" in refused("A511", lambda: folders.write(out, {"model.py": "x = 1\n"}, {"weights": Path(__file__)}))
    monkeypatch.undo()
    assert content(out) == kept
    assert [path.name for path in tmp_path.iterdir()] == ["out"] * earlier


def test_a_swap_that_fails_halfway_puts_the_old_folder_back(tmp_path, monkeypatch):
    out = tmp_path / "out"
    build(spec(4), out, Options(seed=0))
    kept, calls, replace = content(out), [], os.replace

    def second_fails(source, target):
        calls.append(source)
        if len(calls) == 2:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        replace(source, target)

    monkeypatch.setattr(folders.os, "replace", second_fails)
    refused("A511", lambda: build(spec(5), out, Options(seed=0)))
    assert len(calls) == 3, "away, in (which fails), back"
    assert content(out) == kept


@pytest.mark.parametrize("step", ["_fill", "_swap"])
def test_a_killed_build_leaves_the_old_folder_whole(tmp_path, step):
    out = tmp_path / "out"
    build(spec(4), out, Options(seed=0))
    kept = content(out)
    script = f"""
import os, signal
from pathlib import Path
from attnc.codegen import folder
from attnc.codegen.build import Options, build
from attnc.compiler import check_text
folder.{step} = lambda *arguments: os.kill(os.getpid(), signal.SIGKILL)
build(check_text({TEXT.format(n=5)!r}, "small.attn"), Path({str(out)!r}), Options(seed=0))
"""
    run = subprocess.run([sys.executable, "-c", script], check=False, timeout=120)
    assert run.returncode == -signal.SIGKILL
    assert content(out) == kept
    build(spec(5), out, Options(seed=0))
    assert content(out) != kept, "what the killed build left beside does not stand in the way"


def test_weights_that_do_not_fit_are_named_before_anything_is_written(tmp_path):
    build(spec(), tmp_path / "made", Options(seed=0))
    weights, out = tmp_path / "weights", tmp_path / "out"
    weights.mkdir()
    whole = load_file(tmp_path / "made" / "model.safetensors")
    name = "model.layers.0.self_attn.q_proj.weight"
    broken = {
        "missing": {key: value for key, value in whole.items() if key != name},
        "no place": whole | {"model.layers.7.extra": torch.zeros(2)},
        "shape": whole | {name: torch.zeros(3, 16)},
        "sort": whole | {name: torch.zeros(16, 16, dtype=torch.int64)},
    }
    for tensors in broken.values():
        save_file(tensors, weights / "model.safetensors")
        message = refused("A512", lambda: build(spec(), out, Options(weights=weights)))
        assert name in message or "model.layers.7.extra" in message
        assert not out.exists()
    data = (tmp_path / "made" / "model.safetensors").read_bytes()
    (weights / "model.safetensors").write_bytes(data[: len(data) // 2])
    refused("A512", lambda: build(spec(), out, Options(weights=weights)))
    (weights / "model.safetensors").unlink()
    refused("A512", lambda: build(spec(), out, Options(weights=weights)))
    assert not out.exists()
    (weights / "model.safetensors").write_bytes(data)
    build(spec(), out, Options(weights=weights))
    assert (out / "model.safetensors").read_bytes() == data
