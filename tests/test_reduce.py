"""A reduced spec is the same spec in small."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from strategies import Sizes, spec_texts
from test_check import CHOSEN
from test_intervals import reference
from test_table import STATIC

import attnc
from attnc.compiler import check_path, check_text
from attnc.compiler.laws import owed
from attnc.compiler.mixers import MIXERS
from attnc.compiler.policies import of_folder
from attnc.compiler.reduce import reduce
from attnc.compiler.spec import Attention
from attnc.compiler.table_text import table_text
from attnc.compiler.walk import children

SPECS = Path(__file__).parent.parent / "specs"


def attentions(mixer):
    return [mixer] if isinstance(mixer, Attention) else [one for inner in children(mixer) for one in attentions(inner)]


def sizes(spec):
    """For each sort of number the numbers in a spec, in one order; `reduce` keeps the order."""
    model = spec.model
    found = {"body": [model.vocab, model.dim, model.feed_forward.width if model.feed_forward else 0]}
    for layer in spec.layers:
        for one in attentions(layer.mixer):
            a = one.attributes
            found.setdefault("widths", []).extend([a.head_dim, a.value_dim, a.rope_dim or 0])
            found.setdefault("heads", []).extend([a.heads, a.kv_heads])
            counts = [getattr(kind, "n", 0) for kind in one.keys]
            counts += [kind.aligned for kind in one.keys if getattr(kind, "aligned", 1) > 1]
            found.setdefault("tokens", []).extend(count for count in counts if isinstance(count, int))
    return found


def one_of_each(spec):
    """The layers of a spec that `reduce` keeps when all are distinct."""
    small, _ = reduce(spec)
    lines = {layer.origin.line for layer in small.layers}
    first = {}
    for layer in spec.layers:
        first.setdefault(layer.origin.line, layer)
    kept = [layer for line, layer in first.items() if line in lines]
    return small, replace(spec, layers=tuple(kept))


def same_order(old, new, sorts):
    """Numbers of one sort map one to one."""
    for sort in sorts:
        pairs = set(zip(old.get(sort, []), new.get(sort, []), strict=True))
        assert len(pairs) == len({before for before, _ in pairs}) == len({after for _, after in pairs}), (sort, pairs)


@pytest.mark.parametrize("name", STATIC)
def test_different_numbers_stay_different_and_equal_ones_equal(name):
    small, spec = one_of_each(check_path(SPECS / f"{name}.attn"))
    old, new = sizes(spec), sizes(small)
    same_order(old, new, ("widths", "heads", "tokens"))
    body = list(zip(old["body"], new["body"], strict=True))
    assert all(x != y for a, x in body for b, y in body if a != b)


@pytest.mark.parametrize("name", STATIC)
def test_what_was_sparse_stays_sparse(name):
    spec, tokens = check_path(SPECS / f"{name}.attn"), 64
    small, _ = reduce(spec, tokens)
    for layer in small.layers:
        for one in attentions(layer.mixer):
            if not all(MIXERS[kind.kind].mask for kind in one.keys):  # what stands for others has none
                continue
            mask = reference(list(one.keys), one.attributes.causal, tokens)
            dense = reference([kind for kind in one.keys if kind.kind == "full"], one.attributes.causal, tokens)
            everything = torch.ones(tokens, tokens, dtype=torch.bool)
            everything = everything.tril() if one.attributes.causal else everything
            assert torch.equal(mask, everything) == torch.equal(dense, everything)


@pytest.mark.parametrize("name", [*STATIC, *CHOSEN])
def test_the_reduced_table_is_as_accepted(name, golden):
    small, lines = reduce(check_path(SPECS / f"{name}.attn"))
    golden(f"{name}.txt", "\n".join([*lines, "", table_text(small)]))


@given(spec_texts(Sizes(tokens=900, widths=(48, 128), route=True)))
def test_a_reduced_spec_owes_the_same_laws_and_confuses_no_numbers(text):
    small, spec = one_of_each(check_text(text))
    assert owed(small) == owed(check_text(text))
    same_order(sizes(spec), sizes(small), ("widths", "tokens"))
    assert max(sizes(small).get("widths", [0])) <= 32


def test_widths_that_would_fall_together_are_kept_apart_below_the_widest():
    settings = "vocab = 100, dim = 256, layers = 2, heads = 2, head_dim = 128, ffn = none, norm = rms(1e-6), rope = 10000"
    small, _ = reduce(
        check_text(f"model m {{ {settings} }} layers {{ 0: full {{ rope_dim = 124 }}, 1: full {{ rope_dim = 4 }} }}")
    )
    found = [attentions(layer.mixer)[0].attributes for layer in small.layers]
    assert [(a.head_dim, a.rope_dim) for a in found] == [(32, 30), (32, 2)]


def test_layers_with_different_numbers_of_kv_heads_keep_different_ones():
    text = """model m { vocab = 100, dim = 64, layers = 4, heads = 24, kv_heads = 12, head_dim = 8, ffn = none,
    norm = rms(1e-6) }
    layers { 0: full, 1: full { kv_heads = 8 }, 2: heads { 0: full, else: window(9) }, 3: full { kv_heads = 1 } }"""
    small, _ = reduce(check_text(text))
    found = [attentions(layer.mixer)[0].attributes for layer in small.layers]
    assert len({a.kv_heads for a in found[:2] + found[3:]}) == 3
    assert [a.heads // a.kv_heads for a in found] == [2, 3, 2, 24]
    assert len({a.kv_heads for a in found[1:]}) == 3


def test_a_folder_of_a_reduced_spec_is_known_as_that_spec(tmp_path):
    """Its text is the whole spec's: read alone it would be of another model."""
    small, _ = reduce(check_path(SPECS / "gemma3.attn"), 32)
    attnc.build(small, tmp_path / "small")
    found = of_folder(tmp_path / "small")
    assert (found.model, table_text(found)) == (small.model, table_text(small))
    assert found.reduced == 32
