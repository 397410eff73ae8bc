"""Every code of every room has a page; what a text can do wrong is shown wrong and right, and both are true."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from attnc.cli import invoke
from attnc.cli.pages import markdown, pages
from attnc.compiler import check_text
from attnc.compiler import codes as checker
from attnc.compiler import examples as meaning
from attnc.compiler.causality import refuse
from attnc.dsl import SpecError
from attnc.dsl import codes as reader
from attnc.dsl import examples as syntax

EXAMPLES = {**syntax.EXAMPLES, **meaning.EXAMPLES}
UNSHOWN = {**syntax.UNSHOWN, **meaning.UNSHOWN}
OF_TEXTS = {**reader.CODES, **checker.CODES}


def test_every_code_that_a_text_can_raise_has_an_example_or_says_why_not():
    lacking = sorted(set(OF_TEXTS) - set(EXAMPLES) - set(UNSHOWN))
    assert not lacking, f"add a wrong and a right text for {', '.join(lacking)} to dsl/examples.py or compiler/examples.py"
    assert not set(EXAMPLES) & set(UNSHOWN)
    assert set(EXAMPLES) | set(UNSHOWN) == set(OF_TEXTS), "examples of codes that are no more"


def used(code, text):
    """Checks the text, and uses it as it has to be used for the code to be raised."""
    spec = check_text(syntax.whole(text))
    if code in meaning.USES:
        refuse(spec, meaning.USES[code])


@pytest.mark.parametrize("code", EXAMPLES)
def test_the_wrong_text_gives_its_code_and_no_other(code):
    with pytest.raises(SpecError) as caught:
        used(code, EXAMPLES[code].wrong)
    assert {found.code for found in caught.value.diagnostics} == {code}, caught.value


@pytest.mark.parametrize("code", EXAMPLES)
def test_an_example_fits_a_terminal_of_eighty_columns(code):
    lines = [line for text in EXAMPLES[code] for line in text.split("\n")]
    assert max(map(len, lines)) <= 76, "attnc explain indents examples by four"


@pytest.mark.parametrize("code", EXAMPLES)
def test_the_right_text_checks(code):
    used(code, EXAMPLES[code].right)


LONG = {
    "A002": "#" + "x" * 2**20,
    "A003": f"mix deep = {'(' * 33}full{')' * 33}\nlayers {{ all: full }}",
    "A004": f"mix {'m' * 65} = full\nlayers {{ all: full }}",
    "A007": "layers { all: full }\0",
    "A019": f"mix many = {'full | ' * 25_000}full\nlayers {{ all: full }}",
    "A099": "; " * 51 + "layers { all: full }",
    "A110": "mix m0 = full + full\n" + "".join(f"mix m{n} = m{n - 1} + m{n - 1}\n" for n in range(1, 9)) + "layers { all: m8 }",
}
"""Texts too long or too odd to be shown."""


@pytest.mark.parametrize("code", LONG)
def test_a_text_that_is_not_shown_gives_its_code_too(code):
    with pytest.raises(SpecError) as caught:
        check_text(syntax.whole(LONG[code]))
    assert code in {found.code for found in caught.value.diagnostics}
    assert code in UNSHOWN


def test_every_page_is_whole_sentences_under_a_title():
    for page in pages().values():
        assert page.title
        assert "\n" not in page.title + page.text
        assert not page.title.endswith(".")
        assert page.text.endswith((".", "?")), page


def test_the_document_is_what_the_codes_say():
    written = (Path(__file__).parent.parent / "docs" / "diagnostics.md").read_text("utf-8")
    assert written == markdown(), "docs/diagnostics.md is older than the codes: make docs"


@pytest.fixture
def explained(capsys):
    """Runs `attnc explain`: (exit code, stdout, stderr)."""

    def run(*arguments):
        code = invoke(["explain", *arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.mark.parametrize("code", pages())
def test_explain_prints_the_page_of_every_code(explained, code):
    status, out, err = explained(code)
    assert (status, err) == (0, "")
    assert out.startswith(f"{code}  {pages()[code].title}\n")
    assert all(len(line) <= 96 for line in out.split("\n"))


def test_a_page_reads_well_on_eighty_columns(explained, golden, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    for code in ("A013", "A205", "A401", "A541"):
        golden(f"{code}.txt", explained(code)[1])


def test_explain_alone_lists_every_code(explained):
    status, out, err = explained()
    assert (status, err) == (0, "")
    assert [line.split()[0] for line in out.split("\n") if line.startswith("  ")] == list(pages())


@pytest.mark.parametrize(("asked", "near"), [("A299", "A2"), ("a204x", "A204"), ("E0206", "A206"), ("205", "A205")])
def test_an_unknown_code_is_told_the_nearest(explained, asked, near):
    status, out, err = explained(asked)
    assert (status, out) == (2, "")
    assert f"there is no code `{asked}`" in err
    assert f"did you mean `attnc explain {near}" in err


def test_a_word_that_is_near_to_no_code_is_told_how_to_see_all(explained):
    assert "`attnc explain` lists all codes" in explained("window")[2]


@pytest.mark.parametrize("asked", ["a204", "[A204]"])
def test_a_code_may_be_written_as_it_was_seen(explained, asked):
    assert explained(asked) == explained("A204")


def test_pages_as_data_hold_whole_files(explained):
    (page,) = json.loads(explained("A204", "--json")[1])["pages"]
    check_text(page["example"]["right"])
    assert page["example"]["wrong"].startswith("model ")


def test_explain_imports_neither_torch_nor_networkx_nor_jinja2():
    code = (
        "import sys; from attnc.cli import invoke; invoke(['explain', 'A204']);"
        "print([m for m in ('torch', 'networkx', 'jinja2') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.endswith("[]\n")
