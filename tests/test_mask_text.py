"""`attnc show --mask`: pictures of every static key set, union and overlap rule, as they follow from the language's rules.

How they were checked by hand: the expected rows below were not printed by the program. Each row was written down from the
sentence of docs/language.md that stands above it, query by query: for query i, go through the keys 0..i and ask the sentence.
They are drawn at 10 to 14 tokens so that a reader can do the same. The golden files at the end hold whole outputs with rulers;
their rows were compared with these.
"""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from attnc.cli import invoke
from attnc.compiler import check_text
from attnc.compiler.mixers import MIXERS
from attnc.compiler.picture import picture_text, pictures
from attnc.dsl import SpecError

MODEL = "model m { vocab = 100, dim = 64, layers = 2, heads = 8, kv_heads = 4, ffn = swiglu(64), norm = rms(1e-6) }\n"

DRAWN = {
    # "every visible key: all earlier ones and the own; with `causal = false` all"
    "full": "#..... ##.... ###... ####.. #####. ######",
    "full { causal = false }": "#### #### #### ####",
    # "the last n keys, the own one included"
    "window(3)": "#....... ##...... ###..... .###.... ..###... ...###.. ....###. .....###",
    "window(1)": "#.... .#... ..#.. ...#. ....#",
    # both directions: fewer than n away
    "window(3) { causal = false }": "###..... ####.... #####... .#####.. ..#####. ...##### ....#### .....###",
    # "the own block of g and the n/g - 1 before it": blocks 0..2, 3..5, 6..8; two of them
    "window(6, aligned = 3)": "#........ ##....... ###...... ####..... #####.... ######... ...####.. ...#####. ...######",
    # "n tokens or share": 50% of 8 is 4
    "window(50%)": "#....... ##...... ###..... ####.... .####... ..####.. ...####. ....####",
    # "the first n keys", as far as they are earlier
    "sink(2)": "#..... ##.... ##.... ##.... ##.... ##....",
    "sink(2) { causal = false }": "##.. ##.. ##.. ##..",
    # n = 0 is in bounds: no key at all
    "sink(0)": "... ... ...",
    # "the own block of n"
    "block_local(3)": "#....... ##...... ###..... ...#.... ...##... ...###.. ......#. ......##",
    # "blocks may begin a share of n later": blocks ..1, 2..5, 6..9
    "block_local(4, shift = 50%)": "#......... ##........ ..#....... ..##...... ..###..... ..####.... ......#... ......##.. "
    "......###. ......####",
    # "every n-th key back from the own"
    "stride(3)": "#....... .#...... ..#..... #..#.... .#..#... ..#..#.. #..#..#. .#..#..#",
    # "blocks of n at distance 0, 1, 2, 4, 8...": of blocks of 2, distances 3 and 5 are missing
    "power_of_two(2)": "#............. ##............ ###........... ####.......... #####......... ######........ "
    "..#####....... ..######...... ##..#####..... ##..######.... ..##..#####... ..##..######.. ....##..#####. ....##..######",
    # "union of key sets under ONE softmax; a key in both counts once": near the start sink and window overlap
    "sink(2) | window(3)": "#...... ##..... ###.... ####... #####.. ##.###. ##..###",
    # one key set inside the other: the union is the larger one
    "window(2) | window(4)": "#..... ##.... ###... ####.. .####. ..####",
    # a block reaches back to its start, a window over it
    "block_local(4) | window(2)": "#....... ##...... ###..... ####.... ...##... ....##.. ....###. ....####",
    # far and near
    "stride(4) | window(2)": "#........ ##....... .##...... ..##..... #..##.... .#..##... ..#..##.. ...#..##. #...#..##",
    "power_of_two(2) | sink(1)": "#......... ##........ ###....... ####...... #####..... ######.... #.#####... #.######.. "
    "##..#####. ##..######",
    # three at once
    "sink(1) | stride(5) | window(2)": "#....... ##...... ###..... #.##.... #..##... #...##.. ##...##. #.#...##",
}
"""An expression, and what each query sees."""


def layer(expression):
    return check_text(f"{MODEL}layers {{ all: {expression} }}\n")


@pytest.mark.parametrize("expression", DRAWN)
def test_a_mask_is_what_the_sentence_of_the_language_says(expression):
    rows = tuple(DRAWN[expression].split())
    assert all(len(row) == len(rows) for row in rows), "a picture is square"
    (picture,) = pictures(layer(expression), 0, len(rows))
    assert picture.rows == rows
    assert (picture.first, picture.last, picture.part, picture.case, picture.own) == (0, 3, "", "", 0)


def test_every_key_set_that_has_a_formula_is_drawn():
    drawn = {kind.kind for text in DRAWN for kind in layer(text).layers[0].mixer.keys}
    learned = {"persistent"}  # its keys stand before the sequence's: drawn below
    assert drawn | learned == {name for name, mixer in MIXERS.items() if mixer.type == "keys" and mixer.mask is not None}


def test_learned_keys_stand_before_the_sequence():
    (picture,) = pictures(layer("persistent(3) | window(2)"), 0, 4)
    assert (picture.own, picture.rows) == (3, ("#...", "##..", ".##.", "..##"))
    assert picture_text(picture) == (
        "persistent(3) | window(2), KV groups 0..3\n       0\n   ppp 0123\n0  ### #...\n1  ### ##..\n2  ### .##.\n3  ### ..##\n"
    )


def test_learned_keys_alone_see_nothing_of_the_sequence():
    (picture,) = pictures(layer("persistent(2)"), 0, 2)
    assert (picture.own, picture.rows) == (2, ("..", ".."))


def test_each_head_group_has_a_picture():
    found = pictures(layer("heads { 0: full, 1..2: window(2), else: sink(1) }"), 0, 3)
    assert [(one.first, one.last, one.keys) for one in found] == [(0, 0, "full"), (1, 2, "window(2)"), (3, 3, "sink(1)")]
    assert [one.rows for one in found] == [("#..", "##.", "###"), ("#..", "##.", ".##"), ("#..", "#..", "#..")]


def test_each_case_of_a_block_has_a_picture_that_says_when():
    text = "when { length < 9: full, phase == decode: window(2), else: choose(per = head) { near: window(1), far: stride(2) } }"
    assert [(one.case, one.keys) for one in pictures(layer(text), 0, 3)] == [
        ("when length < 9", "full"),
        ("when phase == decode", "window(2)"),
        ("otherwise, choose per head: near (default)", "window(1)"),
        ("otherwise, choose per head: far", "stride(2)"),
    ]
    routed = pictures(layer("route(per = token, by = router(linear)) { a: full, b: window(1) }"), 0, 2)
    assert [(one.case, one.rows) for one in routed] == [
        ("route per token: a", ("#.", "##")),
        ("route per token: b", ("#.", ".#")),
    ]


def test_branches_are_parts_and_a_state_is_said_to_have_no_mask():
    found = pictures(layer("conv(3) + window(2)"), 0, 3)
    assert [(one.part, one.rows) for one in found] == [("conv", ()), ("window", ("#..", "##.", ".##"))]
    assert picture_text(found[0]) == ("conv(3), part conv\nnot drawn: `conv(3)` carries a state and sees no keys one by one\n")


def test_keys_that_content_picks_are_said_not_to_be_drawn():
    (picture,) = pictures(layer("sink(1, detect = cosine(0.9)) | window(2)"), 0, 3)
    assert picture.rows == ("#..", "##.", ".##")
    assert picture.unseen == ("the keys of `sink(1, detect = cosine(0.9))`, which positions alone do not decide",)


def test_a_layer_without_a_mask_is_a_diagnostic_that_names_one_that_has_one():
    spec = check_text(f"{MODEL}layers {{ 0: conv(3), 1: full }}\n", "given.attn")
    with pytest.raises(SpecError) as caught:
        pictures(spec, 0, 4)
    (found,) = caught.value.diagnostics
    assert found.code == "A113"
    assert found.span.line == 2
    assert found.help == "layer 1 has one: `--mask 1`"
    with pytest.raises(SpecError, match="no layer of this spec has one"):
        pictures(layer("conv(3)"), 0, 4)


@pytest.fixture
def show(capsys, tmp_path):
    """Runs `attnc show --mask` on an expression: (exit code, stdout, stderr)."""

    def run(expression, *arguments):
        path = tmp_path / "given.attn"
        path.write_text(f"{MODEL}layers {{ all: {expression} }}\n")
        code = invoke(["show", str(path), *map(str, arguments)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


OUTPUTS = {
    "sink_window": "sink(4) | window(8)",
    "heads": "heads { 0: full, else: sink(2) | window(6, aligned = 3) }",
    "when": "when { length < 8192: full, else: block_local(8, shift = 50%) }",
    "persistent": "persistent(4) | stride(5)",
}


@pytest.mark.parametrize("name", OUTPUTS)
def test_the_whole_output_has_rulers_and_twenty_four_tokens(show, golden, name):
    code, out, err = show(OUTPUTS[name], "--mask", 0)
    assert (code, err) == (0, "")
    assert all(len(line) <= 80 for line in out.splitlines())
    golden(f"{name}.txt", out)


def test_a_window_longer_than_the_picture_is_remarked(show):
    code, _, err = show("window(1024)", "--mask", 1)
    assert code == 0
    assert err == "note: among 24 tokens nothing is hidden; a longer `--length` shows more\n"
    assert show("window(1024)", "--mask", 1, "--length", 1024)[2] != ""
    assert show("full", "--mask", 1)[2] == ""
    assert show("window(9)", "--mask", 1, "--length", 10)[2] == ""


def test_a_share_is_of_the_length_that_is_drawn(show):
    _, out, _ = show("window(25%)", "--mask", 0, "--length", 8)
    assert out.splitlines()[-1] == "7  ......##"


def test_a_process_of_its_own_draws_too(tmp_path):
    path = tmp_path / "given.attn"
    path.write_text(f"{MODEL}layers {{ all: window(2) | routed(tokens, top_k = 3) }}\n")
    command = [sys.executable, "-m", "attnc", "show", str(path), "--mask", "0", "--length", "4"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout.endswith("not drawn: the keys of `routed(tokens, top_k = 3)`, which positions alone do not decide\n")


def test_masks_are_data_too(show):
    code, out, _ = show("window(2)", "--mask", 0, "--length", 3, "--json")
    report = json.loads(out)
    assert (code, report["layer"], report["length"]) == (0, 0, 3)
    assert report["masks"][0]["rows"] == ["#..", "##.", ".##"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--mask", 2], "the last layer is 1"),
        (["--mask", 0, "--length", 5000], "--length goes up to 1024 here"),
        (["--mask", -1], ""),
    ],
)
def test_what_cannot_be_drawn_is_a_usage_error(show, arguments, message):
    code, out, err = show("full", *arguments)
    assert (code, out) == (2, "")
    assert message in err


def test_a_layer_without_a_mask_is_a_usage_error(show):
    code, out, err = show("conv(3)", "--mask", 0)
    assert (code, out) == (2, "")
    assert err.startswith("error[A113]: layer 0 has no mask to draw: `conv(3)` carries a state and sees no keys one by one")
