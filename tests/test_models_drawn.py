"""Random whole specs, built, equal the oracle in every way to run them."""

from __future__ import annotations

from hypothesis import given, settings
from models import WAYS, Case
from strategies import Sizes, spec_texts

from attnc.compiler import check_text

FEW = settings(max_examples=max(1, settings.default.max_examples // 4))
"""A whole model is built for each example."""


def compare(text, folders):
    case = Case.of(check_text(text), folders.mktemp("drawn") / "built", tokens=30)
    case.check_sizes()
    for way in WAYS:
        case.model.use(way)
        case.check(case.model)


@FEW
@given(text=spec_texts(Sizes(rich=True, route=True, states=True)))
def test_a_random_spec_equals_the_oracle_in_every_phase(text, tmp_path_factory):
    compare(text, tmp_path_factory)


@settings(FEW, max_examples=max(1, FEW.max_examples // 3))
@given(text=spec_texts(Sizes(rich=True, causal=False, branches=False, layers=2)))
def test_a_random_spec_that_looks_ahead_equals_the_oracle(text, tmp_path_factory):
    compare(text, tmp_path_factory)
