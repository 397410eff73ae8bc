"""What kinds declare: bounds, budgets, defaults, rules between parameters, attributes, and one spelling for each value."""

from __future__ import annotations

import math
import re
from pathlib import Path

import kind_values
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kind_values import KINDS, kind_of, problems, spec

from attnc.compiler.data import from_json, to_json
from attnc.compiler.fields import fields, options
from attnc.compiler.mixer import Kind
from attnc.compiler.mixers import MIXERS
from attnc.compiler.print_value import print_value
from attnc.compiler.value import Share
from attnc.dsl import Diagnostic

PARAMETERS = [one for name in KINDS for one in kind_values.parameters(name)]
NUMBERS = [one for one in PARAMETERS if {int, float, Share} & set(one.field.types)]


def edges(parameter: kind_values.Parameter) -> list[tuple[str, str]]:
    """(a number at a bound, the next one outside), of each sort of number that a parameter takes."""
    types, bounds = parameter.field.types, parameter.field.bounds
    found = []
    if int in types or float in types:
        assert bounds is not None, parameter.path
        for bound, way in ((bounds.low, -1), (bounds.high, 1)):
            outside = bound + way if int in types else math.nextafter(bound, way * math.inf)
            found.append((repr(int(bound) if float(bound).is_integer() else bound), repr(outside)))
    if Share in types:
        low, high = (bounds.share_low, bounds.share_high) if bounds else (0, 100)
        found += [(f"{low:g}%", f"{math.nextafter(low, -1)!r}%"), (f"{high:g}%", f"{math.nextafter(high, 200)!r}%")]
    return found


def beyond_bounds(found: list[Diagnostic]) -> list[Diagnostic]:
    return [one for one in found if "must lie in" in one.message]


@pytest.mark.parametrize("parameter", NUMBERS, ids=lambda one: one.path)
def test_a_number_may_be_its_bounds_and_nothing_beyond(parameter):
    for inside, outside in edges(parameter):
        found = problems(parameter.whole(inside))
        assert not beyond_bounds(found), inside
        assert {one.code for one in found} <= {"A112", "A105", "A106", "A204", "A304", "A104"}, found
        (one,) = beyond_bounds(problems(parameter.whole(outside)))
        assert one.code == "A104"
        assert one.span.text == outside
        assert one.help


@pytest.mark.parametrize("parameter", PARAMETERS, ids=lambda one: one.path)
def test_a_word_that_a_parameter_does_not_know_is_told_with_its_place(parameter):
    found = [one for one in problems(parameter.whole("nonsense")) if one.code in ("A103", "A100")]
    assert [one.span.text for one in found] == ["nonsense"]


TOKENS, CHUNK, UNIT_INTERVAL = (1, 2**24), (1, 65536), (0, 1)
BOUNDS = {
    "summary.n": CHUNK,
    "summary.stride": CHUNK,
    "codebook.n": (2, 65536),
    "codebook.ema": UNIT_INTERVAL,
    "codebook.commit": UNIT_INTERVAL,
    "linear.lower_bound": UNIT_INTERVAL,
    "linear.feature.taylor.n": (1, 4),
    "ssm.state": (1, 1024),
    "ssm.expand": (1, 8),
    "memory.net.mlp.depth": (1, 4),
    "memory.net.mlp.expand": (1, 8),
    "memory.net.swiglu.expand": (1, 8),
    "memory.chunk": CHUNK,
    "memory.lr": UNIT_INTERVAL,
    "memory.momentum": UNIT_INTERVAL,
    "memory.decay": UNIT_INTERVAL,
    "feedback.heads": (1, 64),
    "feedback.gain": (-1, 1),
    "routed.unit.blocks.n": CHUNK,
    "routed.unit.clusters.n": (2, 65536),
    "routed.unit.clusters.size": TOKENS,
    "routed.unit.clusters.ema": UNIT_INTERVAL,
    "routed.unit.clusters.commit": UNIT_INTERVAL,
    "routed.top_k": TOKENS,
    "routed.top_k.sublinear.k": TOKENS,
    "routed.top_k.sublinear.from": TOKENS,
    "routed.top_k.sublinear.exponent": UNIT_INTERVAL,
    "routed.top_k.log_gaussian.b": CHUNK,
    "routed.top_k.log_gaussian.mean": (0, 16),
    "routed.top_k.log_gaussian.std": (1e-3, 16),
    "routed.threshold": (-1e6, 1e6),
    "routed.at_least": TOKENS,
    "routed.at_most": TOKENS,
    "routed.keys.mean.n": CHUNK,
    "routed.keys.mean.stride": CHUNK,
    "routed.keys.mean.chunks.predicted.window": CHUNK,
    "routed.keys.mean.chunks.predicted.nms": CHUNK,
    "routed.keys.hash.bits": (8, 1024),
    "routed.keys.indexer.heads": (1, 1024),
    "routed.keys.indexer.head_dim": (1, 1024),
    "routed.queries.block.n": CHUNK,
    "routed.queries.block.stride": CHUNK,
    "routed.queries.last.n": CHUNK,
    "routed.score.antidiagonal.n": CHUNK,
    "routed.score.estimated.width": CHUNK,
    "routed.score.estimated.feature.taylor.n": (1, 4),
    "routed.smooth": CHUNK,
    "routed.search.tree.branch": (2, 65536),
    "routed.refresh.every.n": CHUNK,
    "routed.refresh.cosine.x": UNIT_INTERVAL,
    "routed.refresh.cosine.every": CHUNK,
    "routed.dense_queries.first.n": CHUNK,
    "routed.dense_queries.last.n": CHUNK,
}
"""The bounds of docs/language.md."""


def test_bounds_are_those_of_the_table():
    new = ("summary.", "codebook.", "routed.", "linear.", "ssm.", "memory.", "recurrent.", "feedback.")
    found = {one.path: one.field.bounds for one in NUMBERS if one.path.startswith(new)}
    within = ("routed.keys.summary.", "routed.score.softmax.lse.mean.")  # the same words as elsewhere
    numbers = {
        path: (bounds.low, bounds.high)
        for path, bounds in found.items()
        if bounds is not None and path != "routed.top_p" and not path.startswith(within)
    }
    assert numbers == BOUNDS


PAGE = (Path(__file__).parent.parent / "docs" / "language.md").read_text("utf-8")


@pytest.mark.parametrize("name", KINDS)
def test_the_page_names_every_parameter_and_word(name):
    written = set(re.findall(r"[a-z_][a-z0-9_]*", "".join(re.findall(r"`[^`]*`", PAGE))))
    for parameter in kind_values.parameters(name):
        words = {word for word in options(parameter.field.types) if not word.isdigit()}
        assert {parameter.field.key, *words} <= written | {"n", "x", "b", "k"}, parameter.path


BUDGETS = {
    "window.n": "tuned",
    "sink.n": "tuned",
    "block_local.n": "tuned",
    "stride.n": "tuned",
    "power_of_two.n": "tuned",
    "persistent.n": "training",
    "summary.n": "training",
    "codebook.n": "training",
    "routed.top_k": "tuned",
    "routed.top_k.log_gaussian.mean": "tuned",
    "routed.top_k.log_gaussian.std": "tuned",
    "routed.top_p": "tuned",
    "routed.threshold": "tuned",
    "routed.keys.summary.n": "training",
    "routed.refresh.every.n": "tuned",
    "memory.chunk": "tuned",
}
"""The numbers that docs/language.md marks with a star or a dagger."""


@pytest.mark.parametrize("parameter", NUMBERS, ids=lambda one: one.path)
def test_budgets_stand_where_the_table_marks_them(parameter):
    low, high = (inside for inside, _ in edges(parameter)[-2:])
    whole = parameter.whole(f"budget({low}..{high}, default = {high})")
    codes = [one.code for one in problems(whole)]
    if parameter.path not in BUDGETS:
        assert "A107" in codes
        return
    assert "A107" not in codes
    assert parameter.field.budgeted.when == BUDGETS[parameter.path]


DEFAULTS = {
    "summary": {"stride": "64", "pool": "mean", "value_pool": "mean"},
    "codebook": {"ema": "0.99", "commit": "0.0001"},
    "routed": {
        "top_k": "none",
        "top_p": "none",
        "threshold": "none",
        "at_least": "1",
        "at_most": "none",
        "keys": "own",
        "queries": "each",
        "score": "dot",
        "fold": "max",
        "length_norm": "none",
        "smooth": "1",
        "score_rope": "same",
        "per": "group",
        "adaptive": "none",
        "overlap": "ranked",
        "search": "flat",
        "within": "none",
        "from": "none",
        "refresh": "always",
        "on_refresh": "sparse",
        "evict": "false",
        "dense_queries": "none",
        "selection": "causal",
    },
    "linear": {
        "update": "add",
        "decay": "none",
        "feature": "none",
        "normalize": "none",
        "key": "projected",
        "lower_bound": "0",
        "erase": "scalar",
        "write": "scalar",
        "beta": "1",
        "state": "matrix",
    },
    "ssm": {"state": "16", "expand": "1"},
    "memory": {
        "chunk": "64",
        "lr": "learned",
        "momentum": "none",
        "decay": "none",
        "loss": "mse",
        "read": "before_write",
        "error": "before_decay",
        "weight_norm": "none",
        "residual": "false",
        "norm": "none",
    },
    "recurrent": {},
    "feedback": {"heads": "1", "gain": "learned"},
}


@pytest.mark.parametrize("name", DEFAULTS)
def test_what_is_left_out_is_as_the_table_says(name):
    owner = MIXERS[name].parameters
    required = {
        "summary": {"n": 64},
        "codebook": {"n": 64},
        "routed": {"unit": "tokens"},
        "ssm": {"form": "s4d"},
        "memory": {"net": "linear"},
        "recurrent": {"cell": "lstm"},
    }.get(name, {})
    value = owner(**required)
    found = {key: print_value(getattr(value, field.name)) for key, field in fields(owner).items() if not field.required}
    assert found == DEFAULTS[name]
    assert {key for key, field in fields(owner).items() if field.required} == set(required)


def test_defaults_of_nested_words():
    assert print_value(kind_of(spec("routed(blocks(64), top_k = 4, keys = mean)"))) == "routed(blocks(64), top_k = 4)"
    assert spec("summary(32, stride = 16, pool = max)").layers[1].mixer.keys[0].value_pool == "max"
    assert kind_of(spec("routed(tokens, top_k = 4, keys = mean(32))")).keys.stride == 32
    net = kind_of(spec("memory(mlp)")).net
    assert (net.depth, net.expand) == (2, 4)
    clusters = kind_of(spec("routed(clusters(16, size = 512), selection = noncausal)")).unit
    assert (clusters.ema, clusters.commit) == (0.999, 1e-4)
    assert kind_of(spec("memory(linear, decay = learned(per = head))")).decay.per == "head"
    assert kind_of(spec("routed(tokens, top_k = 4, refresh = cosine(0.8))")).refresh.every == 1


@pytest.mark.parametrize("name", KINDS)
@settings(max_examples=25, suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow])
@given(data=st.data())
def test_a_printed_kind_reads_back_as_the_same_value(name, data):
    value = data.draw(kind_values.kinds(name))
    text = print_value(value)
    found = problems(text)
    # what attributes must fit is not the kind's alone
    assert {one.code for one in found} <= {"A204"}, (text, found)
    if not found:
        read = kind_of(spec(text))
        assert read == value, text
        assert print_value(read) == text


@pytest.mark.parametrize("name", KINDS)
def test_examples_survive_json(name):
    for example in MIXERS[name].examples:
        assert from_json(Kind, to_json(example)) == example
        assert kind_of(spec(print_value(example))) == example
