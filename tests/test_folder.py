"""Output folders: other people's files stay, earlier builds are replaced whole, and a build that dies loses nothing."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import signal
import sys
import traceback
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


@pytest.fixture(params=[True, False], ids=["exchange", "no exchange"])
def exchange(request, monkeypatch):
    """Whether the system can exchange the names of two folders."""
    if not request.param:
        monkeypatch.setattr(folders, "_exchanged", lambda _one, _other: False)
    return request.param


@pytest.mark.parametrize("step", ["mkdtemp", "write_text", "copyfile", "replace"])
@pytest.mark.parametrize("earlier", [False, True])
def test_a_full_disk_loses_nothing(tmp_path, monkeypatch, step, earlier):
    monkeypatch.setattr(folders, "_exchanged", lambda _one, _other: False)
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


@pytest.mark.parametrize("problem", [OSError(errno.EIO, os.strerror(errno.EIO)), KeyboardInterrupt()], ids=["disk", "user"])
def test_a_swap_that_fails_halfway_puts_the_old_folder_back(tmp_path, monkeypatch, problem):
    monkeypatch.setattr(folders, "_exchanged", lambda _one, _other: False)
    out = tmp_path / "out"
    build(spec(4), out, Options(seed=0))
    kept, calls, replace = content(out), [], os.replace

    def second_fails(source, target):
        calls.append(source)
        if len(calls) == 2:
            raise problem
        replace(source, target)

    monkeypatch.setattr(folders.os, "replace", second_fails)
    with pytest.raises((SpecError, KeyboardInterrupt)):
        build(spec(5), out, Options(seed=0))
    assert len(calls) == 3, "away, in (which fails), back"
    assert content(out) == kept


EVENTS = ("open", "os.", "shutil.", "tempfile.", "ctypes.")
"""What Python reports before it touches files, or calls the system on its own account."""


def killed(step: int, action) -> bool:
    """Runs `action` in a process of its own that kills itself before the given step of its work on files; whether it did."""
    child = os.fork()
    if child == 0:
        left = [step]

        def hook(event, _arguments):
            if event.startswith(EVENTS) and event != "os.kill":
                left[0] -= 1
                if left[0] < 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        try:
            action()
            os._exit(0)
        finally:
            traceback.print_exc()
            os._exit(3)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


def test_a_build_killed_at_any_step_leaves_the_old_folder_or_the_new_one(tmp_path, exchange):
    out, weights = tmp_path / "out", tmp_path / "weights"
    weights.write_bytes(b"old" * 1000)
    plan = json.dumps({"files": ["model.py", "plan.json", "kernels/a.py", "weights", "made"]})

    def write(word):
        texts = {"model.py": word, "kernels/a.py": word, "plan.json": plan}
        folders.write(out, texts, {"weights": weights}, {"made": lambda path: path.write_text(word)})

    write("new")
    new = content(out)
    write("old")
    old = content(out)
    steps = 0
    while killed(steps, lambda: write("new")):
        aside = [content(path / "folder") for path in tmp_path.glob(".out.replaced-*")]
        assert content(out) in ((old, new) if exchange or out.exists() else ({},))
        assert out.exists() or old in aside, "without an exchange the old folder may be aside, whole"
        for path in tmp_path.glob(".out.*"):
            shutil.rmtree(path)
        write("old")
        steps += 1
    assert content(out) == new
    assert steps > 15, "killed at every step"


def test_a_folder_is_never_away_where_names_can_be_exchanged(tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    one.mkdir()
    (one / "file").write_text("1")
    other.mkdir()
    assert folders._exchanged(one, other), "Linux can"
    assert (other / "file").read_text() == "1"
    assert not list(one.iterdir())
    with pytest.raises(FileNotFoundError):
        folders._exchanged(one, tmp_path / "nothing")


@pytest.mark.parametrize("limit", [0, 1000, 6000, 50000])
def test_a_disk_that_takes_no_more_loses_nothing(tmp_path, limit):
    """Files may have `limit` bytes, as the system sees to it: the texts fail first, then weights that are made."""
    out, large = tmp_path / "out", check_text(TEXT.format(n=5).replace("vocab = 16", "vocab = 2000"), "large.attn")
    build(spec(4), out, Options(seed=0))
    kept = content(out)
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        code = 4
        try:
            build(large, out, Options(seed=0))
        except SpecError as problem:
            code = 0 if problem.diagnostics[0].code == "A511" else 3
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert content(out) == kept
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_link_to_a_folder_stays_a_link(tmp_path):
    (tmp_path / "big disk").mkdir()
    (tmp_path / "out").symlink_to("big disk")
    for n in (4, 5):
        build(spec(n), tmp_path / "out", Options(seed=0))
    assert (tmp_path / "out").is_symlink()
    assert "model.py" in content(tmp_path / "big disk")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["big disk", "out"]


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
