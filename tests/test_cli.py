"""The command line: exit codes, streams, colours, and what a user's slip comes to."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import attnc
from attnc import compiler
from attnc.cli import output
from attnc.cli.exits import exit_code

SPECS = Path(__file__).parent.parent / "specs"
FULL = str(SPECS / "full.attn")
WRONG = """model small { vocab = 100, dim = 64, layers = 2, heads = 4, norm = rms(1e-6), ffn = swiglu(128) }
layers { 0: fulll, 1: window(0) }
"""
HEAVY = ("torch", "triton", "networkx", "jinja2")


@pytest.fixture
def wrong(tmp_path):
    path = tmp_path / "wrong.attn"
    path.write_text(WRONG)
    return path


def process(*arguments, **options):
    command = [sys.executable, "-m", "attnc", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


def terminal(*arguments, **environment):
    """What a command prints on a terminal of 80 columns, stdout and stderr together."""
    ours, theirs = pty.openpty()
    env = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
    env |= {"TERM": "xterm-256color", "COLUMNS": "80"} | environment
    child = subprocess.Popen([sys.executable, "-m", "attnc", *map(str, arguments)], stdout=theirs, stderr=theirs, env=env)
    os.close(theirs)
    text = b""
    while True:
        try:
            read = os.read(ours, 65536)
        except OSError:  # Linux's way to say that the other side is closed
            break
        if not read:
            break
        text += read
    os.close(ours)
    child.wait()
    return text.decode()


def test_version_is_one_line_with_all_versions(attnc_run):
    code, out, err = attnc_run("--version")
    assert (code, err) == (0, "")
    assert out.startswith(f"attnc {attnc.__version__} (python 3.")
    assert ", torch 2." in out
    assert ", triton 3." in out
    assert out.count("\n") == 1


def test_help_is_a_result_and_no_command_is_a_usage_error(attnc_run):
    code, out, err = attnc_run("--help")
    assert (code, err) == (0, "")
    assert "Exit codes: 0 ok" in out
    assert attnc_run() == (2, "", out)


@pytest.mark.parametrize("arguments", [["nope"], ["check"], ["check", FULL, "--jsn"], ["doctor", "extra"]])
def test_a_slip_on_the_command_line_is_a_usage_error(attnc_run, arguments):
    code, out, err = attnc_run(*arguments)
    assert (code, out) == (2, "")
    assert "Usage: attnc" in err
    assert "Error: " in err


def test_a_right_spec_is_said_to_be_right(attnc_run):
    code, out, err = attnc_run("check", FULL)
    assert (code, err) == (0, "")
    assert out.startswith(f"{FULL}  ok, ")


def test_all_mistakes_of_all_files_are_reported_and_the_right_ones_too(attnc_run, wrong):
    code, out, err = attnc_run("check", wrong, FULL)
    assert code == 3
    assert out.endswith("layers\n")
    assert out.count("\n") == 1
    assert err.count("error[A") == 2
    assert "did you mean `full`?" in err


def test_json_is_one_object_with_places_and_a_version(attnc_run, wrong):
    code, out, err = attnc_run("check", wrong, FULL, "--json")
    assert (code, err) == (3, "")
    report = json.loads(out)
    assert report["schema_version"] == 1
    bad, good = report["files"]
    assert (good["ok"], good["diagnostics"]) == (True, [])
    assert not bad["ok"]
    assert [found["place"]["line"] for found in bad["diagnostics"]] == [2, 2]
    place = bad["diagnostics"][0]["place"]
    assert WRONG.split("\n")[1][place["column"] - 1 : place["end_column"] - 1] == "fulll"


def test_a_spec_may_come_from_the_standard_input():
    run = process("check", "-", input=Path(FULL).read_text())
    assert (run.returncode, run.stderr) == (0, "")
    assert process("check", "-", input=WRONG).returncode == 3


@pytest.mark.parametrize(
    ("content", "code", "message"),
    [
        (None, 2, "does not exist"),
        ("folder", 2, "is a folder"),
        (b"", 3, "empty"),
        (b"\x7fELF\0\0", 3, "NUL"),
        (b"model \xff", 3, "UTF-8"),
        (b"# " + b"x" * (10 << 20), 3, "1 MiB"),
        (b"(" * 10_000, 3, "nested"),
    ],
    ids=["missing", "folder", "empty", "binary", "latin", "large", "nested"],
)
def test_a_file_that_is_no_spec_is_one_clear_error(attnc_run, tmp_path, content, code, message):
    path = tmp_path / "input.attn"
    if content == "folder":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    found, out, err = attnc_run("check", path)
    assert (found, out) == (code, "")
    assert message in err
    assert "error[A" in err


def test_only_a_diagnostic_about_a_spec_says_that_the_spec_is_wrong():
    assert exit_code(["A501"]) == 2
    assert exit_code(["A511"]) == 4
    assert exit_code(["A501", "A100"]) == 3


def test_a_mistake_of_ours_is_admitted_and_its_traceback_kept(attnc_run, monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(compiler, "check_source", lambda source: 1 / 0)
    code, out, err = attnc_run("check", FULL)
    (kept,) = tmp_path.iterdir()
    assert (code, out) == (5, "")
    assert str(kept) in err
    assert "Traceback" not in err
    assert "ZeroDivisionError" in kept.read_text()


def test_a_full_disk_and_a_missing_package_are_the_environments_fault(attnc_run, monkeypatch):
    def fail(error):
        def check(file):
            raise error

        return check

    monkeypatch.setattr(compiler, "check_source", fail(OSError(28, "No space left on device", "/out/model.py")))
    code, _, err = attnc_run("check", FULL)
    assert code == 4
    assert "No space left on device: /out/model.py" in err
    monkeypatch.setattr(compiler, "check_source", fail(ModuleNotFoundError("No module named 'gguf'", name="gguf")))
    code, _, err = attnc_run("check", FULL)
    assert code == 4
    assert "pip install 'attnc[hf]'" in err


def test_an_interrupt_is_130(attnc_run, monkeypatch):
    def interrupt(file):
        raise KeyboardInterrupt

    monkeypatch.setattr(compiler, "check_source", interrupt)
    assert attnc_run("check", FULL) == (130, "", "")


def test_a_closed_pipe_ends_the_command_quietly():
    read, write = os.pipe()
    os.close(read)
    run = subprocess.run([sys.executable, "-m", "attnc", "--help"], stdout=write, stderr=subprocess.PIPE, check=False)
    os.close(write)
    assert run.stderr == b""
    assert run.returncode == -signal.SIGPIPE


def test_a_terminal_gets_colours_unless_no_color_is_set(wrong):
    assert "\x1b[" in terminal("check", wrong)
    assert "\x1b" not in terminal("check", wrong, NO_COLOR="1")
    assert "\x1b" not in process("check", wrong).stderr


LIGHT = [
    ["--help"],
    ["--version"],
    ["check", "--help"],
    ["check", FULL],
    ["show", "--stage", "tree", FULL],
    ["show", "--stage", "spec", FULL],
]


@pytest.mark.parametrize("arguments", LIGHT, ids=" ".join)
def test_a_light_command_imports_nothing_heavy(arguments):
    code = f"import sys; from attnc.cli import invoke; invoke({arguments!r})"
    code += f"; print(set(sys.modules) & set({HEAVY!r}), file=sys.stderr)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.stderr == "set()\n"


def test_check_does_little_work():
    # Calls are counted because seconds depend on what else the machine does: 0.8 million are 0.35 s on an idle one.
    code = f"""
import cProfile, pstats, sys
profile = cProfile.Profile()
profile.enable()
from attnc.cli import invoke
invoke(["check", {FULL!r}])
profile.disable()
print(pstats.Stats(profile).total_calls, file=sys.stderr)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 100_000 < int(run.stderr) < 1_000_000


def test_graft_writes_a_spec_that_checks_and_overwrites_nothing(attnc_run, tmp_path):
    new = tmp_path / "new.attn"
    arguments = ["graft", SPECS / "streaming-llm.attn", "--onto", SPECS / "smollm3.attn", "-o", new]
    code, out, err = attnc_run(*arguments)
    assert (code, out) == (0, f"{new}\n")
    assert "attnc build" in err
    assert attnc_run("check", new)[0] == 0
    assert attnc_run(*arguments)[0] == 0  # the same text again
    new.write_text("mine")
    code, _, err = attnc_run(*arguments)
    assert code == 2
    assert "there already" in err
    assert new.read_text() == "mine"


def test_run_names_a_folder_that_is_none_and_one_that_cannot_speak(attnc_run, tmp_path):
    code, out, err = attnc_run("run", tmp_path, "--prompt", "x")
    assert (code, out) == (2, "")
    assert "is not a built folder" in err
    assert "there is no folder" in attnc_run("run", tmp_path / "nowhere", "--prompt", "x")[2]
    assert attnc_run("build", SPECS / "gemma3.attn", "-o", tmp_path / "out", "--reduce", "--init", "0")[0] == 0
    code, out, err = attnc_run("run", tmp_path / "out", "--prompt", "x")
    assert (code, out) == (2, "")
    assert "tokenizer.json" in err


def test_import_refuses_what_is_no_checkpoint(attnc_run, tmp_path):
    code, out, err = attnc_run("import", tmp_path / "nothing", "-o", tmp_path / "new.attn")
    assert (code, out) == (2, "")
    assert "A520" in err


def test_doctor_reports_as_text_and_as_data(attnc_run):
    code, out, err = attnc_run("doctor")
    assert (code, err) == (0, "")
    assert f"attnc         {attnc.__version__}" in out
    code, out, _ = attnc_run("doctor", "--json")
    report = json.loads(out)
    assert code == 0
    assert report["schema_version"] == 1
    assert report["packages"]["torch"].startswith("2.")


def test_doctor_names_what_is_missing_and_what_is_too_old(attnc_run, monkeypatch):
    from attnc.cli import environment

    versions = {"torch": "2.10.1", "triton": None}
    monkeypatch.setattr(environment, "installed", lambda name: versions.get(name, "9.9.9"))
    code, _, err = attnc_run("doctor")
    assert code == 4
    assert "torch 2.10.1 is not supported" in err
    assert "triton is not installed" in err
    assert err.count("help: ") == 2


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1024, "1 KiB"),
        (1536, "1.5 KiB"),
        (999 << 10, "999 KiB"),
        (1023 << 10, "0.999 MiB"),
        (3 << 40, "3 TiB"),
    ],
)
def test_bytes_have_three_digits_and_a_binary_unit(count, text):
    assert output.bytes_text(count) == text


def test_an_empty_name_is_no_folder(attnc_run):
    code, _, err = attnc_run("check", "")
    assert code == 2
    assert "A501" in err
