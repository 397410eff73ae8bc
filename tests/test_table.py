"""The resolved table of each static spec, as text."""

from __future__ import annotations

from pathlib import Path

import pytest

from attnc.compiler import check_path
from attnc.compiler.table import table, table_text

SPECS = Path(__file__).parent.parent / "specs"
STATIC = [
    "full",
    "window-global",
    "gemma3",
    "gpt-oss",
    "llama4",
    "smollm3",
    "masformer",
    "ls-attention",
    "sparse-transformer",
    "power",
    "softplus",
    "tempscale",
    "random-features",
    "longlora",
    "echoatt",
    "streaming-llm",
    "duo",
    "retrieval-heads",
]


@pytest.mark.parametrize("name", STATIC)
def test_the_table_of_a_spec_is_as_accepted(name, golden):
    golden(f"{name}.txt", table_text(check_path(SPECS / f"{name}.attn")).replace(f"{SPECS}/", ""))


@pytest.mark.parametrize("name", STATIC)
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
