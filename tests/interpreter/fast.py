"""The emitted kernels of fast weights in Triton's interpreter beside plain torch, against plain torch in float64.

test_memory.py holds plain torch to the formula. test_kernels_interpreter.py runs this file.
"""

from __future__ import annotations

import functools
import tempfile
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from fast_cases import FORMS, check
from together import together

import attnc
from attnc.codegen.build import Options, build
from attnc.codegen.triton.compile import load
from attnc.codegen.triton.fast import emit_fast, emit_step
from attnc.codegen.triton.versions import INTERPRETS
from attnc.codegen.tune import fast_bench
from attnc.codegen.tune.fast import is_fast
from attnc.codegen.tune.messages import TuneJob
from attnc.codegen.tune.table import Try
from attnc.codegen.tune.tune import kernel_texts
from attnc.codegen.verify.net_cases import Case, compared, inputs, run
from attnc.codegen.verify.nets import NetSubject, net_rows
from attnc.codegen.verify.report import LIMIT
from attnc.codegen.verify.step_cases import Steps
from attnc.codegen.verify.step_cases import compared as step_errors
from attnc.compiler import check_text
from attnc.compiler.families import FastWeights
from attnc.compiler.fast_providers import unkept
from attnc.runtime import fast_kernels as fast_kernels_file
from attnc.runtime.fast import Teach
from attnc.runtime.fast_kernels import fast_kernels

if not INTERPRETS:
    pytest.fail("TRITON_INTERPRET=1 is not set", pytrace=False)

CHUNKED = [name for name, form in FORMS.items() if unkept(form) is None]
FOLDER = Path(tempfile.mkdtemp(prefix="attnc-"))


@functools.cache
def module(form: FastWeights) -> ModuleType:
    return load(emit_fast(form), FOLDER, f"fast_{abs(hash(form))}")


def kernels(form: FastWeights) -> Teach:
    return fast_kernels(module(form))


@pytest.mark.parametrize("name", CHUNKED)
def test_every_form_and_its_gradients(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sequences that begin and end within a chunk, one without tokens; two groups of chunks, the second of one sequence."""
    monkeypatch.setattr(fast_kernels_file, "GROUP", 1)
    check(Case(FORMS[name]), kernels(FORMS[name]))


@pytest.mark.parametrize("name", ["titans", "ttt_linear"])
def test_products_of_16_bit_inputs_round_as_the_measure_says(name: str) -> None:
    """Of chunks and, but for outputs, which Triton's interpreter cuts off, of single steps: operands of TF32, sums of fp32."""
    form, bf16 = FORMS[name], torch.bfloat16
    errors = compared(Case(form, (9, 3), (5, 0), dtype=bf16), kernels(form))
    steps = step_errors(Steps(form, chunk=3, begun=2, count=2, dtype=bf16), load(emit_step(form), FOLDER, f"step_{name}"))
    errors |= {what: pair for what, pair in steps.items() if what != "o"}
    assert all(theirs for _, theirs in errors.values()), errors
    assert not {what: pair for what, pair in errors.items() if not pair[0] <= 1.01 * pair[1]}, errors


FORMS_IN_BLOCKS = {
    "with a norm": replace(FORMS["titans"], hidden=40, norm=True, residual=True),
    "whose rows keep norms": replace(FORMS["titans_rows"], hidden=40),
}


@pytest.mark.parametrize("name", FORMS_IN_BLOCKS)
def test_blocks_of_hidden_units_that_wait_for_each_other(name: str) -> None:
    """Two programs for each head, three on the way back, the last half empty; chunks of two tiles."""
    form = FORMS_IN_BLOCKS[name]
    one = module(form)
    with together(one):
        one.BLOCKS["any", 4] = (16, 32, 4, 1)
        check(Case(form, sizes=(23, 2, 31), pasts=(19, 0, 3), chunk=20), fast_kernels(one))


def test_one_chunk_and_what_nobody_keeps() -> None:
    """A text that ends within its only chunk, one as long as it, none in the cache; the same bits every time."""
    case = Case(FORMS["linear"], (8, 3), (0, 0))
    given = inputs(case)
    one, other = (run(case, kernels(case.family), given, torch.float32) for _ in range(2))
    assert all(torch.equal(one[name], other[name]) for name in one)
    check(case, kernels(case.family))
    check(Case(FORMS["ttt_linear"], (41,), (19,), chunk=20), kernels(FORMS["ttt_linear"]))  # of two tiles each


STEPS = {
    "linear": Steps(FORMS["linear"]),
    "ttt_linear": Steps(FORMS["ttt_linear"], chunk=4),
    "titans": Steps(FORMS["titans"], chunk=18, begun=12, count=8),
    "gated": Steps(FORMS["gated"], chunk=3, count=4),
    "gated, read after": Steps(replace(FORMS["gated"], after_write=True, decay="token"), chunk=3, count=4),
    "token by token": Steps(replace(FORMS["linear"], weight_norm=True), chunk=1, count=2),
}


@pytest.mark.parametrize("name", STEPS)
def test_single_steps(name: str) -> None:
    """Through the end of a chunk: what nets return, and what the cache has learned after the last token."""
    module = load(emit_step(STEPS[name].family), FOLDER, f"step_{list(STEPS).index(name)}")
    errors = step_errors(STEPS[name], module)
    assert not {what: pair for what, pair in errors.items() if not pair[0] <= LIMIT * pair[1]}, errors


def test_a_context_steps_where_its_cache_lies(tmp_path: Path) -> None:
    """Single tokens through the ends of chunks and segments, behind a prompt that ends within a piece of one token."""
    net = "memory(linear, chunk = 2, lr = learned, momentum = learned) { qk_norm = l2 }"
    head = "model m { vocab = 32, dim = 16, layers = 1, heads = 1, ffn = none, norm = rms(1e-6) } "
    build(
        check_text(f"{head} mix m = {net} layers {{ all: context(m, segment = 4, persistent = 1) }}"),
        tmp_path / "m",
        Options(seed=0),
    )
    tokens = torch.arange(10).view(1, -1)
    found = {}
    for use, dtype in (("reference", torch.float64), ("torch", torch.float32), ("triton", torch.float32)):
        model = attnc.load(tmp_path / "m", "cpu", dtype, use)
        cache = model.new_cache(1, 10)
        with torch.no_grad():
            pieces = tokens.split([5, *[1] * 5], dim=1)
            found[use] = torch.cat([model(piece, cache=cache).logits for piece in pieces], dim=1).double()
    ours, theirs = (float((found[use] - found["reference"]).square().mean().sqrt()) for use in ("triton", "torch"))
    assert ours <= LIMIT * theirs


def test_tokens_that_nobody_differentiates_read_their_own_writes_by_a_kernel() -> None:
    """With norm and residual; with momentum and decay."""
    for form in (FORMS["ttt_linear"], replace(FORMS["linear"], after_write=True)):
        check(Case(form, (13, 0, 5), (5, 0, 0), back=False), kernels(form))


def test_attnc_tune_tries_blocks_of_memories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of chunks and of single steps: other blocks are right, and what is timed runs."""
    net = "memory(linear, chunk = 4, lr = learned) { qk_norm = l2 }"
    head = "model m { vocab = 16, dim = 16, layers = 1, heads = 1, ffn = none, norm = rms(1e-6) } "
    build(check_text(f"{head} layers {{ all: {net} }}"), tmp_path / "m", Options(seed=0))
    for name, value in {"CHUNKS": 2, "HEADS": 1, "CHUNK": 4, "SEQUENCES": 1}.items():
        monkeypatch.setattr(fast_bench, name, value)
    files = sorted(file for file in kernel_texts(tmp_path / "m") if is_fast(file))
    assert [file.rpartition("_")[0] for file in files] == ["fast_linear", "fast_step"]
    for file, other in zip(files, ((32, 16, 4, 1), (16, 32, 4, 1)), strict=True):
        tries = (Try(blocks=(16, 16, 4, 1)), Try(blocks=other))
        job = TuneJob(
            folder=str(tmp_path / "m"),
            file=file,
            device="cpu",
            dtype="float32",
            verified_in=("float32",),
            rounds=1,
            tries=tries,
        )
        bench = fast_bench.FastBench(job)
        bench.prepare(lambda: None)
        assert bench.wrong(other) == ""
        bench.launch()(other)


def test_float64_is_refused() -> None:
    case = Case(FORMS["plain"], dtype=torch.float64)
    with pytest.raises(ValueError, match="no float64"):
        run(case, kernels(case.family), inputs(case), torch.float64)


@pytest.mark.parametrize(
    ("form", "part", "other"),
    [
        ("linear", "+ by_moment * tl.load(slows", "+ 0.99 * by_moment * tl.load(slows"),
        ("linear_rows", "(by - state * pull", "(by - 0.99 * state * pull"),
    ],
)
def test_verify_says_what_is_wrong(form: str, part: str, other: str) -> None:
    """Of right kernels, and of ones that forget a little of the gradient of momentum, or of rows that keep their norms."""
    right = module(FORMS[form])
    text = Path(str(right.__file__)).read_text(encoding="utf-8")
    assert text.count(part) == 1
    broken = load(text.replace(part, other), FOLDER, f"{form}_broken")
    for file, verdicts in ((right, ["right", "right"]), (broken, ["right", "wrong"])):
        rows = list(net_rows(NetSubject("fast", file, ("Mixer",)), "float32", "cpu", lambda _: True))
        assert [row.verdict for row in rows] == verdicts, rows
        assert [row.inputs for row in rows] == ["random", "gradients"]
    assert "_grad is off by" in rows[1].reason
