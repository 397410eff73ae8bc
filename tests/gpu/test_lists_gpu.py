"""Kernels over lists of chosen keys on a GPU: attention beside dense attention in float64, choices beside plain torch's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from kernel_cases import check, check_gradients

import attnc
from attnc.codegen import kernels
from attnc.codegen.build import Options
from attnc.codegen.build import build as build_folder
from attnc.codegen.triton.compile import load
from attnc.codegen.triton.lists import emit_choose, emit_lists
from attnc.codegen.verify.cases import Case, Union, build, poisoned
from attnc.codegen.verify.gradients import gradients, outer_gradients
from attnc.codegen.verify.list_rows import GOES_BACK, READS, ListSubject, by_heads, list_rows, made_alike
from attnc.codegen.verify.lists import Listed, lists_of
from attnc.compiler import check_path, check_text, families, graph, passes
from attnc.compiler.families import Softmax
from attnc.compiler.graph import Mix
from attnc.runtime.asking import asking
from attnc.runtime.batch import lay_out
from attnc.runtime.cache import Cache, Growing, LayerPlan, Slots
from attnc.runtime.intervals import Form, HeadGroup, Near, rows
from attnc.runtime.list_call import Call, attend
from attnc.runtime.list_choice import alone, chosen_by_kernels
from attnc.runtime.pooled import Pooled, keep, run_keys
from attnc.runtime.selecting import Asked, choose
from attnc.runtime.selector import Selector
from attnc.runtime.softmax import head_scale
from attnc.runtime.spans import Numbers

pytestmark = pytest.mark.gpu

UNBOUNDED = 2**30
NEAR = Union(sink=5, nears=((1, 0, 90, 0),))
WIDE = Softmax(1, head_width=128, value_width=128, group=4)
CASES = {  # kernel, keys of a unit, queries of a row, new tokens, past
    "blocks": (WIDE, 64, 128, (700, 0, 300), (130, 3, 0)),
    "tokens": (WIDE, 64, 1, (260,), (900,)),
    "tokens, many heads": (replace(WIDE, group=16), 64, 1, (200, 1, 70), (500, 3, 0)),
    "tokens, narrow": (replace(WIDE, head_width=64, value_width=48), 32, 1, (150, 0, 90), (40, 7, 0)),
    "pages": (WIDE, 16, 1, (200, 1), (300, 500)),
    "columns": (replace(WIDE, head_width=64, value_width=64), 1, UNBOUNDED, (600,), (50,)),
    "decode": (WIDE, 64, 1, (1, 1, 1), (3000, 70, 0)),
    "decode pages": (replace(WIDE, group=7, head_width=80, value_width=80), 16, 1, (3, 2), (2500, 1)),
    "cap": (replace(WIDE, head_width=64, value_width=64, cap=True, sink_logit=True), 32, 32, (500,), (0,)),
}


Row = tuple[str, str, dict[str, object], torch.dtype]
Record = Callable[..., None]


def constants(module: ModuleType) -> dict[str, object]:
    """What a kernel file was made for."""
    names = ("HEAD_WIDTH", "VALUE_WIDTH", "GROUP", "MEMBERS", "UNIT", "CAP", "SINK_LOGIT", "DISTANCES", "BESIDE")
    found = {name: getattr(module, name) for name in names if hasattr(module, name)}
    return found | ({"SELECTOR": repr(module.SELECTOR)} if hasattr(module, "SELECTOR") else {})


def row_of(skeleton: str, text: str, module: ModuleType, dtype: torch.dtype) -> Row:
    """What names a kernel file in docs/gpu.json."""
    return skeleton, kernels.digest(text, "sm_90"), constants(module), dtype


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_attention_over_lists_is_as_near_to_float64_as_torch(name, dtype, tmp_path, record: Record):
    """Query by query means of integers are exact; unit by unit parts are rounded, and only a value that is found is."""
    form, unit, many, sizes, pasts = CASES[name]
    text = emit_lists("lists_attend", families.Listed(form, unit, False))
    module = load(text, tmp_path, f"lists_{unit}")
    row = row_of("lists_attend", text, module, dtype)
    record(*row)
    module.ROOM = 2**22  # so that lists of single queries go in several chunks
    case = Case(
        form, tuple(Listed(NEAR, unit, many, salt) for salt in range(2)), sizes, pasts, dtype, cache=True, device="cuda"
    )
    parted = module.BY_UNITS and many == 1 and dtype.itemsize == 2 and max(sizes) > module.DECODE_TOKENS
    for one in (case, replace(case, found=True), replace(case, integers=True, magnitude=0.0)):
        inputs = build(one)
        lists = lists_of(one, one.unions)
        for by_units in (True, False) if parted and not one.integers else (False,):
            module.BY_UNITS = by_units
            with poisoned():
                o, lse = module.attend(*inputs.arguments, lists)
            record(*row, check(inputs, o, lse))
            again, _ = module.attend(*inputs.arguments, lists)
            assert torch.equal(again, o), "the same twice"


@pytest.mark.parametrize("name", ["blocks", "tokens", "columns", "cap", "heads"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_gradients_over_lists_are_as_near_to_float64_as_torch(name, dtype, tmp_path, record: Record):
    each_head = name == "heads"
    form, unit, many, sizes, pasts = CASES["blocks" if each_head else name]
    made = families.Listed(form, unit, each_head)
    texts = {skeleton: emit_lists(skeleton, made) for skeleton in ("lists_attend", "lists_backward")}
    files = [load(text, tmp_path, skeleton) for skeleton, text in texts.items()]
    for file in files:
        file.ROOM = 2**22  # so that lists of single queries go in several chunks
    row = row_of("lists_backward", texts["lists_backward"], files[1], dtype)
    record(*row)
    unions = tuple(Listed(NEAR, unit, many, salt) for salt in range(2))
    case = Case(form, unions, sizes, pasts, dtype, cache=True, device="cuda")
    case, sets = by_heads(case, form.group if each_head else 1)
    inputs, lists = build(case), lists_of(case, sets)

    def launch(q, part, rows, form, batch, scale, cap, sink):
        return attend(q, sink, Call(*files, part, rows, form, batch, scale, cap, lists))

    given = outer_gradients(inputs)
    found = gradients(launch, inputs, *given)
    for errors in check_gradients(inputs, found, *given).values():
        record(*row, errors)
    again = gradients(launch, inputs, *given)
    assert all(torch.equal(found[name], again[name]) for name in found), "the same twice"


@torch.no_grad()
def test_a_captured_step_goes_on_while_the_cache_grows(tmp_path):
    """Lists are made and read by a graph, without a word from the host."""
    one = Selector(64, keys="mean", span=64, step=64, top_k=4, held="routed")
    words = {field.name: getattr(one, field.name) for field in fields(families.Selector)}
    choosing = load(emit_choose(families.Selector(**words), WIDE), tmp_path, "choose")
    reading = load(emit_lists("lists_attend", families.Listed(WIDE, 64, False)), tmp_path, "read")
    group, form, length = HeadGroup(0, 1, 5, (Near(back=90),)), Form(1, 0, 0, True), 1024
    pooled = Pooled("routed.mean.0", 0, 1, 128, 64, 64)
    cache = Cache([LayerPlan((Slots(0, 1, Growing()),), 128, 128, pooled=(pooled,))], 2, length, torch.bfloat16, "cuda")
    layer = cache.layers[0]
    drawn = torch.Generator("cuda").manual_seed(0)
    q = torch.zeros(2, 8, 128, dtype=torch.bfloat16, device="cuda")
    keys, values = (torch.randn(2 * 700, 2, 128, device="cuda", generator=drawn).bfloat16() for _ in "kv")
    text = lay_out((700, 700), (0, 0), (700, 700), "prefill", (2, 700), q.device, cache.lengths)
    layer.write(keys, values, text)
    keep(layer, (text.keys(keys, values),), text)
    past = torch.full((2,), 300, device="cuda")

    def step():
        batch = lay_out((1, 1), (699, 699), (700, 700), "decode", (2, 1), q.device, past)
        part = replace(layer.part(batch, written=True), stored=(past + 1).int())
        lists = chosen_by_kernels(choosing, one, q, (part,), group, form, batch, 0.09, None, layer)
        table, scale = rows(alone(group), form, batch), head_scale(0.09, 8, q.device)
        return reading.attend(q, part, table, form, batch, scale, None, None, lists)[0]

    for _ in range(2):
        step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for length in (90, 300, 650):
        q.copy_(torch.randn(q.shape, device="cuda", generator=drawn))
        past.fill_(length)
        graph.replay()
        assert torch.equal(captured, step()), length


MEANS = Selector(64, keys="mean", span=64, step=64, top_k=8)
CHOICES = {
    "blocks": replace(MEANS, asks="block", many=128),
    "tokens": replace(MEANS, overlap="counted"),
    "heads": replace(MEANS, shared="head", keys="bounds", overlap="excluded"),
    "folded": replace(MEANS, span=32, step=16, score="softmax", lse=(64, 64), top_k=6),
    "own": Selector(1, shared="layer", heads="max", top_k=100),
    "passes": replace(MEANS, unit=16, span=16, step=16, top_k=20),
    "shares of single queries": replace(MEANS, span=32, step=16, score="softmax", fold="sum", top_k=6),
}


@pytest.mark.parametrize("name", CHOICES)
def test_what_is_kept_has_the_best_scores(name, tmp_path, record: Record):
    """Of integers the units themselves; of others scores that differ by no more than rounding from those that torch keeps."""
    selector, sizes = CHOICES[name], (1500, 700)
    words = {field.name: getattr(selector, field.name) for field in fields(families.Selector)}
    text = emit_choose(families.Selector(**words), WIDE)
    module = load(text, tmp_path, f"choose_{name}")
    row = row_of("lists_choose", text, module, torch.bfloat16)
    record(*row)
    module.MOST_UNITS = 64 if name == "passes" else module.MOST_UNITS
    group = HeadGroup(0, 1, 5, (Near(back=90),))
    case = Case(WIDE, (NEAR,) * 2, sizes, (0, 0), torch.bfloat16, integers=selector.score == "dot", device="cuda")
    inputs = build(case)
    parts = (inputs.batch.keys(torch.cat(inputs.keys), torch.cat(inputs.values)),)
    with poisoned():
        found = chosen_by_kernels(module, selector, inputs.q, parts, group, inputs.form, inputs.batch, 0.09, None, None)
    differ = total = 0
    for s, queries in enumerate(inputs.q.split(sizes)):
        keys = run_keys(selector, inputs.keys[s].transpose(0, 1), 0, 1, s, inputs.batch, None)
        rows = asking(selector, queries.transpose(0, 1), 0, False, None)
        lists = choose(selector, rows, keys, Asked(0, sizes[s], sizes[s], Numbers.of(group, sizes[s], True), 0.09, None))
        count, at = lists.count, int(found.row_begin[s])
        assert torch.equal(found.count[:, at : at + count.shape[1]], count)
        inside = torch.arange(lists.index.shape[2], device="cuda") < count.unsqueeze(-1)
        own = found.index[:, at : at + count.shape[1], : lists.index.shape[2]]
        differ += int(((own != lists.index) & inside).any(-1).sum())
        total += count.numel()
    assert differ <= (0 if case.integers else 0.01 * total), f"{differ} of {total} rows"
    record(*row, (differ / total, 0.0))


SPECS = Path(__file__).parents[2] / "specs"
SHIPPED = ("nsa", "sala", "moba", "quest", "xattention", "seer", "dsa", "recycled", "minference", "sparse-frontier")


@pytest.mark.parametrize("name", SHIPPED)
def test_the_kernels_of_a_shipped_spec_are_right(name, tmp_path, record: Record):
    """As `attnc verify` compares those of a built folder, in bf16."""
    spec = check_path(SPECS / f"{name}.attn")
    mixes = [node for _, node in passes.run(graph.build(spec)).nodes() if isinstance(node, Mix)]
    texts = {}
    for mix in mixes:
        texts |= kernels.list_texts(mix, spec.model) if kernels.reads_lists(mix, spec.model) else {}
    modules = {text: load(text, tmp_path, f"{file}_{number}") for number, (text, file) in enumerate(texts.items())}
    assert modules
    for number, (text, file) in enumerate(texts.items()):
        alike = (modules[one] for one in texts if texts[one] == READS and made_alike(modules[one], modules[text]))
        subject = ListSubject(f"{file}_{number}", modules[text], (), next(alike) if file == GOES_BACK else None)
        row = row_of(file, text, modules[text], torch.bfloat16)
        record(*row)
        for one in list_rows(subject, "bfloat16", "cuda", lambda _: True):
            assert one.verdict == "right", (one, constants(modules[text]))
            record(*row, (one.error, one.torch_error))


MODEL = """model m { vocab = 64, dim = 64, layers = 4, heads = 8, kv_heads = 2, head_dim = 64, ffn = none, norm = rms(1e-6) }
mix compressed = summary(32, stride = 16)
layers {
  0: block_local(16) | routed(blocks(16), top_k = 4, dense_queries = last(40))
  1: block_local(32) | routed(blocks(16), top_k = 3, keys = mean, from = previous)
  2: routed(blocks(16), top_k = 4, keys = mean, refresh = [every(3), cosine(0.2)], on_refresh = dense)
  3: routed(tokens, top_k = 20, score = softmax, per = head)
}
"""
BRANCHES = (
    MODEL[: MODEL.index("layers {")]
    + """layers {
  all: gate(compressed, sink(8) | routed(blocks(16), top_k = 4, keys = compressed, score = softmax, fold = sum), shared = [q])
}
"""
)


BESIDE = BRANCHES.replace(
    "compressed, sink(8)", "sink(5) | window(48, aligned = 16) | compressed { sink_logit = learned }, sink(8)"
)
SEVERAL = (
    MODEL[: MODEL.index("mix")].replace("layers = 4", "layers = 2")
    + """layers {
  0: when { phase == prefill: sink(9) | window(30)
    | routed(columns, top_k = 20, queries = last(16), score = softmax, per = head)
    | routed(diagonals, top_k = 30, queries = last(16), score = softmax, per = head), else: full }
  1: routed(tokens, top_k = 12, score = softmax) | routed(blocks(16), top_k = 2, keys = minmax, per = head, overlap = counted)
}
"""
)


def test_gradients_of_summaries_are_as_near_to_float64_as_torch(tmp_path):
    """Of a summary by itself beside chosen blocks, and of one beside tokens."""
    for number, text in enumerate((BRANCHES, BESIDE)):
        build_folder(check_text(text), tmp_path / f"built{number}", Options(seed=0))
        tokens = torch.randint(0, 64, (2, 300), generator=torch.Generator().manual_seed(1)).cuda()

        def found(way, dtype, folder=tmp_path / f"built{number}", tokens=tokens):
            model = attnc.load(folder, device="cuda", dtype=dtype, use=way)
            logits = model(tokens, lengths=[200, 300]).logits
            given = torch.randn(logits.shape, generator=torch.Generator().manual_seed(2)).to(logits)
            (logits * given).sum().backward()
            return {name: one.grad.double() for name, one in model.named_parameters() if one.grad is not None}

        exact, ours, theirs = found("reference", torch.float64), found("triton", torch.float32), found("torch", torch.float32)

        def error(own, exact=exact):
            return sum(float((own[name] - exact[name]).square().sum() / exact[name].square().sum()) for name in exact) ** 0.5

        assert ours.keys() == exact.keys()
        assert 0 < error(ours) <= 1.5 * error(theirs)


@torch.no_grad()
@pytest.mark.parametrize("text", [MODEL, BRANCHES, BESIDE, SEVERAL], ids=["layers", "branches", "summaries beside", "several"])
def test_a_built_model_reads_what_kernels_choose(text, tmp_path):
    """A prefill of rows of two lengths and steps, between which a choice holds, beside float64 and PyTorch's own."""
    build_folder(check_text(text), tmp_path / "built", Options(seed=0))
    tokens = torch.randint(0, 64, (2, 300), generator=torch.Generator().manual_seed(1)).cuda()

    def read(way, dtype):
        model = attnc.load(tmp_path / "built", device="cuda", dtype=dtype, use=way)
        cache = model.new_cache(2, 300)
        outputs = [model(tokens[:, :290], cache=cache, lengths=[200, 290]).logits]
        outputs += [model(one, cache=cache).logits for one in tokens[:, 290:].split(1, dim=1)]
        return torch.cat(outputs, dim=1).double()

    exact = read("reference", torch.float64)
    ours, theirs = (float((read(way, torch.float32) - exact).square().mean().sqrt()) for way in ("triton", "torch"))
    assert 0 < ours <= 1.5 * theirs
