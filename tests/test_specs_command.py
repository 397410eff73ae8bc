"""`attnc specs`, `init` and `schema`, and what the shell completes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from attnc.cli import invoke, shipped
from attnc.cli.init import model_name
from attnc.cli.schema import SCHEMAS, schema_of
from attnc.compiler import check_path, check_text
from attnc.compiler.unbuilt import unbuilt

SPECS = Path(__file__).parent.parent / "specs"


@pytest.fixture
def run(capsys, tmp_path, monkeypatch):
    """Runs a command in an empty folder: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        code = invoke([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


# --- specs


def test_specs_lists_every_shipped_spec_with_its_first_comment_line(run):
    code, out, err = run("specs")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert [line.split()[0] for line in lines] == sorted(path.stem for path in SPECS.glob("*.attn"))
    for line in lines:
        name, title = line.split(maxsplit=1)
        assert (SPECS / f"{name}.attn").read_text("utf-8").startswith(f"# {title}\n")


def test_specs_prints_one_as_it_is(run):
    code, out, err = run("specs", "gemma3")
    assert (code, err) == (0, "")
    assert out == (SPECS / "gemma3.attn").read_text("utf-8")
    assert run("specs", "gemma3.attn")[1] == out


@pytest.mark.parametrize(("asked", "advice"), [("gema3", "did you mean `gemma3`?"), ("../README", "lists all of them")])
def test_a_spec_that_is_not_shipped_is_told_the_nearest(run, asked, advice):
    code, out, err = run("specs", asked)
    assert (code, out) == (2, "")
    assert f"there is no shipped spec `{asked}`" in err
    assert advice in err


def test_specs_are_data_too(run):
    report = json.loads(run("specs", "--json")[1])
    assert report["schema_version"] == 1
    assert {one["name"]: one["text"] for one in report["specs"]} == {name: shipped.text(name) for name in shipped.names()}
    (one,) = json.loads(run("specs", "full", "--json")[1])["specs"]
    assert one["title"] == "The plain Transformer: every token sees every earlier token."


def test_a_text_without_a_comment_has_no_title():
    assert shipped.title("model m { }\n# later") == ""
    assert shipped.title("#   spaced \nmodel") == "spaced"


# --- init


def test_init_starts_a_spec_that_checks_builds_and_is_laid_out_as_usual(run, tmp_path):
    assert run("init", "first") == (0, "first.attn\n", "next: attnc check first.attn\n")
    path = tmp_path / "first.attn"
    spec = check_path(path)
    assert spec.model.name == "first"
    assert unbuilt(spec) == ()
    assert run("check", path)[0] == 0
    assert run("fmt", "--check", path) == (0, "", "")
    text = path.read_text("utf-8")
    assert all(len(line) <= 80 for line in text.split("\n"))
    assert text.count("#") >= 6


def test_the_commands_that_the_start_names_are_commands(run):
    run("init", "first")
    lines = Path("first.attn").read_text("utf-8").splitlines()
    named = [line[1:].strip().split("  ")[0].split()[1:] for line in lines if line.startswith("#   attnc ")]
    assert [arguments[0] for arguments in named] == ["check", "show", "show", "build"]
    for arguments in named[:3]:
        assert run(*arguments)[0] == 0, arguments
    assert named[3] == ["build", "first.attn", "-o", "out", "--init", "0"]  # writes a gigabyte, so it is only read


@pytest.mark.parametrize("start", [None, "gemma3", "gemma3.attn"])
def test_init_overwrites_nothing(run, tmp_path, start):
    path = tmp_path / "mine.attn"
    path.write_text("mine")
    code, out, err = run("init", "mine", *(["--from", start] if start else []))
    assert (code, out) == (2, "")
    assert "mine.attn is there already" in err
    assert path.read_text() == "mine"


def test_init_begins_with_a_shipped_spec_under_another_name(run, tmp_path):
    assert run("init", "mine.attn", "--from", "gemma3")[0] == 0
    text = (tmp_path / "mine.attn").read_text("utf-8")
    assert text == shipped.text("gemma3").replace("model gemma3 {", "model mine {")
    assert check_text(text).model.name == "mine"


def test_init_begins_with_a_file(run, tmp_path):
    run("init", "one")
    assert run("init", "two", "--from", "one.attn")[0] == 0
    assert check_path(tmp_path / "two.attn").model.name == "two"
    (tmp_path / "broken.attn").write_text("model m {")
    assert run("init", "three", "--from", "./broken.attn")[0] == 3
    assert not (tmp_path / "three.attn").exists()


@pytest.mark.parametrize("name", shipped.names())
def test_every_shipped_spec_can_be_begun_with(run, tmp_path, name):
    assert run("init", "mine", "--from", name)[0] == 0
    assert check_path(tmp_path / "mine.attn").model.name == "mine"


def test_init_needs_a_folder_and_a_spec_that_there_is(run):
    assert "there is no folder nowhere" in run("init", "nowhere/mine")[2]
    code, _, err = run("init", "mine", "--from", "gema3")
    assert code == 2
    assert "did you mean `gemma3`?" in err


@pytest.mark.parametrize(
    ("stem", "name"),
    [
        ("first", "first"),
        ("My Model-2", "my_model_2"),
        ("layers", "my_layers"),
        ("7b", "my_7b"),
        ("名", "my_model"),
        ("x" * 80, "x" * 48),
    ],
)
def test_a_file_name_becomes_a_name_of_the_language(stem, name):
    assert model_name(stem) == name


# --- schema


@pytest.mark.parametrize("name", SCHEMAS)
def test_every_schema_is_an_object_of_the_class_that_it_names(run, name):
    code, out, err = run("schema", name)
    assert (code, err) == (0, "")
    schema = json.loads(out)
    assert schema["type"] == "object"
    assert schema["title"] == SCHEMAS[name][1]


def test_schema_alone_lists_all_names(run):
    code, out, err = run("schema")
    assert (code, err) == (0, "")
    assert [line.split()[0] for line in out.splitlines()] == list(SCHEMAS)
    assert "did you mean `plan`?" in run("schema", "plann")[2]
    assert run("schema", "plann")[0] == 2


def test_reports_carry_a_version():
    """gpu is one row of a list; all others are whole objects."""
    for name in SCHEMAS:
        assert ("schema_version" in schema_of(name)["properties"]) == (name != "gpu"), name


REPORTS = {
    "check": ["check", "spec.attn", "--json"],
    "diagnostics": ["check", "spec.attn", "--diagnostics", "json"],
    "table": ["show", "spec.attn", "--stage", "spec", "--json"],
    "text": ["show", "spec.attn", "--stage", "tree", "--json"],
    "mask": ["show", "spec.attn", "--mask", "0", "--json"],
    "diff": ["diff", "spec.attn", "spec.attn", "--json"],
    "specs": ["specs", "--json"],
    "explain": ["explain", "--json"],
}


@pytest.mark.parametrize("name", REPORTS)
def test_what_is_printed_has_the_keys_of_its_schema(run, name):
    run("init", "spec")
    report = json.loads(run(*REPORTS[name])[1])
    schema = schema_of(name)
    assert set(report) == set(schema["properties"])
    module, owner, _ = SCHEMAS[name]
    getattr(import_module(module), owner)  # is what it is called


# --- completion


def completed(line):
    """What bash is told for a line that ends where the cursor stands."""
    words = line.split(" ")
    env = os.environ | {"_ATTNC_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
    run = subprocess.run(
        [sys.executable, "-c", "from attnc.cli import main; main()"], env=env, capture_output=True, text=True, check=False
    )
    return run.stdout.split()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("attnc ex", ["explain"]),
        ("attnc specs gem", ["gemma3"]),
        ("attnc init mine --from titans-m", ["titans-mac", "titans-mag", "titans-mal"]),
        ("attnc explain A20", [f"A20{digit}" for digit in range(10)]),
        ("attnc schema dia", ["diagnostics"]),
        ("attnc check --diagnostics g", ["github"]),
    ],
)
def test_the_shell_completes_commands_specs_codes_and_schemas(line, words):
    assert completed(line) == words


@pytest.mark.parametrize(
    "command", [["specs"], ["specs", "full"], ["init", "x"], ["schema", "plan"], ["schema", "graph"], ["--help"]]
)
def test_light_commands_import_neither_torch_nor_networkx_nor_jinja2(command, tmp_path):
    code = (
        f"import sys; from attnc.cli import invoke; invoke({command!r});"
        "print([m for m in ('torch', 'networkx', 'jinja2') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert run.stdout.endswith("[]\n")
