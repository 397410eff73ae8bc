"""Kernels over lists of chosen keys in Triton's interpreter against dense attention in float64.

test_kernels_interpreter.py runs this file.
"""

from __future__ import annotations

import functools
import tempfile
from dataclasses import fields, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from kernel_cases import check, check_gradients

import attnc
from attnc.codegen.build import Options
from attnc.codegen.build import build as build_folder
from attnc.codegen.triton.compile import load
from attnc.codegen.triton.emit import emit
from attnc.codegen.triton.lists import emit_choose, emit_lists
from attnc.codegen.triton.versions import INTERPRETS
from attnc.codegen.tune.list_bench import ListBench
from attnc.codegen.tune.lists import FILES, is_list, list_candidates
from attnc.codegen.tune.messages import TuneJob
from attnc.codegen.tune.table import Try
from attnc.codegen.tune.tune import kernel_texts
from attnc.codegen.verify.cases import Case, Inputs, Union, build, poisoned
from attnc.codegen.verify.gradients import gradients, outer_gradients
from attnc.codegen.verify.list_rows import ListSubject, by_heads, list_rows
from attnc.codegen.verify.lists import Listed, lists_of
from attnc.compiler import check_text, families
from attnc.compiler.families import FAMILIES, Softmax
from attnc.compiler.families import Listed as Kernel
from attnc.runtime.asking import asking
from attnc.runtime.intervals import HeadGroup, Near
from attnc.runtime.list_call import Call, attend
from attnc.runtime.list_choice import chosen_by_kernels
from attnc.runtime.pooled import run_keys
from attnc.runtime.selecting import Asked, choose
from attnc.runtime.selector import Selector
from attnc.runtime.spans import Numbers

if not INTERPRETS:
    pytest.fail("TRITON_INTERPRET=1 is not set", pytrace=False)

FOLDER = Path(tempfile.mkdtemp(prefix="attnc-"))
UNBOUNDED = 2**30


@functools.cache
def kernel(skeleton: str, form: Kernel) -> ModuleType:
    return load(emit_lists(skeleton, form), FOLDER, f"emitted_{skeleton}_{abs(hash(form))}")


def run(case: Case, each_head: bool = False, **options: object) -> tuple[Inputs, torch.Tensor, torch.Tensor]:
    """Memory that nobody wrote is NaN."""
    module = kernel("lists_attend", Kernel(case.kernel, case.unions[0].unit, each_head))
    inputs = build(case)
    lists = lists_of(case, case.unions)
    with poisoned():
        o, lse = module.attend(*inputs.arguments, lists, **options)
    return inputs, o, lse


NEAR = Union(sink=3, nears=((1, 0, 5, 0),))


def narrow(*numbers: int, group: int = 2, **words: Any) -> Softmax:
    return Softmax(*numbers, head_width=16, value_width=16, group=group, **words)


CASES = {  # beside what, keys of a unit, queries of a row, new tokens, past, splits
    "blocks for blocks of queries": (replace(narrow(1), head_width=20, value_width=24), NEAR, 16, 8, (13, 0, 20), (5, 3, 0), 1),
    "pages of a token": (narrow(1, group=3), NEAR, 5, 1, (3, 1), (20, 0), 4),
    "columns for all queries": (narrow(1), NEAR, 1, UNBOUNDED, (7, 2), (0, 5), 1),
    "nothing but lists": (narrow(0, group=1), Union(), 16, 4, (9,), (30,), 4),
    "a stride beside": (narrow(1, 1), Union(0, ((1, 0, 2, 0),), (7,)), 16, 8, (25,), (2,), 1),
    "queries by units": (narrow(1, group=2), NEAR, 16, 1, (17, 0, 20), (3, 1, 0), 1),
    "cap and sink logit": (narrow(1, cap=True, sink_logit=True), NEAR, 16, 8, (19,), (0,), 4),
}


@pytest.mark.parametrize("name", CASES)
def test_attention_reads_each_listed_and_shown_key_once(name):
    form, rest, unit, many, sizes, pasts, splits = CASES[name]
    unions = tuple(Listed(rest, unit, many, salt) for salt in range(2))
    case = Case(form, unions, sizes, pasts, cache=name != "blocks for blocks of queries", dtype=torch.float16)
    check(*run(case, splits=splits))


@pytest.mark.parametrize(
    ("name", "each_head"),
    [
        ("blocks for blocks of queries", False),
        ("blocks for blocks of queries", True),
        ("columns for all queries", True),
        ("queries by units", False),
    ],
)
def test_gradients_over_lists_are_as_near_to_float64_as_torch(name, each_head):
    """Where a tile of queries stands in one row or is gathered from several, and by units; lists for each head differ."""
    form, rest, unit, many, sizes, pasts, _ = CASES[name]
    form = Softmax(1, head_width=16, value_width=16, group=2, sink_logit=unit == 16, cap=unit == 1)
    unions, dtype = tuple(Listed(rest, unit, many, salt) for salt in range(2)), torch.float16 if many == 1 else torch.float32
    case = Case(form, unions, sizes, pasts, dtype, cache=True)
    case, sets = by_heads(case, 2 if each_head else 1)
    made, inputs = families.Listed(form, unit, each_head), build(case)
    files = [kernel(skeleton, made) for skeleton in ("lists_attend", "lists_backward")]
    files[1].ROOM = 2**14  # so that lists of single queries go in several chunks

    def launch(q, part, rows, form, batch, scale, cap, sink):
        return attend(q, sink, Call(*files, part, rows, form, batch, scale, cap, lists_of(case, sets)))

    given = outer_gradients(inputs)
    check_gradients(inputs, gradients(launch, inputs, *given), *given)


MEANS = Selector(4, keys="mean", span=4, step=4)
CHOICES = {
    "means of blocks for blocks of queries": (replace(MEANS, asks="block", many=8, top_k=3), (21, 0, 30)),
    "own keys folded": (Selector(4, shared="head", fold="sum", top_k=2, overlap="excluded"), (11,)),
    "shown units counted": (replace(MEANS, keys="bounds", shared="layer", heads="max", top_k=4, overlap="counted"), (14, 3)),
    "shares of coarser runs": (
        replace(MEANS, unit=8, step=2, score="softmax", lse=(8, 4), top_k=2, asks="block", many=5), (26, 7)),
    "tokens, more than fit at once": (Selector(1, heads="min", top_k=9, asks="block", many=16), (32,)),
}  # fmt: skip


@pytest.mark.parametrize("name", CHOICES)
def test_kernels_keep_what_plain_torch_keeps(name):
    """Of integers, whose scores are exact and often alike; shares of a mass are rounded, so two that are as near may change."""
    selector, sizes = CHOICES[name]
    words = {field.name: getattr(selector, field.name) for field in fields(families.Selector)}
    form = Softmax(1, head_width=16, value_width=16, group=2)
    module = load(emit_choose(families.Selector(**words), form), FOLDER, f"choose_{abs(hash(name))}")
    if selector.unit == 1:
        module.MOST_UNITS = 16  # of a program
    case = Case(form, (NEAR,) * 2, sizes, (0,) * len(sizes), integers=True)
    inputs, total = build(case), 0
    groups = (HeadGroup(0, 1, 3, (Near(back=5),)),)
    parts, scale = (inputs.batch.keys(torch.cat(inputs.keys), torch.cat(inputs.values)),), 0.25
    with poisoned():
        found = chosen_by_kernels(module, selector, inputs.q, parts, groups[0], inputs.form, inputs.batch, scale, None, None)
    for s, queries in enumerate(inputs.q.split(sizes)):
        keys = run_keys(selector, inputs.keys[s].transpose(0, 1), 0, 1, s, inputs.batch, None)
        rows = asking(selector, queries.transpose(0, 1), 0, False, None)
        asked = Asked(0, sizes[s], sizes[s], Numbers.of(groups[0], sizes[s], True), scale, None)
        lists = choose(selector, rows, keys, asked)
        for c, row in ((c, row) for c in range(lists.count.shape[0]) for row in range(lists.count.shape[1])):
            count, at = int(lists.count[c, row]), int(found.row_begin[s]) + row
            assert int(found.count[c, at]) == count
            assert found.index[c, at, :count].tolist() == lists.index[c, row, :count].tolist(), (s, c, row)
            total += count
    assert total > 5


def test_the_best_are_exact_among_scores_of_all_sizes_and_ties():
    """Rows of wide, equal, signed, endless and small scores; more units than a warp holds numbers."""
    drawn, units, want = torch.Generator().manual_seed(0), 70, 9
    wide = torch.randn(units, generator=drawn) * torch.exp(20 * torch.randn(units, generator=drawn))
    few = torch.randint(-1, 2, (units,), generator=drawn) * torch.tensor([0.0, 1.0]).repeat(units // 2)
    endless = torch.where(wide > 1.0, float("inf"), torch.where(wide < -1.0, float("-inf"), wide))
    scores = torch.stack([wide, few, torch.full((units,), -2.5), endless, wide.abs() * 1e-30]).float()
    module = load(emit_choose(families.Selector(1, top_k=want), narrow(1)), FOLDER, "best")
    rows = len(scores)
    index, counts = torch.zeros(rows, want, dtype=torch.int32), torch.zeros(rows, dtype=torch.int32)
    places = torch.tensor([0, rows]), torch.tensor([units]), torch.tensor([0])
    numbers = rows, rows, 1, 0, rows, units, units, want, 0
    row, wanted = torch.zeros(1, 1, 5, dtype=torch.int32), torch.tensor([want], dtype=torch.int32)
    module.keep_kernel[(rows, 1)](scores, index, counts, wanted, row, *places, *numbers, **module.keep_settings(units))
    for found, own in zip(index.tolist(), scores, strict=True):
        assert found == sorted(sorted(range(units), key=lambda at: (-float(own[at]), at))[:want])


MODEL = """model m { vocab = 32, dim = 32, layers = 4, heads = 2, kv_heads = 1, head_dim = 16, ffn = none, norm = rms(1e-6) }
layers {
  0: block_local(4) | routed(blocks(4), top_k = 2, keys = mean, dense_queries = first(6))
  1: block_local(3) | routed(blocks(4), top_k = 1, keys = mean, from = previous)
  2: sink(1) | window(3) | routed(tokens, threshold = 0.2, per = head)
  3: routed(blocks(2), top_k = 2, keys = mean, refresh = [every(2), cosine(0.2)], on_refresh = dense)
}
"""
LENT = """model m { vocab = 32, dim = 32, layers = 1, heads = 2, kv_heads = 1, head_dim = 16, ffn = none, norm = rms(1e-6) }
mix compressed = summary(4, stride = 2)
layers {
  all: gate(compressed, sink(2) | routed(blocks(2), top_k = 2, keys = compressed, score = softmax, fold = sum), shared = [q])
}
"""


SEVERAL = (
    MODEL[: MODEL.index("layers {")].replace("layers = 4", "layers = 1").replace("heads = 2", "heads = 1")
    + """layers {
  all: when { phase == prefill: sink(1) | window(3) | routed(columns, top_k = 2, queries = last(4), score = softmax, per = head)
    | routed(diagonals, top_k = 3, queries = last(4), score = softmax, per = head),
    else: routed(tokens, top_k = 3, score = softmax) | routed(blocks(3), top_k = 2, keys = minmax, per = head) }
}
"""
)
BESIDE = LENT.replace("compressed, sink(2)", "sink(3) | window(6, aligned = 3) | compressed { sink_logit = learned }, sink(2)")


@torch.no_grad()
@pytest.mark.parametrize("text", [MODEL, BESIDE, SEVERAL], ids=["choices that hold", "lent summaries beside tokens", "several"])
def test_a_built_model_reads_on_kernels_what_plain_torch_reads(text, tmp_path):
    """A prefill of rows of two lengths and steps, between which a choice may hold: by lists of kernels, and of PyTorch."""
    build_folder(check_text(text), tmp_path / "built", Options(seed=0))
    texts = torch.randint(0, 32, (2, 9), generator=torch.Generator().manual_seed(1))

    def read(way: str, dtype: torch.dtype) -> torch.Tensor:
        model = attnc.load(tmp_path / "built", dtype=dtype, use=way)
        cache = model.new_cache(2, 16)
        outputs = [model(texts[:, :7], cache=cache, lengths=[5, 7]).logits]
        outputs += [model(one, cache=cache).logits for one in texts[:, 7:].split(1, dim=1)]
        return torch.cat(outputs, dim=1).double()

    exact = read("reference", torch.float64)
    ours, theirs = (float((read(way, torch.float32) - exact).square().mean().sqrt()) for way in ("triton", "torch"))
    assert 0 < ours <= 1.5 * theirs


@pytest.mark.parametrize(
    ("guard", "distances", "beside"),
    [(" & (keep(numbers, i, j) == 0)", False, 0), ("(i - j)", True, 0), (" // BESIDE", False, 4)],
)
def test_attnc_verify_finds_a_kernel_that_reads_other_keys_than_are_listed(guard, distances, beside):
    """One that an interval shows twice, one at another distance, one that another list has."""
    text = emit_lists("lists_attend", families.Listed(narrow(1), 8, True, distances, beside))
    wrong = text.replace(guard, "(i - j + 1)" if distances else "")
    assert wrong != text
    for made, verdict in ((text, "right"), (wrong, "wrong")):
        subject = ListSubject("lists_attend_0", load(made, FOLDER, f"verified_{verdict}"), ())
        (row,) = list_rows(subject, "float16", "cpu", lambda key: key[2] == "steps")
        assert row.verdict == verdict, row


@pytest.mark.parametrize("skeleton", FAMILIES["softmax"])
def test_attnc_verify_finds_a_kernel_that_reads_chunks_before_they_are_whole(skeleton):
    form = narrow(1, group=2, chunks=(4, 2))
    texts = {name: emit(name, form) for name in FAMILIES["softmax"]}
    early = {name: text.replace("end - 2, 0", "end, 0").replace("j * 2 + 3", "j * 2") for name, text in texts.items()}
    for made, verdict in ((texts, "right"), (early, "wrong")):
        four = tuple(load(text, FOLDER, f"{name}_{verdict}") for name, text in made.items())
        subject = ListSubject(f"{skeleton}_0", four[FAMILIES["softmax"].index(skeleton)], (), None, four)
        (row,) = list_rows(subject, "float16", "cpu", lambda key: key[2] == "steps")
        assert row.verdict == verdict, row


def test_a_compiled_model_leaves_choices_to_torch(tmp_path):
    """Kernels over lists are no operators that a graph could hold."""
    head = "model m { vocab = 64, dim = 32, layers = 1, heads = 4, kv_heads = 2, head_dim = 16, ffn = none, norm = rms(1e-6) }"
    text = head + " layers { all: block_local(16) | routed(blocks(16), top_k = 2, keys = mean) }"
    build_folder(check_text(text), tmp_path / "built", Options(seed=0))
    tokens = torch.randint(0, 64, (1, 40), generator=torch.Generator().manual_seed(1))
    planned, plain = (attnc.load(tmp_path / "built", use=way) for way in ("triton", "torch"))
    with torch.no_grad():
        found = torch.compile(planned, fullgraph=True, backend="eager")(tokens).logits
        assert torch.equal(found, plain(tokens).logits)


def test_attnc_tune_tries_blocks_of_each_kernel_over_lists(tmp_path):
    """The default is right, smaller tiles are others, and one that is made wrong is found."""
    build_folder(check_text(LENT), tmp_path / "built", Options(seed=0))
    files = [file for file in kernel_texts(tmp_path / "built") if is_list(file)]
    assert {file.rpartition("_")[0] for file in files} == set(FILES)
    file = next(file for file in files if file.startswith("lists_choose"))
    default, other = (16, 16, 4, 1), (32, 16, 4, 1)
    assert other in list_candidates(default)
    tries = (Try(blocks=default), Try(blocks=other))
    job = TuneJob(
        folder=str(tmp_path / "built"),
        file=file,
        device="cpu",
        dtype="float32",
        verified_in=("float32",),
        rounds=1,
        tries=tries,
    )
    bench = ListBench(job)
    bench.prepare(lambda: None)
    bench.trials = bench.trials[:1]
    assert bench.wrong(other) == ""
    assert bench.module.BLOCKS["any", 4] == default
    keep = bench.module.keep_settings
    bench.module.keep_settings = lambda units: {**keep(units), "FOLD": "max"}
    assert bench.wrong(other) != "", "scores of runs add up in this spec"
