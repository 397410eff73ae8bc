"""What kinds declare: bounds, budgets, defaults, rules between parameters, attributes, and one spelling for each value."""

from __future__ import annotations

import math
import re
from pathlib import Path

import kind_values
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from attnc.compiler import check_text
from attnc.compiler.data import from_json, to_json
from attnc.compiler.fields import fields, options
from attnc.compiler.mixer import Kind
from attnc.compiler.mixers import MIXERS
from attnc.compiler.print_value import print_value
from attnc.compiler.spec import Attention, Mixing, Spec
from attnc.compiler.value import Share
from attnc.dsl import Diagnostic, SpecError

HEAD = "model m { vocab = 100, dim = 64, layers = 2, heads = 8, kv_heads = 4, head_dim = 64, ffn = none, norm = rms(1e-6) }\n"
KINDS = [name for name, mixer in MIXERS.items() if mixer.type != "change"]
PARAMETERS = [one for name in KINDS for one in kind_values.parameters(name)]
NUMBERS = [one for one in PARAMETERS if {int, float, Share} & set(one.field.types)]


def spec(expression: str, rest: str = "") -> Spec:
    return check_text(f"{HEAD}{rest}\nlayers {{ 0: full, 1: {expression} }}")


def problems(expression: str, rest: str = "") -> list[Diagnostic]:
    try:
        spec(expression, rest)
    except SpecError as error:
        return list(error.diagnostics)
    return []


def kind_of(found: Spec) -> Kind:
    mixer = found.layers[1].mixer
    assert isinstance(mixer, Attention | Mixing)
    return mixer.kind if isinstance(mixer, Mixing) else mixer.keys[0]


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


DELTA = "linear(update = delta"
ROUTED = "routed(tokens, top_k = 4"
RULES = {
    "summary.py": [
        ("summary(8, stride = 9)", "A104", "summary(8, stride = 8)"),
        ("summary(8, pool = recurrence, value_pool = mean)", "A112", "summary(8, pool = recurrence, value_pool = recurrence)"),
        ("summary(8, stride = 4, pool = recurrence)", "A112", "summary(8, stride = 4, pool = mean)"),
        ("summary(8, pool = recurrence) { value_dim = 32 }", "A204", "summary(8, pool = recurrence) { value_dim = 64 }"),
    ],
    "linear.py": [
        ("linear(erase = vector)", "A112", f"{DELTA}, erase = vector)"),
        ("linear(decay = slopes, key = one_minus_decay)", "A112", "linear(decay = vector, key = one_minus_decay)"),
        (f"{DELTA}, normalize = sum)", "A112", "linear(normalize = sum)"),
        ("linear(decay = vector, state = vector, feature = elu)", "A112", "linear(decay = vector, feature = elu)"),
    ],
    "ssm.py": [
        ("ssm(mamba2, expand = 2)", "A112", "ssm(mamba, expand = 2)"),
        ("ssm(s4d, state = 5)", "A112", "ssm(s4d, state = 6)"),
    ],
    "memory.py": [
        ("memory(linear, error = after_decay)", "A112", "memory(linear, decay = 0.1, error = after_decay)"),
        ("memory(linear, residual = true) { value_dim = 32 }", "A204", "memory(linear) { value_dim = 32 }"),
    ],
    "feedback.py": [("feedback(heads = 3)", "A204", "feedback(heads = 4)")],
    "routed/units.py": [
        (f"{ROUTED}, keys = mean(stride = 4))", "A112", f"{ROUTED}, keys = mean(8, stride = 4))"),
        (f"{ROUTED}, keys = mean(8, stride = 9))", "A104", f"{ROUTED}, keys = mean(8, stride = 8))"),
        (
            f"{ROUTED}, keys = mean(8, chunks = predicted(window = 4, nms = 8)))",
            "A112",
            f"{ROUTED}, keys = mean(chunks = predicted(window = 4, nms = 8)))",
        ),
        (
            "routed(blocks(8), top_k = 4, keys = learned(pool = [max, max]))",
            "A106",
            "routed(blocks(8), top_k = 4, keys = learned(pool = [max, min]))",
        ),
        (f"{ROUTED}, keys = hash(100))", "A204", f"{ROUTED}, keys = hash(104))"),
    ],
    "routed/choice.py": [
        (
            "routed(tokens, top_k = log_gaussian(48, mean = 4, std = 2))",
            "A204",
            "routed(tokens, top_k = log_gaussian(32, mean = 4, std = 2))",
        ),
        (f"{ROUTED}, queries = block(8, stride = 9))", "A104", f"{ROUTED}, queries = block(8, stride = 8))"),
        (
            f"{ROUTED}, keys = mean(8), score = softmax(lse = mean))",
            "A112",
            f"{ROUTED}, keys = mean(8), score = softmax(lse = mean(16)))",
        ),
    ],
    "routed/rules.py": [
        ("routed(tokens)", "A105", "routed(tokens, threshold = 0.5)"),
        ("routed(tokens, from = previous)", "A105", "routed(tokens, top_k = 8, from = previous)"),
        ("routed(tokens, top_k = 4, top_p = 90%)", "A112", "routed(tokens, top_p = 90%)"),
        (f"{ROUTED}, at_least = 5, at_most = 4)", "A104", f"{ROUTED}, at_least = 4, at_most = 4)"),
        (f"{ROUTED}, adaptive = 20%)", "A112", f"{ROUTED}, per = head, adaptive = 20%)"),
        (f"{ROUTED}, keys = minmax)", "A112", "routed(blocks(8), top_k = 4, keys = minmax)"),
        (f"{ROUTED}, keys = summary(8))", "A112", "routed(blocks(8), top_k = 4, keys = summary(8))"),
        (f"{ROUTED}, keys = mean)", "A112", f"{ROUTED}, keys = mean(8))"),
        ("routed(blocks(8), top_k = 4, search = tree(2))", "A112", f"{ROUTED}, keys = centre, search = tree(2))"),
        (f"{ROUTED}, keys = centre)", "A112", "routed(blocks(8), top_k = 4, keys = centre)"),
        (
            "routed(blocks(24), top_k = 4, score = antidiagonal(16), queries = block(32))",
            "A204",
            "routed(blocks(32), top_k = 4, score = antidiagonal(16), queries = block(32))",
        ),
        (
            "routed(blocks(16), top_k = 4, keys = minmax, score = antidiagonal(16), queries = block(16))",
            "A112",
            "routed(blocks(16), top_k = 4, score = antidiagonal(16), queries = block(16))",
        ),
        (f"{ROUTED}, score = softmax(lse = mean(16)))", "A112", f"{ROUTED}, keys = mean(8), score = softmax(lse = mean(16)))"),
        ("routed(blocks(8), top_k = 4, fold = sum)", "A112", "routed(blocks(8), top_k = 4, keys = mean(4), fold = sum)"),
        (f"{ROUTED}, on_refresh = dense)", "A112", f"{ROUTED}, refresh = every(8), on_refresh = dense)"),
        (
            f"{ROUTED}, refresh = every(8), on_refresh = dense, evict = true)",
            "A112",
            f"{ROUTED}, refresh = every(8), evict = true)",
        ),
        ("routed(diagonals, top_k = 4, evict = true)", "A112", "routed(columns, top_k = 4, evict = true)"),
        (f"{ROUTED}, evict = true, dense_queries = last(8))", "A112", f"{ROUTED}, dense_queries = last(8))"),
        (f"{ROUTED}, refresh = [every(8), every(9)])", "A106", f"{ROUTED}, refresh = [every(8), cosine(0.5)])"),
        (f"{ROUTED}, from = previous, queries = all)", "A112", f"{ROUTED}, from = previous, per = head)"),
        ("routed(clusters(4, size = 8), top_k = 4)", "A112", "routed(clusters(4, size = 8), selection = noncausal)"),
        ("routed(clusters(4, size = 8))", "A304", "routed(clusters(4, size = 8), selection = noncausal)"),
    ],
}
CASES = [(file, *case) for file, cases in RULES.items() for case in cases]


@pytest.mark.parametrize(("file", "wrong", "code", "right"), CASES, ids=lambda one: str(one)[:60])
def test_a_rule_between_parameters_refuses_one_and_takes_the_other(file, wrong, code, right):
    found = problems(wrong)
    assert code in [one.code for one in found], file
    assert all(one.help and one.expected for one in found)
    assert not problems(right)


def test_every_rule_has_a_case():
    root = Path(MIXERS["routed"].parameters.__module__.replace("attnc.", "").replace(".", "/"))
    mixers = Path(__file__).parent.parent / root.parent.parent
    for path in sorted(mixers.rglob("*.py")):
        written = path.read_text("utf-8").count("yield Broken(")
        name = path.relative_to(mixers).as_posix()
        if name not in ("merge.py", "insert.py"):
            assert written == len(RULES.get(name, [])), name


def test_a_rule_points_at_the_parameter_that_breaks_it():
    text = "routed(tokens, top_k = 4, at_least = 5, at_most = 3)"
    (one,) = problems(text)
    assert one.span.text == "at_least = 5"
    (one,) = problems("linear(beta = 2)")
    assert one.span.text == "beta = 2"


def test_both_bounds_of_the_delta_rule_and_each_parameter_of_its_own():
    for key, value in (("erase", "vector"), ("write", "vector"), ("beta", "2")):
        assert [one.code for one in problems(f"linear({key} = {value})")] == ["A112"]
        assert not problems(f"{DELTA}, {key} = {value})")
    for key, value in (("key", "one_minus_decay"), ("lower_bound", "learned"), ("lower_bound", "0.5"), ("state", "vector")):
        for decay in ("none", "slopes", "retention"):
            assert [one.code for one in problems(f"linear(decay = {decay}, {key} = {value})")] == ["A112"]
        for decay in ("scalar", "vector"):
            assert not problems(f"linear(decay = {decay}, {key} = {value})")


def test_keys_take_a_summary_by_the_name_of_its_mix():
    found = spec("routed(blocks(64), top_k = 16, keys = compressed)", "mix compressed = summary(32, stride = 16, pool = mlp)")
    assert kind_of(found).keys == MIXERS["summary"].parameters(n=32, stride=16, pool="mlp")
    (one,) = problems("routed(blocks(64), top_k = 16, keys = near)", "mix near = window(8)")
    assert (one.code, one.span.text) == ("A103", "near")


def test_within_takes_a_union_of_key_sets():
    found = kind_of(spec(f"{ROUTED}, within = window(64) | coarse)", "mix coarse = routed(blocks(8), top_k = 2)"))
    assert print_value(found) == f"{ROUTED}, within = window(64) | routed(blocks(8), top_k = 2))"
    assert [one.code for one in problems(f"{ROUTED}, within = conv(3))")] == ["A203"]


BACKWARDS = {
    "memory(linear)": "full",
    "recurrent(lstm)": "full",
    "feedback": "full",
    "conv(3)": "full",
    "linear(update = delta)": "linear",
    "linear(decay = slopes)": "linear(feature = softmax)",
    "linear(decay = vector, state = vector)": "ssm(s4d)",
    "ssm(mamba)": "ssm(s4d)",
    "ssm(mamba2)": "ssm(s4d)",
    "summary(8, pool = recurrence)": "summary(8)",
}


@pytest.mark.parametrize(("wrong", "right"), BACKWARDS.items())
def test_what_looks_back_only_refuses_both_directions(wrong, right):
    assert [one.code for one in problems(f"{wrong} {{ causal = false }}")] == ["A300"]
    assert not problems(f"{wrong} {{ causal = true }}")
    assert not problems(f"{right} {{ causal = false }}")


ATTRIBUTES = {
    "activation": "gelu",
    "input_ema": "4",
    "heads": "4",
    "kv_heads": "8",
    "qk_heads": "4",
    "head_dim": "32",
    "value_dim": "32",
    "rope": "10000",
    "rope_dim": "16",
    "positions": "consecutive",
    "qk_norm": "l2",
    "short_conv": "4",
    "share_qk": "true",
    "qk_from": "previous",
    "init_qk": "normal",
    "score": "uniform",
    "temperature": "0.5",
    "sink_logit": "learned",
    "output_norm": "rms",
    "output_gate": "silu",
    "scale": "learned(init = 0)",
    "kv_latent": "16",
    "proportional": "true",
    "causal": "true",
}
AROUND = {"activation", "input_ema", "scale", "output_gate", "causal"}
HEADS = {"heads", "kv_heads", "head_dim", "value_dim", "qk_norm", "short_conv", "init_qk", "output_norm", "rope", "rope_dim"}
TAKEN = {
    "linear": AROUND | HEADS | {"qk_heads"},
    "memory(linear)": AROUND | HEADS,
    "ssm(s4d)": AROUND,
    "ssm(mamba)": AROUND | {"short_conv"},
    "ssm(mamba2)": AROUND | {"short_conv", "heads", "head_dim", "output_norm"},
    "recurrent(gru)": AROUND,
    "feedback": AROUND,
    "conv(3)": {"causal"},
}


@pytest.mark.parametrize("expression", TAKEN)
def test_a_kind_takes_the_attributes_that_mean_something_for_it(expression):
    taken = set()
    for key, value in ATTRIBUTES.items():
        found = problems(f"{expression} {{ {key} = {value} }}")
        assert {one.code for one in found} <= {"A213"}, found
        assert all(one.span.text == f"{key} = {value}" for one in found)
        taken |= set() if found else {key}
    assert taken == TAKEN[expression]


def test_one_codebook_holds_what_a_union_does_not_show():
    assert [one.code for one in problems("codebook(8) | codebook(16)")] == ["A213"]
    assert not problems("window(8) | codebook(16)")


def test_positions_may_count_the_chunks_of_a_summary():
    assert not problems("summary(8) { positions = chunk }")
    assert [one.code for one in problems("(summary(8) | window(16, aligned = 4)) { positions = chunk }")] == ["A213"]


@pytest.mark.parametrize("name", KINDS)
def test_learned_tensors_have_names_of_their_own_and_sizes(name):
    for example in MIXERS[name].examples:
        found = spec(print_value(example))
        mixer = found.layers[1].mixer
        weights = MIXERS[name].weights(example, mixer.attributes, found.model)
        assert len({one.name for one in weights}) == len(weights)
        assert all(size > 0 for one in weights for size in one.shape)


WEIGHTS = {
    # one map of the token a head and channel, and one strength for erasing and writing
    "linear(update = delta, decay = vector)": {
        "decay_proj.weight": (8 * 64, 64),
        "A_log": (8,),
        "dt_bias": (8 * 64,),
        "erase_proj.weight": (8, 64),
    },
    "linear(decay = vector, key = one_minus_decay, lower_bound = learned)": {
        "decay_proj.weight": (8 * 64, 64),
        "lower_bound.weight": (8 * 64,),
    },
    "linear(update = delta, write = vector)": {"erase_proj.weight": (8, 64), "write_proj.weight": (8 * 64, 64)},
    "ssm(s4d, state = 6) { scale = learned }": {
        "in_proj.weight": (64, 64),
        "dt_log": (64,),
        "A_log": (64, 3),
        "A_imag": (64, 3),
        "C": (64, 3, 2),
        "D": (64,),
        "out_proj.weight": (64, 64),
        "scale": (64,),
    },
    "ssm(mamba, state = 4, expand = 2) { short_conv = 3 }": {
        "in_proj.weight": (128, 64),
        "dt_down.weight": (4, 128),
        "dt_up.weight": (128, 4),
        "dt_bias": (128,),
        "B_proj.weight": (4, 128),
        "C_proj.weight": (4, 128),
        "A_log": (128, 4),
        "D": (128,),
        "conv.weight": (128, 3),
        "conv.bias": (128,),
        "out_proj.weight": (64, 128),
    },
    "ssm(mamba2) { heads = 4, head_dim = 8, short_conv = 4, output_gate = silu, output_norm = rms }": {
        "in_proj.weight": (32, 64),
        "B_proj.weight": (16, 64),
        "C_proj.weight": (16, 64),
        "dt_proj.weight": (4, 64),
        "dt_bias": (4,),
        "A_log": (4,),
        "D": (4,),
        "conv.weight": (64, 4),
        "conv.bias": (64,),
        "output_gate.weight": (32, 64),
        "output_norm.weight": (32,),
        "out_proj.weight": (64, 32),
    },
    "memory(swiglu, lr = 0.1)": {"net.gate": (8, 256, 64), "net.up": (8, 256, 64), "net.down": (8, 64, 256)},
    "memory(mlp(depth = 3, expand = 2), lr = learned(per = head))": {
        "net.map_0": (8, 128, 64),
        "net.map_1": (8, 128, 128),
        "net.map_2": (8, 64, 128),
        "lr": (8,),
    },
    "memory(linear, norm = layer)": {
        "net.map_0": (8, 64, 64),
        "lr_proj.weight": (8, 64),
        "lr_proj.bias": (8,),
        "net_norm.weight": (8, 64),
        "net_norm.bias": (8, 64),
    },
    "codebook(32)": {"codebook": (4, 32, 64), "codebook_count": (4, 32)},
    "routed(tokens, top_k = 4, keys = indexer(heads = 2, head_dim = 16))": {
        "indexer.q_proj.weight": (32, 64),
        "indexer.k_proj.weight": (16, 64),
        "indexer.k_norm.weight": (16,),
        "indexer.k_norm.bias": (16,),
        "indexer.weight_proj.weight": (2, 64),
    },
}


@pytest.mark.parametrize(("expression", "expected"), WEIGHTS.items())
def test_the_shapes_of_learned_tensors(expression, expected):
    found = spec(expression)
    kind, attributes = kind_of(found), found.layers[1].mixer.attributes
    weights = MIXERS[kind.kind].weights(kind, attributes, found.model)
    assert {one.name: one.shape for one in weights} == expected
