"""Whole built models equal the oracle in every phase that their specs owe."""

from __future__ import annotations

from pathlib import Path

import pytest
from models import FLOAT32, WAYS, Case
from test_table import NETS, PLAIN, STATIC

from attnc.compiler import check_path
from attnc.compiler.reduce import reduce

SPECS = Path(__file__).parent.parent / "specs"


@pytest.mark.parametrize("name", [name for name in STATIC if name not in (*NETS, *PLAIN)])
def test_a_built_spec_equals_the_oracle_in_every_phase(name, tmp_path):
    small, _ = reduce(check_path(SPECS / f"{name}.attn"), 32)
    case = Case.of(small, tmp_path / "built")
    case.check_sizes()
    for way in WAYS:
        case.model.use(way)
        case.check(case.model)
    narrow = case.narrow()
    for way in WAYS:
        narrow.use(way)
        case.check(narrow, ("training", "prefill", "decode by 16"), FLOAT32)
