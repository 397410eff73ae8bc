"""Diagnostics for programs, and the corrections that a program makes."""

from __future__ import annotations

import io
import json
from pathlib import Path
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attnc.cli.fixing import fix_source
from attnc.cli.formats import fix_title, github, lsp, range_of, uri
from attnc.compiler import check_text
from attnc.dsl import Diagnostic, Edit, Source, Span, SpecError
from attnc.dsl.fixes import apply_fixes

MODEL = "model m { vocab = 100, dim = 64, layers = 6, heads = 8, kv_heads = 4, ffn = swiglu(64), norm = rms(1e-6) }\n"
SPECS = Path(__file__).parent.parent / "specs"


@pytest.fixture
def spec(tmp_path):
    """Writes a spec below MODEL and returns its path."""

    def write(body, name="given.attn"):
        path = tmp_path / name
        path.write_text(MODEL + body, encoding="utf-8")
        return path

    return write


# --- LSP's shape


def test_json_has_the_shape_of_lsp(attnc_run, spec):
    path = spec("layers { 0..3: full, 3: window(4), else: full }\n")
    code, out, err = attnc_run("check", path, "--diagnostics", "json")
    assert (code, err) == (3, "")
    report = json.loads(out)
    assert report["schema_version"] == 1
    (file,) = report["files"]
    assert file["uri"] == path.as_uri()
    (found,) = file["diagnostics"]
    assert found["range"] == {"start": {"line": 1, "character": 21}, "end": {"line": 1, "character": 22}}
    assert (found["severity"], found["code"], found["source"]) == (1, "A200", "attnc")
    assert found["message"].startswith("layer 3 has two rules\nexpected: one rule for each layer\nhelp: ")
    (related,) = found["relatedInformation"]
    assert related["location"]["uri"] == path.as_uri()
    assert related["location"]["range"]["start"] == {"line": 1, "character": 9}
    assert related["message"] == "the first one is here"


def test_a_right_file_has_an_empty_list(attnc_run, spec):
    wrong, right = spec("layers { all: ful }", "wrong.attn"), spec("layers { all: full }", "right.attn")
    code, out, _ = attnc_run("check", wrong, right, "--diagnostics", "json")
    assert code == 3
    assert [(file["file"], len(file["diagnostics"])) for file in json.loads(out)["files"]] == [(str(wrong), 1), (str(right), 0)]
    assert attnc_run("check", right, "--diagnostics", "json")[0] == 0
    assert attnc_run("check", right, "--diagnostics", "github") == (0, "", "")


def test_the_standard_input_is_one_file(attnc_run, monkeypatch):
    text = (MODEL + "layers { all: ful }").encode()
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text)))
    (file,) = json.loads(attnc_run("check", "-", "--diagnostics", "json")[1])["files"]
    assert (file["file"], file["uri"], len(file["diagnostics"])) == ("<stdin>", "attnc:%3Cstdin%3E", 1)


def test_characters_are_utf_16_units_and_lines_are_lsps():
    text = "# \U0001f600\r\nab\rc\U0001f600d\nlast"
    source = Source("x", text)
    seen = {}
    for offset in range(len(text) + 1):
        start = range_of(Span(source, offset, offset)).start
        seen[offset] = (start.line, start.character)
    assert seen[text.index("\r\n")] == (0, 4)  # the face is two units
    assert seen[text.index("ab")] == (1, 0)
    assert seen[text.index("c\U0001f600")] == (2, 0)
    assert seen[text.index("d\n")] == (2, 3)
    assert seen[len(text)] == (3, 4)


@given(st.text(alphabet=st.sampled_from("a\n\r\U0001f600é"), max_size=12), st.data())
def test_positions_find_the_same_place_again(text, data):
    offset = data.draw(st.integers(0, len(text)))
    start = range_of(Span(Source("x", text), offset, offset)).start
    lines = text.replace("\r\n", "\n\0").replace("\r", "\n").split("\n")  # \0 stands for the second half of a line end
    before = sum(len(line) + 1 for line in lines[: start.line])
    line = lines[start.line].lstrip("\0")
    skipped = len(lines[start.line]) - len(line)
    units = line.encode("utf-16-le")[: 2 * start.character].decode("utf-16-le")
    between = text[offset - 1 : offset + 1] == "\r\n"  # no editor stands there
    assert between or before + skipped + len(units) == offset


def test_edits_are_data(attnc_run, spec):
    path = spec("layers { all: window(64 aligned = 8) }\n")
    (file,) = json.loads(attnc_run("check", path, "--diagnostics", "json")[1])["files"]
    (fix,) = file["diagnostics"][0]["data"]["fixes"]
    assert fix["title"] == "insert `,`"
    place = {"line": 1, "character": 23}
    assert fix["edits"] == [{"range": {"start": place, "end": place}, "newText": ","}]


def test_a_text_that_is_no_file_has_an_address_all_the_same(tmp_path):
    assert uri(str(tmp_path / "x y.attn")).startswith("attnc:")
    assert unquote(uri("--set model.layers")) == "attnc:--set model.layers"
    (tmp_path / "x y.attn").touch()
    assert uri(str(tmp_path / "x y.attn")) == (tmp_path / "x y.attn").as_uri()


def test_titles_say_what_an_edit_does():
    source = Source("x", "full() windw")
    assert fix_title(Edit(Span(source, 4, 6), "")) == "delete `()`"
    assert fix_title(Edit(Span(source, 4, 4), ",")) == "insert `,`"
    assert fix_title(Edit(Span(source, 7, 12), "window")) == "replace `windw` by `window`"
    assert len(fix_title(Edit(Span(source, 0, 0), "x\n" * 99))) < 60


# --- GitHub


def test_github_gets_one_line_a_mistake(attnc_run, spec):
    path = spec("layers { 0: ful, else: windw(4) }")
    code, out, err = attnc_run("check", path, "--diagnostics", "github")
    assert (code, err) == (3, "")
    place = f"::error file={path},line=2,endLine=2,col=13,endColumn=16,title=attnc A100::"
    first, second = out.splitlines()
    assert first == f"{place}there is no kind or mix `ful`%0Ahelp: did you mean `full`?"
    assert second.startswith("::error file=")


def test_github_lines_are_escaped():
    source = Source("a,b:c%.attn", "100%\nx")
    text = github(Diagnostic("A001", "50%, a: b\r\nnext", Span(source, 0, 6)))
    assert text == "::error file=a%2Cb%3Ac%25.attn,line=1,endLine=2,col=1,title=attnc A001::50%25, a: b%0D%0Anext"


@pytest.mark.parametrize("command", ["show", "build", "graft", "diff", "fmt", "init"])
def test_every_command_that_reads_a_spec_prints_its_mistakes_for_programs(attnc_run, spec, tmp_path, command):
    path = spec("layers { all: ful }")
    if command in ("graft", "fmt", "init"):
        path.write_text("model m { dim = }")
    arguments = {
        "build": [path, "-o", tmp_path / "out"],
        "graft": [path, "--onto", path, "-o", tmp_path / "new.attn"],
        "diff": [path, SPECS / "full.attn"],
        "init": [tmp_path / "new", "--from", path],
    }.get(command, [path])
    code, out, err = attnc_run(command, *arguments, "--diagnostics", "github")
    assert (code, err) == (3, "")
    assert out.startswith("::error file=")
    out = attnc_run(command, *arguments, "--diagnostics", "json")[1]
    assert json.loads(out)["files"][0]["diagnostics"]


def test_people_read_mistakes_on_stderr(attnc_run, spec):
    code, out, err = attnc_run("show", spec("layers { all: ful }"))
    assert (code, out) == (3, "")
    assert err.startswith("error[A100]")


# --- corrections

FIXED = {
    "misspelt kind": ("layers { all: windw(64) }", "layers { all: window(64) }"),
    "misspelt key": ("layers { all: window(64, algined = 8) }", "layers { all: window(64, aligned = 8) }"),
    "misspelt attribute": ("layers { all: full { rop = none } }", "layers { all: full { rope = none } }"),
    "misspelt word": ("layers { all: full { qk_norm = rsm } }", "layers { all: full { qk_norm = rms } }"),
    "misspelt call": ("layers { all: full { rope_scale = yarm(8) } }", "layers { all: full { rope_scale = yarn(8) } }"),
    "misspelt selector": ("layers { frist(2): full, else: window(8) }", "layers { first(2): full, else: window(8) }"),
    "else before a case in parentheses": (
        "layers { else: (full), 0: window(8) }",
        "layers { 0: window(8), else: (full) }",
    ),
    "parentheses around the last case": (
        "layers { else: full, 0: conv(3) + (full + (window(8))) }",
        "layers { 0: conv(3) + (full + (window(8))), else: full }",
    ),
    "else without a group": (
        "layers { all: heads { 0..3: full, else: (window(8)) } }",
        "layers { all: heads { 0..3: full,  } }",
    ),
    "misspelt item": ("layer { all: full }", "layers { all: full }"),
    "misspelt mix": ("mix local = window(8)\nlayers { all: locl }", "mix local = window(8)\nlayers { all: local }"),
    "empty call": ("layers { all: full() }", "layers { all: full }"),
    "equals for colon": ("layers { all = full }", "layers { all: full }"),
    "colon for equals": ("layers { all: full { rope: none } }", "layers { all: full { rope = none } }"),
    "one equals sign": (
        "layers { all: when { length = 9: full, else: sink(4) } }",
        "layers { all: when { length == 9: full, else: sink(4) } }",
    ),
    "no colon": ("layers { 0..3 full, else: sink(4) }", "layers { 0..3: full, else: sink(4) }"),
    "no comma": ("layers { 0: full else: sink(4) }", "layers { 0: full, else: sink(4) }"),
    "no comma between arguments": ("layers { all: window(8 aligned = 2) }", "layers { all: window(8, aligned = 2) }"),
    "no parenthesis": ("layers {\n  0: window(8\n  else: full\n}", "layers {\n  0: window(8)\n  else: full\n}"),
    "a parenthesis closed a line too late": (
        "layers {\n  0: (full\n  1: sink(4))\n  else: full\n}",
        "layers {\n  0: (full)\n  1: sink(4)\n  else: full\n}",
    ),
    "no brace": ("layers {\n  0: full { rope = none\n  else: full\n}", "layers {\n  0: full { rope = none }\n  else: full\n}"),
    "no last brace": ("layers {\n  all: full\n", "layers {\n  all: full\n}\n"),
    "a brace too many": ("layers { all: full }\n}", "layers { all: full }\n"),
    "capitals": ("layers { all: Full { causal = True } }", "layers { all: full { causal = true } }"),
    "a hyphen": ("mix near-by = full\nlayers { all: near_by }", "mix near_by = full\nlayers { all: near_by }"),
    "quotes": ('layers { all: "full" }', "layers { all: full }"),
    "a semicolon": ("layers { 0: full; else: sink(4) }", "layers { 0: full, else: sink(4) }"),
    "a dash": ("layers { 0\u20133: full, else: sink(4) }", "layers { 0..3: full, else: sink(4) }"),
    "a hyphen for a range": ("layers { 0-3: full, else: sink(4) }", "layers { 0..3: full, else: sink(4) }"),
    "a comment of another language": ("layers { all: full } // mine", "layers { all: full } # mine"),
    "a protected space": ("layers {\u00a0all: full }", "layers { all: full }"),
    "digits in groups": ("layers { all: full { rope = 1,000,000 } }", "layers { all: full { rope = 1000000 } }"),
    "underscores in a number": ("layers { all: full { rope = 500_000 } }", "layers { all: full { rope = 500000 } }"),
    "a range that goes down": ("layers { 3..1: full, else: sink(4) }", "layers { 1..3: full, else: sink(4) }"),
    "an argument without parentheses": ("layers { all: window 64 }", "layers { all: window(64) }"),
    "brackets for parentheses": ("layers { all: window[64] }", "layers { all: window(64) }"),
    "selectors without brackets": ("layers { 0, 5: full, else: sink(4) }", "layers { [0, 5]: full, else: sink(4) }"),
    "mix forgotten": ("near = window(8)\nlayers { all: near }", "mix near = window(8)\nlayers { all: near }"),
    "a number for a truth": ("layers { all: full { causal = 0 } }", "layers { all: full { causal = false } }"),
    "else first": ("layers { else: full, 0: window(8) }", "layers { 0: window(8), else: full }"),
    "all beside others": ("layers { 0: full, all: window(8) }", "layers { 0: full, else: window(8) }"),
    "a group with two owners": (
        "layers { all: heads { 0..2: full, 2..3: window(8) } }",
        "layers { all: heads { 0..2: full, 3: window(8) } }",
    ),
    "an else without groups": (
        "layers { all: heads { 0..3: full, else: window(8) } }",
        "layers { all: heads { 0..3: full,  } }",
    ),
    "a share that is not whole": (
        "layers { all: heads { 30%: full, else: window(8) } }",
        "layers { all: heads { 25%: full, else: window(8) } }",
    ),
    "several at once": (
        "layers {\n  0 = Full()\n  1: windw(64 algined = 8)\n  else: 'full'\n}",
        "layers {\n  0: full\n  1: window(64, aligned = 8)\n  else: full\n}",
    ),
}


@pytest.mark.parametrize("name", FIXED)
def test_fix_corrects_what_has_one_plain_correction(attnc_run, spec, name):
    wrong, right = FIXED[name]
    path = spec(wrong)
    code, out, err = attnc_run("check", path, "--fix")
    assert path.read_text("utf-8") == MODEL + right, err
    assert (code, err) == (0, "")
    *lines, last = out.splitlines()
    assert all(line.startswith(f"{path}:") for line in lines)
    assert last == f"{path}  {len(lines)} fixed, ok, 6 layers"
    check_text(MODEL + right)


def test_fix_leaves_what_nobody_can_know_and_says_how_much_is_left(attnc_run, spec):
    path = spec("layers { 0: full(), 1: stride(1), else: window }")
    code, out, err = attnc_run("check", path, "--fix")
    assert code == 3
    assert out.splitlines()[-1] == f"{path}  1 fixed, 2 left"
    assert err.count("error[") == 2
    assert path.read_text() == MODEL + "layers { 0: full, 1: stride(1), else: window }"


def test_fix_touches_no_file_that_has_nothing_to_fix(attnc_run, spec):
    path = spec("layers { all: stride(1) }")
    before = path.stat().st_mtime_ns, path.stat().st_ino
    assert attnc_run("check", path, "--fix")[:2] == (3, "")
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == before


def test_fix_keeps_comments_line_ends_the_mark_and_the_mode(attnc_run, tmp_path):
    path = tmp_path / "given.attn"
    path.write_bytes(b"\xef\xbb\xbf" + (MODEL + "layers { # all\n  all: full() # one\n}\n").replace("\n", "\r\n").encode())
    path.chmod(0o640)
    assert attnc_run("check", path, "--fix")[0] == 0
    wanted = (MODEL + "layers { # all\n  all: full # one\n}\n").replace("\n", "\r\n").encode()
    assert path.read_bytes() == b"\xef\xbb\xbf" + wanted
    assert path.stat().st_mode & 0o777 == 0o640


def test_fix_cannot_write_the_standard_input(attnc_run):
    code, out, err = attnc_run("check", "-", "--fix")
    assert (code, out) == (2, "")
    assert "save it in a file first" in err


def test_fixes_made_are_a_remark_beside_what_programs_read(attnc_run, spec):
    path = spec("layers { 0: full(), else: window }")
    _, out, err = attnc_run("check", path, "--fix", "--diagnostics", "json")
    assert [found["code"] for found in json.loads(out)["files"][0]["diagnostics"]] == ["A105"]
    assert err == f"{path}:2:17  A013  delete `()`\n"
    path = spec("layers { 0: full(), else: window(8) }")
    (file,) = json.loads(attnc_run("check", path, "--fix", "--json")[1])["files"]
    assert (file["ok"], [found["code"] for found in file["fixed"]]) == (True, ["A013"])


def test_of_two_fixes_that_overlap_the_first_is_made():
    source = Source("x", "abcdef")
    spans = [(Span(source, 0, 3), "X"), (Span(source, 2, 4), "Y"), (Span(source, 3, 3), "-"), (Span(source, 3, 3), "+")]
    found = [Diagnostic("A001", f"{text}", span, fix=Edit(span, text)) for span, text in spans]
    after, made = apply_fixes(source, reversed(found))
    assert [one.message for one in made] in (["X", "-"], ["X", "+"])
    assert after.text in ("X-def", "X+def")


def test_a_fix_of_another_text_is_not_made():
    other = Span(Source("--set model.dim", "abc"), 0, 3)
    source = Source("x", "abcdef")
    assert apply_fixes(source, [Diagnostic("A001", "m", other, fix=Edit(other, ""))]) == (source, ())


def wrong_texts():
    """Every wrong spec of the checker's tests."""
    from test_check_errors import WRONG

    return WRONG


@pytest.mark.parametrize("name", wrong_texts())
def test_every_fix_of_the_checker_mends_its_mistake_and_makes_no_new_one_of_its_sort(name):
    with pytest.raises(SpecError) as caught:
        check_text(wrong_texts()[name], name)
    for one in caught.value.diagnostics:
        if one.fix is None:
            continue
        after, (made,) = apply_fixes(one.span.source, [one])
        assert made is one
        try:
            check_text(after.text, name)
        except SpecError as error:
            left = [(d.code, d.message) for d in error.diagnostics]
            before = [(d.code, d.message) for d in caught.value.diagnostics]
            assert left.count((one.code, one.message)) < before.count((one.code, one.message)), one


def test_lsp_carries_expected_and_help_apart_from_the_message():
    source = Source("x", "abc")
    one = Diagnostic("A001", "m", Span(source, 0, 1), expected="e", help="h")
    assert (lsp(one).data.expected, lsp(one).data.help, lsp(one).message) == ("e", "h", "m\nexpected: e\nhelp: h")


# --- what is right, and not built yet

WAITING = "layers {\n  all: full { distribute = mesh }\t\n}\n"


def test_what_is_not_built_yet_is_said_in_one_line_and_is_no_mistake(attnc_run, spec):
    path = spec(WAITING)
    assert attnc_run("check", path) == (0, f"{path}  ok, 6 layers; not built yet: `distribute = mesh` of a mixer\n", "")


def test_programs_learn_what_is_not_built_yet_as_a_remark(attnc_run, spec):
    path = spec(WAITING)
    code, out, err = attnc_run("check", path, "--diagnostics", "json")
    (file,) = json.loads(out)["files"]
    assert (code, err, file["uri"]) == (0, "", path.as_uri())
    assert [(found["code"], found["severity"]) for found in file["diagnostics"]] == [("A101", 3)]
    whole = {"start": {"line": 2, "character": 2}, "end": {"line": 2, "character": 33}}
    assert file["diagnostics"][0]["range"] == whole
    code, out, err = attnc_run("check", path, "--diagnostics", "github")
    assert (code, err) == (0, "")
    assert out.startswith(f"::notice file={path},line=3,endLine=3,col=3,endColumn=34,")
    (file,) = json.loads(attnc_run("check", path, "--json")[1])["files"]
    assert (file["ok"], [found["code"] for found in file["unbuilt"]]) == (True, ["A101"])


def test_building_what_is_not_built_yet_is_an_error(attnc_run, spec, tmp_path):
    code, out, err = attnc_run("build", spec(WAITING), "-o", tmp_path / "out")
    assert (code, out) == (3, "")
    assert err.startswith("error[A101]: `distribute = mesh` of a mixer is not built yet")


# --- whatever the text

BITS = [
    *"(){}[],:=|+.%#\n 0;'\"",
    "full",
    "window(8)",
    "else:",
    "layers {",
    "mix a = ",
    "heads {",
    "{ rope = none }",
    "[8]",
    "()",
]


@given(st.sampled_from(sorted(SPECS.glob("*.attn"))), st.data())
def test_fixing_ends_and_every_mistake_left_can_be_printed(path, data):
    text = path.read_text("utf-8")
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(text)))
        cut = data.draw(st.integers(0, 8))
        text = text[:at] + data.draw(st.sampled_from(["", *BITS])) + text[at + cut :]
    result = fix_source("x.attn", Source("x.attn", text))
    assert (result.spec is None) == bool(result.mistakes)
    for one in result.mistakes:
        assert lsp(one).range.start.line <= text.count("\n") + 64
        assert "\n" not in github(one)
