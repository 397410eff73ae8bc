"""The resolved table of each shipped spec, as text; rows that cover every layer and group; specs as data."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_check import BUILT, CHOSEN

from attnc.compiler import check_path, check_text
from attnc.compiler.data import from_json, to_json
from attnc.compiler.spec import Spec
from attnc.compiler.table import table
from attnc.compiler.table_text import table_text
from attnc.compiler.walk import kinds

SPECS = Path(__file__).parent.parent / "specs"
NAMES = sorted(path.stem for path in SPECS.glob("*.attn"))
STATIC = [name for name in BUILT if name not in ("infiniretri", "hylra", "ucm", *CHOSEN)]
"""Specs that are built, each with key sets of its own, by position, or with states or nets."""
PLAIN = ("lrcn", "sessa", "titans-mac", "longvq", "cca", "combiner", "rat")
"""Those of them that plain PyTorch runs: test_plain.py runs them."""
NETS = ("titans-lmm", "titans-mag", "titans-mal", "ttt-linear", "ttt-mlp", "allmem")
"""Those of them whose weights learn while they read: test_memory.py runs them, as their reference takes its time."""


@pytest.mark.parametrize("name", NAMES)
def test_the_table_of_a_shipped_spec_is_as_accepted(name, golden):
    golden(f"{name}.txt", table_text(check_path(SPECS / f"{name}.attn")).replace(f"{SPECS}/", ""))


@pytest.mark.parametrize("name", NAMES)
def test_every_layer_and_group_has_a_row(name):
    spec = check_path(SPECS / f"{name}.attn")
    rows = table(spec)
    assert sorted({layer for row in rows for layer in row.layers}) == list(range(spec.model.layers))
    for layer in spec.layers:
        cases = {}
        for row in rows:
            if layer.index in row.layers:
                cases.setdefault((row.scope, row.case), []).extend(range(row.first, row.last + 1))
        assert all(groups == list(range(len(groups))) for groups in cases.values())


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_spec_survives_json(name):
    spec = check_path(SPECS / f"{name}.attn")
    again = from_json(Spec, to_json(spec))
    assert again == spec
    assert table_text(again) == table_text(spec)
    assert [type(kind) for layer in again.layers for kind, _ in kinds(layer.mixer)] == [
        type(kind) for layer in spec.layers for kind, _ in kinds(layer.mixer)
    ]


@pytest.mark.parametrize("name", NAMES)
def test_the_canonical_text_of_a_shipped_spec_means_the_same(name):
    spec = check_path(SPECS / f"{name}.attn")
    again = check_text(spec.text, spec.file)
    assert again.text == spec.text
    assert [(row.layers, row.scope, row.case, row.mixer, row.attributes) for row in table(again)] == [
        (row.layers, row.scope, row.case, row.mixer, row.attributes) for row in table(spec)
    ]


@pytest.mark.parametrize("name", NAMES)
def test_no_line_of_a_table_is_too_wide(name):
    text = table_text(check_path(SPECS / f"{name}.attn")).partition("\n\nlaws")[0]
    assert max(map(len, text.split("\n"))) <= 170


def test_parts_say_how_they_are_joined_and_blocks_when_they_hold():
    head = "model m { vocab = 9, dim = 64, layers = 1, heads = 8, kv_heads = 4, ffn = none, norm = rms(1e-6) }\n"
    body = "gate(full + conv(3), when { length < 5: full, else: linear >> sink(1) }, by = softmax)"
    rows = table(check_text(f"{head}layers {{ all: insert(landmark, every = 3) >> {body} }}"))
    assert [(row.joined, row.scope, row.case, row.mixer) for row in rows] == [
        ("", "insert", "", "insert(landmark, every = 3)"),
        ("", "gate_.sum.full", "", "full"),
        ("+", "gate_.sum.conv", "", "conv(3)"),
        ("gate(softmax)", "gate_.when", "length < 5", "full"),
        ("", "gate_.when.chain.linear", "else", "linear"),
        (">>", "gate_.when.chain.sink", "else", "sink(1)"),
    ]


@pytest.mark.parametrize("name", ["duo", "moba", "nsa", "gemma3", "hylra"])
def test_a_table_fits_into_a_narrow_terminal(name):
    spec = check_path(SPECS / f"{name}.attn")
    text = table_text(spec, width=80)
    (start,) = (at for at, line in enumerate(text.split("\n")) if line.startswith("layers "))
    rows = text.split("\n")[start:]
    rows = rows[: rows.index("")]
    assert max(map(len, rows)) <= 80
    assert " ".join(text.split()).count("full") == " ".join(table_text(spec).split()).count("full")
