"""`attnc verify`: right kernels pass, kernels broken by hand do not, and a process that dies or hangs is one wrong row."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from attnc import cli
from attnc.cli.schema import schema_of
from attnc.codegen.build import Options, build
from attnc.codegen.verify import verify as verifying
from attnc.codegen.verify.cases import FULL, Case, Union
from attnc.codegen.verify.cases import build as made
from attnc.codegen.verify.classes import IN_INTERPRETER, ON_GPU, cases
from attnc.codegen.verify.dense import reference
from attnc.codegen.verify.gradients import dense_gradients, outer_gradients
from attnc.codegen.verify.judge import judge, judge_gradients
from attnc.codegen.verify.report import VerifyReport
from attnc.compiler import check_text
from attnc.compiler.families import FAMILIES, Softmax

TEXT = """model small { vocab = 16, dim = 32, layers = 2, ffn = swiglu(16), norm = rms(1e-6), heads = 2, kv_heads = 1, head_dim = 16, rope = 10000 }
layers { 0: sink(2) | window(700), 1: full }
"""  # noqa: E501
PREFILL, DECODE, QUERIES, KEYS = (f"{skeleton}_0" for skeleton in FAMILIES["softmax"])
NAN = float("nan")
CLASSES = {"random", "large logits", "few keys", "block edges", "packed", "integers", "own heads"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("verify") / "small"
    build(check_text(TEXT, "small.attn"), path, Options())
    return path


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    code = cli.invoke(["verify", *map(str, words)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.triton
def test_a_built_folder_is_right(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, folder, "--device", "cpu", "--json")
    report = json.loads(out)
    assert (code, err, report["right"], report["schema_version"]) == (0, "", True, 1)
    assert report["machine"]["way"] == "interpreter"
    assert any("interpreter" in decision for decision in report["decisions"])
    assert [kernel["kernel"] for kernel in report["kernels"]] == [PREFILL, DECODE, QUERIES, KEYS]
    assert all(kernel["as_built"] and len(kernel["sha256"]) == 64 for kernel in report["kernels"])
    tried: dict[str, set[str]] = {}
    for row in report["rows"]:
        tried.setdefault(row["kernel"], set()).add(row["inputs"])
        assert row["error"] <= row["allowed"]
        assert row["torch_error"] is not None
    assert tried == {PREFILL: CLASSES | {"cached"}, DECODE: CLASSES | {"cached"}, QUERIES: CLASSES, KEYS: CLASSES}


def test_kernels_that_are_not_compared_are_named(tmp_path: Path) -> None:
    (tmp_path / "kernels").mkdir()
    for name in ("softmax_prefill_0", "softmax_decode_0", "softmax_other_1"):
        (tmp_path / "kernels" / f"{name}.py").write_text("")
    assert verifying.unseen(tmp_path, ["softmax_prefill_0", "softmax_decode_0"]) == ("softmax_other_1",)
    report = verifying.verify(tmp_path, "cpu", ["float32"], lambda _: None, command=fake("pass"))
    assert any("not compared: softmax_decode_0, softmax_other_1" in decision for decision in report.decisions)


@pytest.mark.triton
def test_both_halves_of_a_softplus_launch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Right as built; wrong with another constant in the half that sums masses."""
    layers = "layers { all: window(20) { score = softplus(exponent = 2) } }\n"
    text = TEXT.partition("layers {")[0].replace("heads = 2", "heads = 1") + layers
    build(check_text(text, "small.attn"), tmp_path / "built", Options())
    index = (tmp_path / "built" / "kernels" / "__init__.py").read_text("utf-8")
    assert index.count("softmax_prefill_") == 2
    names = ("softmax_prefill_0", "softmax_backward_queries_0")
    words = [word for name in names for word in ("--kernel", name)]
    code, out, _ = run(capsys, tmp_path / "built", "--device", "cpu", *words, "--json")
    report = json.loads(out)
    assert code == 0, out
    assert {"softmax_prefill_0", "softmax_prefill_1"} <= {kernel["kernel"] for kernel in report["kernels"]}
    assert {row["kernel"] for row in report["rows"]} == {"softmax_prefill_1", "softmax_backward_queries_1"}
    path = tmp_path / "built" / "kernels" / "softmax_prefill_0.py"
    old = "j <= i"
    text = path.read_text("utf-8")
    assert text.count(old) == 1
    path.write_text(text.replace(old, "j < i"), "utf-8")
    code, out, err = run(capsys, tmp_path / "built", "--device", "cpu", "--kernel", "softmax_prefill_0")
    assert code == 1
    assert "softmax_prefill_1" in err
    assert "the result is off by" in out


BROKEN = {
    "numbers": (
        (PREFILL, "LN2 = tl.constexpr(0.6931", "LN2 = tl.constexpr(0.6932", "log-sum-exp"),
        (DECODE, "near_block = tl.maximum(begin //", "near_block = 1 + tl.maximum(begin //", "error"),
        (KEYS, "return begin // BLOCK_Q, ", "return begin // BLOCK_Q + 1, ", "gradient of"),
        (QUERIES, "return grad * scale", "return grad", "gradient of q"),
    ),
    "no numbers": (
        (PREFILL, "tl.where(norm != 0.0, norm, 1.0))[:, None]", "norm)[:, None]", "NaN"),
        (DECODE, "def attend(", "def attend(*_, **__):\n    raise RuntimeError('no luck')\n\n\ndef other(", "no luck"),
        (QUERIES, "mask=stays & (d < D))", "mask=stays & (d < D - 1))", "NaN"),  # a column that nobody writes
    ),
}


@pytest.mark.triton
@pytest.mark.parametrize("name", BROKEN)
def test_kernels_broken_by_hand_fail(name: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(folder, tmp_path / "broken", ignore=shutil.ignore_patterns("__pycache__"))
    words = []
    for kernel, old, new, _ in BROKEN[name]:
        path = tmp_path / "broken" / "kernels" / f"{kernel}.py"
        text = path.read_text("utf-8")
        assert text.count(old) == 1, (kernel, old)
        path.write_text(text.replace(old, new), "utf-8")
        words += ["--kernel", kernel]
    code, out, err = run(capsys, tmp_path / "broken", "--device", "cpu", *words)
    assert code == 1
    assert "error[A402]" in err
    assert "not as they were built: " in err
    for kernel, _, _, reason in BROKEN[name]:
        assert kernel in err
        reasons = re.findall(rf"^{kernel} .*wrong\n(.*)$", out, re.M)
        assert any(reason in line for line in reasons), (kernel, out)


def test_whatever_is_wrong_is_seen() -> None:
    """A result that is right is judged right; one number off, NaN, or another type are not."""
    inputs = made(Case(Softmax(1, head_width=16, value_width=16), (Union(nears=(FULL,)), Union()), (40, 0, 1), (0, 0, 0)))
    o, lse = (x.float() for x in reference(inputs))
    assert judge(inputs, o, lse).wrong == ""
    for place, number, words in (
        ((3, 0, 5), NAN, "NaN"),
        ((3, 0, 5), o[3, 0, 5] + 1e-4, "error"),
        ((3, 1, 5), 0.1, "without keys"),
    ):
        wrong = o.clone()
        wrong[place] = number
        assert words in judge(inputs, wrong, lse).wrong
    for at, number, words in (((3, 0), NAN, "NaN"), ((3, 0), 9.0, "log-sum-exp"), ((3, 1), 0.0, "rows without keys")):
        wrong = lse.clone()
        wrong[at] = number
        assert words in judge(inputs, o, wrong).wrong
    assert "float64" in judge(inputs, o.double(), lse).wrong


def test_whatever_is_wrong_with_a_gradient_is_seen() -> None:
    case = Case(Softmax(1, head_width=16, value_width=16), (Union(nears=(FULL,)),), (40,), (0,), found=True)
    inputs = made(case)
    outer = outer_gradients(inputs)
    flat = {"q": dense_gradients(inputs, *outer, reference, torch.float64)["q"].float()}
    assert judge_gradients(inputs, flat, *outer)["q"].wrong == ""
    for number, words in ((1e-3, "off by"), (NAN, "NaN")):
        flat["q"][2, 0, 3] += number
        assert words in judge_gradients(inputs, flat, *outer)["q"].wrong


@pytest.mark.parametrize("sizes", [ON_GPU, IN_INTERPRETER], ids=["gpu", "interpreter"])
@pytest.mark.parametrize(
    "kernel", [Softmax(0, 0, 1, head_width=8), Softmax(2, 1, 1, group=3), Softmax(1, causal=False, group=128)]
)
def test_every_class_has_cases_for_every_kernel(kernel: Softmax, sizes) -> None:
    for skeleton in FAMILIES["softmax"]:
        found = cases(skeleton, kernel, [(Union(sink=5),)], [32, 64], torch.float32, "cpu", sizes)
        assert set(found) - {"cached"} == CLASSES
        assert ("cached" in found) == ("backward" not in skeleton)
        for several in found.values():
            assert several
            for case in several:
                assert all(size >= 0 for size in case.sizes)
                assert max(case.sizes) <= 16 or skeleton != "softmax_decode"
        packed = found["packed"][0].sizes
        assert 0 in packed
        assert 1 in packed
        edges = found["block edges"][0]
        assert {31, 32, 33} <= {*edges.sizes, *edges.totals}


ANSWERS = """
import json, os, sys, time
job = json.load(sys.stdin)
say = lambda **message: print(json.dumps(message), flush=True)
kernels = [{"kernel": "k", "skeleton": "s", "launches": ["A"], "sha256": "0" * 64, "as_built": True}]
say(machine={"device": "cpu", "way": "interpreter", "torch": "2", "triton": "3"}, kernels=kernels)
for name in ("one", "two", "three"):
    if ["k", "float32", name] not in job["done"]:
        say(begun=["k", "float32", name])
        if name == "two":
            DO
        say(row={"kernel": "k", "dtype": "float32", "inputs": name, "cases": 1, "verdict": "right"})
"""


def fake(what: str) -> list[str]:
    return [sys.executable, "-c", ANSWERS.replace("DO", what)]


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("os.kill(os.getpid(), 11)", "signal SIGSEGV"),
        ("sys.exit('illegal memory access')", "exit code 1: illegal memory access"),
        ("time.sleep(60)", "no answer within the time limit"),
    ],
)
def test_a_process_that_dies_or_hangs_is_one_wrong_row(what: str, reason: str, tmp_path: Path) -> None:
    heard: list[str] = []

    def tell(message) -> None:
        heard.extend([message.row.inputs] if message.row else [])

    report = verifying.verify(tmp_path, "cpu", ["float32"], tell, command=fake(what), seconds=1.5)
    assert [(row.inputs, row.verdict) for row in report.rows] == [("one", "right"), ("two", "wrong"), ("three", "right")]
    assert reason in report.rows[1].reason
    assert heard == ["one", "two", "three"]
    assert not report.right


def test_a_process_that_never_comes_to_a_kernel_is_no_verdict(tmp_path: Path) -> None:
    with pytest.raises(verifying.CannotRunError, match="exit code 1: no module"):
        verifying.verify(
            tmp_path, "cpu", ["float32"], lambda _: None, command=[sys.executable, "-c", "raise SystemExit('no module')"]
        )


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("{empty}",), 2, "not a built folder"),
        (("{folder}", "--device", "tpu"), 2, "there is no device tpu"),
        (("{folder}", "--device", "cpu", "--dtype", "float8"), 2, "there is no number type float8"),
        (("{folder}", "--device", "cpu", "--dtype", "bfloat16"), 2, "interpreter gets bfloat16 wrong"),
        (("{folder}", "--device", "cpu", "--kernel", "other"), 2, "has no kernel other"),
    ],
)
def test_a_slip_is_answered(
    words, code: int, said: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found, out, err = run(capsys, *(word.format(folder=folder, empty=tmp_path) for word in words))
    assert (found, out) == (code, "")
    assert said in err
    assert "help:" in err


def test_a_gpu_that_is_not_there_and_a_numpy_too_new(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if not torch.cuda.is_available():
        code, _, err = run(capsys, folder, "--device", "cuda")
        assert (code, "torch sees no GPU here" in err) == (4, True)
    monkeypatch.setattr(verifying, "version", lambda _: "2.4.1")
    code, _, err = run(capsys, folder, "--device", "cpu")
    assert code == 4
    assert "numpy 2.4.1" in err
    assert "pip install 'numpy<2.4'" in err


@pytest.mark.parametrize("version", ["1.26.4", "2.3.5"])
def test_other_numpys_are_fine(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verifying, "version", lambda _: version)
    assert verifying.numpy_too_new() is None


def test_a_folder_without_kernels_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = TEXT.partition("layers {")[0] + "layers { all: conv(4) }\n"
    build(check_text(text, "x.attn"), tmp_path / "x", Options())
    code, out, _ = run(capsys, tmp_path / "x", "--device", "cpu")
    assert code == 0
    assert "no generated kernels" in out


def test_the_report_has_a_schema() -> None:
    schema = schema_of("verify")
    assert set(schema["properties"]) == set(VerifyReport.__dataclass_fields__)
    assert {"error", "torch_error", "allowed", "verdict", "reason"} <= set(schema["$defs"]["Row"]["properties"])


def test_the_process_hears_which_way_to_run() -> None:
    environment: Callable[[str], object] = verifying.environment
    assert environment("cpu")["TRITON_INTERPRET"] == "1"  # type: ignore[index]
    assert environment("cuda")["TRITON_INTERPRET"] == "0"  # type: ignore[index]
