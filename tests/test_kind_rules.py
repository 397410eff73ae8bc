"""What holds between the parameters of a kind: each rule refuses one value and takes another."""

from __future__ import annotations

from pathlib import Path

import pytest
from kind_values import kind_of, problems, spec

from attnc.compiler.mixers import MIXERS
from attnc.compiler.print_value import print_value

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
