"""`attnc diff`: nothing for specs that mean the same, and whatever they do differently otherwise."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from attnc.cli import invoke
from attnc.compiler import check_path, check_text
from attnc.compiler.difference import difference, difference_lines

SPECS = sorted((Path(__file__).parent.parent / "specs").glob("*.attn"))
MODEL = (
    "model m { vocab = 100, dim = 64, layers = 4, heads = 8, kv_heads = 4, ffn = swiglu(64), norm = rms(1e-6), context = 64 }\n"
)


def spec(body, model=MODEL):
    return check_text(model + body + "\n")


def lines(before, after):
    return [f"{sign} {text}" if sign else text for sign, text in difference_lines(difference(before, after))]


@pytest.mark.parametrize("path", SPECS, ids=lambda path: path.stem)
def test_a_spec_is_the_same_as_itself_and_as_its_canonical_text(path):
    one = check_path(path)
    assert difference(one, one).same
    assert difference(one, check_text(one.text)).same


def test_any_two_of_the_shipped_specs_differ():
    read = [check_path(path) for path in SPECS[:12]]
    for index, one in enumerate(read):
        for other in read[index + 1 :]:
            assert not difference(one, other).same


SAME = {
    "other words for the same rule": ("layers { 0..3: full }", "layers { all: full }"),
    "a mix and its body": ("mix near = window(8)\nlayers { all: near }", "layers { all: window(8) }"),
    "the default said": ("layers { all: window(8, aligned = 1) }", "layers { all: window(8) }"),
    "rules in another order": ("layers { 0: full, 1..3: sink(1) }", "layers { 1..3: sink(1), 0: full }"),
    "an attribute that the model has already": ("layers { all: full { heads = 8, kv_heads = 4 } }", "layers { all: full }"),
}


@pytest.mark.parametrize("name", SAME)
def test_what_means_the_same_is_the_same(name):
    before, after = SAME[name]
    assert lines(spec(before), spec(after)) == []


DIFFERENT = {
    "a parameter": ("layers { all: window(8) }", "layers { all: window(9) }"),
    "an attribute": ("layers { all: full }", "layers { all: full { qk_norm = rms } }"),
    "positions": ("layers { all: full }", "layers { all: full { rope = none } }"),
    "head groups": ("layers { all: heads { 0: full, else: sink(1) } }", "layers { all: heads { 0..1: full, else: sink(1) } }"),
    "a sum and a chain": ("layers { all: full + conv(3) }", "layers { all: full >> conv(3) }"),
    "the order of a sum": ("layers { all: full + conv(3) }", "layers { all: conv(3) + full }"),
    "how a gate weighs": ("layers { all: gate(full, sink(1)) }", "layers { all: gate(full, sink(1), by = softmax) }"),
    "what a gate shares": ("layers { all: gate(full, sink(1)) }", "layers { all: gate(full, sink(1), shared = [q]) }"),
    "a condition": (
        "layers { all: when { length < 9: full, else: sink(1) } }",
        "layers { all: when { length <= 9: full, else: sink(1) } }",
    ),
    "who decides": (
        "layers { all: choose(per = head) { a: full, b: sink(1) } }",
        "layers { all: choose(per = layer) { a: full, b: sink(1) } }",
    ),
    "by which method": (
        "layers { all: choose(per = head) { a: full, b: sink(1) } }",
        "layers { all: choose(per = head, by = loss(data = tasks)) { a: full, b: sink(1) } }",
    ),
    "how a router is trained": (
        "layers { all: route(per = token, by = router(linear)) { a: full, b: sink(1) } }",
        "layers { all: route(per = token, by = router(linear, estimator = straight_through)) { a: full, b: sink(1) } }",
    ),
    "a budget's bounds": (
        "layers { all: window(budget(4..9, default = 8)) }",
        "layers { all: window(budget(4..16, default = 8)) }",
    ),
    "a budget's share": (
        "layers { all: window(budget(10%..90%, default = 50%)) }",
        "layers { all: window(budget(10%..80%, default = 50%)) }",
    ),
    "a recipe": ("layers { all: full }", "layers { all: full }\nrecipe { freeze = [all] }"),
    "a driver": (
        "layers { all: full }\ndriver retrieve { window = 8, top_k = 2 }",
        "layers { all: full }\ndriver retrieve { window = 8, top_k = 3 }",
    ),
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_whatever_means_something_else_is_seen(name):
    before, after = map(spec, DIFFERENT[name])
    assert not difference(before, after).same
    assert not difference(after, before).same
    assert lines(before, after)


@pytest.mark.parametrize(
    "setting", ["dim = 128", "context = 1024", "norm = rms(1e-5)", "ffn = gelu(64)", "heads = 4", "tie = true", "rope = 500000"]
)
def test_every_setting_of_the_model_is_compared(setting):
    key = setting.split(" = ")[0]
    inside = MODEL[MODEL.index("{") + 1 : MODEL.index("}")]
    kept = [one for one in inside.split(", ") if not one.strip().startswith(f"{key} ")]
    other = spec("layers { all: full }", f"model m {{ {', '.join(kept)}, {setting} }}\n")
    shown = lines(spec("layers { all: full }"), other)
    assert shown[0] == "model"
    assert f"+ {setting}" in shown


def test_layers_that_change_alike_stand_together_and_unchanged_rows_have_no_sign():
    before = spec("layers { 0: full, else: heads { 0: full, else: window(8) } }")
    after = spec("layers { 0: full, else: heads { 0: full, else: window(9) } }")
    assert lines(before, after)[:4] == [
        "layers 1..3",
        "  0  full  rope 10000",
        "- 1..3  window(8)  rope 10000",
        "+ 1..3  window(9)  rope 10000",
    ]


def test_layers_that_one_spec_lacks_are_shown_once():
    before, after = spec("layers { all: full }"), spec("layers { all: full }", MODEL.replace("layers = 4", "layers = 6"))
    assert "layers 4..5" in lines(before, after)
    assert "+ 0..3  full  rope 10000" in lines(before, after)
    assert "- 0..3  full  rope 10000" in lines(after, before)


def test_budgets_are_shown_as_they_are_written():
    before = spec("layers { all: window(budget(10%..90%, default = 50%)) }")
    after = spec("layers { all: window(budget(1000..9999, default = 2000, per = layer)) }")
    assert "- layers.all.window.n: 10%..90%, default 50%, tuned" in lines(before, after)
    assert "+ layers.all.window.n: 1000..9999, default 2000, tuned, per layer" in lines(before, after)


def test_cache_and_laws_are_compared():
    before, after = spec("layers { all: full }"), spec("layers { all: when { length < 9: window(4), else: window(8) } }")
    shown = lines(before, after)
    assert shown[shown.index("cache of one sequence") :][:5] == [
        "cache of one sequence",
        "- a token: 512 B",
        "+ a token: 0 B",
        "- whatever the length: 0 B",
        "+ whatever the length: 11,776 B",  # (8 + 15) slots x 4 layers x 4 heads x 16 numbers x 2 bytes
    ]
    assert "- decode: owed" in shown
    assert any(line.startswith("+ decode: not owed") for line in shown)


@pytest.fixture
def run(capsys, tmp_path):
    """Runs `attnc diff` on two bodies: (exit code, stdout, stderr)."""

    def diff(before, after, *arguments):
        paths = [tmp_path / "a.attn", tmp_path / "b.attn"]
        for path, body in zip(paths, (before, after), strict=True):
            path.write_text(MODEL + body + "\n")
        code = invoke(["diff", *map(str, paths), *arguments])
        captured = capsys.readouterr()
        return code, captured.out.replace(str(tmp_path), "."), captured.err

    return diff


def test_diff_says_nothing_of_equal_specs_and_ends_like_diff(run):
    assert run("layers { all: full }", "layers { 0..3: full }") == (0, "", "")


def test_diff_ends_with_one_where_specs_differ(run, golden):
    code, out, err = run(
        "layers { 0: full, else: window(8) }", "layers { 0: full, else: sink(4) | window(budget(4..16, default = 8)) }"
    )
    assert (code, err) == (1, "")
    golden("window_and_sink.txt", out)


def test_diff_is_data_too(run):
    code, out, _ = run("layers { all: full }", "layers { 0: sink(1), else: full }", "--json")
    report = json.loads(out)
    assert (code, report["schema_version"], report["same"]) == (1, 1, False)
    assert report["layers"] == [{"layers": [0], "before": ["0..3  full  rope 10000"], "after": ["0..3  sink(1)  rope 10000"]}]
    code, out, _ = run("layers { all: full }", "layers { all: full }", "--json")
    assert (code, json.loads(out)["same"]) == (0, True)


def test_a_wrong_spec_is_an_error_of_its_own(run):
    code, out, err = run("layers { all: full }", "layers { all: ful }")
    assert (code, out) == (3, "")
    assert "did you mean `full`?" in err


def test_diff_imports_neither_torch_nor_networkx_nor_jinja2():
    code = (
        f"import sys; from attnc.cli import invoke; invoke(['diff', {str(SPECS[0])!r}, {str(SPECS[1])!r}]);"
        "print([m for m in ('torch', 'networkx', 'jinja2') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.endswith("[]\n")
