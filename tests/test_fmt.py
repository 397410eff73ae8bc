"""`attnc fmt`: meaning, comments and spellings stay; a text laid out is left alone."""

from __future__ import annotations

import io
import itertools
import re
import stat
import sys
from pathlib import Path

import pytest
from dsl_trees import files
from hypothesis import given
from hypothesis import strategies as st

from attnc import cli
from attnc.dsl import Source, SpecError, parse, read, tree
from attnc.dsl.format import print_file
from attnc.dsl.problems import Problems
from attnc.dsl.reformat import reformatted
from attnc.dsl.scan import scan

TOP = Path(__file__).parent.parent
SPECS = [*sorted((TOP / "specs").rglob("*.attn")), TOP / "docs" / "hybrid.attn"]
MESSY = """

model   m{dim=8,  vocab = 1_00 # v
 , layers= 3 # three


 heads = 2
# own
 }\x20\x20
mix a=window( # size
 1024 , aligned=64
)|sink(4)
  # why
  |full {rope=1e6, heads
   = 2}
mix b = (a|
 full) + a
layers{ 0 :a # one
 # between
 1..2:b #two
  10: a , 11: b
  [12, 13] : a

 3: b
 else: when { length<8 : a
  else:full{ rope
    = none}} } # end
recipe { freeze = [ # these
  all ] }
# last
""".replace("1_00", "1.0e2")


def fmt(text: str) -> str:
    return reformatted(Source("given", text))


def words_and_comments(text: str) -> tuple[list[str], list[str]]:
    source = Source("given", text)
    words = scan(source, Problems(source))
    gaps = [text[a.span.end : b.span.start] for a, b in itertools.pairwise(words)]
    gaps = [text[: words[0].span.start], *gaps, text[words[-1].span.end :]]
    comments = [comment.rstrip(" \t\r") for gap in gaps for comment in re.findall(r"#[^\n]*", gap)]
    return [word.text for word in words], comments


def check_laws(text: str) -> None:
    again = fmt(text)
    assert words_and_comments(again) == words_and_comments(text)
    assert parse(Source("again", again)) == parse(Source("given", text))
    assert fmt(again) == again
    assert not re.search(r"[ \t]\n|\n\n\n|\A\n", again)


@pytest.mark.parametrize("path", SPECS, ids=lambda path: path.stem)
def test_a_shipped_spec_is_laid_out_as_usual(path: Path) -> None:
    assert reformatted(read(path)) == read(path).text


@given(files())
def test_what_is_printed_from_a_tree_is_left_alone(file: tree.File) -> None:
    text = print_file(file)
    assert fmt(text) == text


BLANKS = st.sampled_from(["", "", "", " ", "\n", "\n\n", " \n  \n\n", "\t", "  ", "\r\n"])
COMMENTS = st.sampled_from(
    ["", "", "", "", "# c\n", "#\n", "\n# own\n", " #} ,:= \t \n", "# \u540d\n\n", "\n\n## a\n\n\n# b\n"]
)


@st.composite
def mutated(draw) -> str:
    """Words of a spec with other blanks and comments between them, as far as the language allows."""
    source = Source("printed", print_file(draw(files()))) if draw(st.booleans()) else read(draw(st.sampled_from(SPECS)))
    words = scan(source, Problems(source))
    text = draw(BLANKS) + draw(COMMENTS)
    for before, word in zip([None, *words], words, strict=False):
        between = "" if before is None else source.text[before.span.end : word.span.start]
        if draw(st.integers(0, 3)) == 0:
            added = draw(BLANKS) + draw(COMMENTS) + draw(BLANKS)
            between = added + between if draw(st.booleans()) else between + added
        text += between + word.text
    return text + draw(BLANKS) + draw(COMMENTS)


@given(mutated())
def test_blanks_and_comments_anywhere_change_no_word(text: str) -> None:
    check_laws(text)


def test_the_layout_of_a_messy_text(golden) -> None:
    check_laws(MESSY)
    golden("messy.attn", fmt(MESSY))


def test_spellings_of_numbers_and_needless_parentheses_stay() -> None:
    text = "model m { dim = 8, rope = 1000000.0 }\nmix a = ((full))\nlayers { 0..3: a, else: window(007) | sink(1e0) }\n"
    assert fmt(text) == text


def test_line_ends_and_the_missing_last_one_stay() -> None:
    text = "model m { dim = 8 }\nlayers {\n  all: full  # c\n}"
    assert fmt(text) == text
    assert fmt(text.replace("\n", "\r\n")) == text.replace("\n", "\r\n")
    assert fmt(text.replace("dim = ", "dim=") + "\n \n") == text + "\n"


@pytest.mark.parametrize("text", ["model", "", "model m { dim = 8 } layers { all: }"])
def test_a_text_with_mistakes_is_not_laid_out(text: str) -> None:
    with pytest.raises(SpecError):
        fmt(text)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "messy.attn").write_text(MESSY)
    (tmp_path / "good.attn").write_text(fmt(MESSY))
    (tmp_path / "wrong.attn").write_text("model   m { dim = }\n")
    return tmp_path


def test_files_are_replaced_and_wrong_ones_are_left_alone(folder: Path, capsys) -> None:
    (folder / "messy.attn").chmod(0o640)
    assert cli.invoke(["fmt", "wrong.attn", "messy.attn", "good.attn"]) == 3
    assert (folder / "messy.attn").read_text() == fmt(MESSY)
    assert stat.S_IMODE((folder / "messy.attn").stat().st_mode) == 0o640
    assert (folder / "wrong.attn").read_text() == "model   m { dim = }\n"
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "error[A014]" in captured.err
    assert "messy.attn  reformatted" in captured.err
    assert "good.attn" not in captured.err
    assert sorted(path.name for path in folder.iterdir()) == ["good.attn", "messy.attn", "wrong.attn"]


def test_check_and_diff_write_nothing_and_say_what_differs(folder: Path, capsys) -> None:
    assert cli.invoke(["fmt", "--check", "messy.attn", "good.attn"]) == 1
    assert capsys.readouterr().out == "messy.attn  would be reformatted\n"
    assert cli.invoke(["fmt", "--diff", "messy.attn"]) == 1
    shown = capsys.readouterr().out
    assert "-model   m{dim=8," in shown
    assert "+model m {" in shown
    assert cli.invoke(["fmt", "--check", "--diff", "good.attn"]) == 0
    assert (folder / "messy.attn").read_text() == MESSY


def test_a_link_stays_a_link_and_a_byte_order_mark_stays(folder: Path) -> None:
    (folder / "link.attn").symlink_to("real.attn")
    (folder / "real.attn").write_bytes(b"\xef\xbb\xbf" + MESSY.replace("\n", "\r\n").encode())
    assert cli.invoke(["fmt", "link.attn"]) == 0
    assert (folder / "link.attn").is_symlink()
    assert (folder / "real.attn").read_bytes() == b"\xef\xbb\xbf" + fmt(MESSY).replace("\n", "\r\n").encode()


def test_what_fails_while_writing_leaves_the_old_file(folder: Path, monkeypatch, capsys) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("attnc.cli.files.os.replace", full)
    assert cli.invoke(["fmt", "messy.attn"]) == 4
    assert (folder / "messy.attn").read_text() == MESSY
    assert len(list(folder.iterdir())) == 3


def test_the_standard_input_goes_to_the_standard_output_byte_for_byte(monkeypatch, capsysbinary) -> None:
    text = b"model m{dim=8} # \xff\r\nlayers {all:full}"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text)))
    assert cli.invoke(["fmt", "-"]) == 0
    assert capsysbinary.readouterr().out == b"model m { dim = 8 }  # \xff\r\nlayers { all: full }"
