"""A launch split between providers, and who runs where a planned library is missing."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_attention_flex import by_blocks
from test_runtime_attention import cache_for, layers, packed, random_qkv, schedules, with_mask, without_shares

import attnc
from attnc.codegen.build import Options, build
from attnc.compiler import check_text, graph, passes
from attnc.compiler.cost import Workload
from attnc.compiler.device import device
from attnc.compiler.plan import choose
from attnc.compiler.planned import HeadPart, Price
from attnc.compiler.providers import UNTRIED, absent
from attnc.runtime.attention_flex import flex_attention
from attnc.runtime.attention_reference import Reference
from attnc.runtime.attention_torch import torch_attention
from attnc.runtime.intervals import FULL, Form, HeadGroup, Near
from attnc.runtime.keys import persistent_keys
from attnc.runtime.softmax import attend
from attnc.runtime.split import split

MIXED = """model mixed { vocab = 32, dim = 32, layers = 2, heads = 8, kv_heads = 4, head_dim = 16, ffn = none, norm = rms(1) }
layers { all: heads { 0..1: full, else: sink(2) | window(5) } }"""


def flex(*arguments):
    return flex_attention(*arguments, using=by_blocks)


WHO = st.sampled_from([torch_attention, Reference(), flex])


@st.composite
def cuts(draw, heads):
    """Runs of KV heads that cover them all, each with somebody; they need not end where groups do."""
    ends = sorted(draw(st.sets(st.integers(1, heads), max_size=3)) | {heads})
    return [(first, end - 1, draw(WHO)) for first, end in zip([0, *ends[:-1]], ends, strict=True)]


@given(layers(), schedules(), st.data(), st.integers(0, 2**31))
def test_a_split_launch_equals_the_whole_through_chunks_and_steps(layer, schedule, data, seed):
    """Bands of a cache are divided too."""
    groups, _, heads, repeat, width, value_width = layer
    totals = [sum(call[s] for call in schedule) for s in range(len(schedule[0]))]
    groups = tuple(with_mask(without_shares(g, max(totals)), True) for g in groups)
    runs, form = data.draw(cuts(heads)), Form.of(groups, True)
    texts = [random_qkv(seed + s, total, heads, repeat, width, value_width) for s, total in enumerate(totals)]
    sink = torch.linspace(-1, 1, heads * repeat, dtype=torch.float64)
    scale = data.draw(st.sampled_from([0.5, torch.linspace(0.1, 1, heads * repeat)]))
    outputs = []
    for provider in (split(runs), torch_attention):
        cache, done, found = cache_for(groups, len(totals), max(totals), width, value_width), [0] * len(totals), []
        with torch.no_grad():
            for call in schedule:
                batch = packed(call, cache=cache)
                q, k, v = (torch.cat([texts[s][x][done[s] : done[s] + n] for s, n in enumerate(call)]) for x in range(3))
                found.append(attend(provider, q, k, v, batch, cache.layer(0), groups, form, scale, 3.0, sink))
                cache.advance(batch)
                done = [before + n for before, n in zip(done, call, strict=True)]
        outputs.append(torch.cat(found))
    torch.testing.assert_close(*outputs, rtol=1e-12, atol=1e-12)


def test_a_split_launch_has_the_gradients_of_the_whole_and_reads_learned_keys():
    groups = (with_mask(HeadGroup(0, 1, near=(FULL,)), True), with_mask(HeadGroup(2, 3, 1, (Near(back=3),)), True))
    form, batch = Form.of(groups, True), packed([5, 9])
    own = random_qkv(7, 3, 4, 2, 4, 6)[1:]
    inputs = [x.requires_grad_() for x in (*random_qkv(6, 14, 4, 2, 4, 6), *own, torch.randn(8, dtype=torch.float64))]
    q, k, v, own_k, own_v, sink = inputs
    weight = torch.randn(14, 8, 6, dtype=torch.float64)
    found = []
    for provider in (split([(0, 0, torch_attention), (1, 2, flex), (3, 3, Reference())]), torch_attention):
        learned = persistent_keys(own_k, own_v, 2)
        o = attend(provider, q, k, v, batch, None, groups, form, 0.5, None, sink, learned)
        found.append(torch.autograd.grad((o * weight).sum(), inputs))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-12)


@pytest.fixture
def built(tmp_path, monkeypatch):
    """built(provider, parts) -> a folder whose plan for a CPU runs every launch so, and as it would have run next."""

    def make(provider, parts=()):
        spec = check_text(MIXED)
        plan = choose(passes.run(graph.build(spec)), device("cpu"), Workload(length=64))
        choices = [
            replace(choice, provider=provider, parts=parts, others=(Price(provider="torch", seconds=1.0), *choice.others))
            for choice in plan.choices
        ]
        plan = replace(plan, choices=tuple(choices))
        monkeypatch.setattr("attnc.codegen.build.plan_all", lambda *_, **__: {"cuda": plan, "cpu": plan})
        build(spec, tmp_path / "built", Options(seed=0))
        return tmp_path / "built"

    return make


TEXTS = torch.arange(24).view(2, 12) % 32


def test_a_built_model_follows_a_split_plan(built):
    parts = (HeadPart(first=0, last=1, provider="torch"), HeadPart(first=2, last=3, provider="reference"))
    folder = built("split", parts)
    assert '{"train": (("torch", 0, 1), ("reference", 2, 3)), ' in (folder / "model.py").read_text()
    model = attnc.load(folder, dtype=torch.float64)
    found = model(TEXTS).logits
    (mix, *_) = model.launches()
    assert mix.providers["prefill"].__name__ == "attend_split"
    torch.testing.assert_close(found, model.use("torch")(TEXTS).logits, rtol=1e-12, atol=1e-12)


def test_a_split_model_compiles_as_one_graph(built):
    parts = (HeadPart(first=0, last=1, provider="torch"), HeadPart(first=2, last=3, provider="torch"))
    model = attnc.load(built("split", parts))
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    assert torch.equal(compiled(TEXTS).logits, model(TEXTS).logits)


@pytest.mark.parametrize(
    ("provider", "reason"), [("flex", "flex_attention's kernels need a GPU"), ("fa4", "flash-attn-4 is not installed")]
)
def test_a_planned_library_that_is_missing_is_said_and_the_next_candidate_runs(provider, reason, built, capsys):
    folder = built(provider)
    model = attnc.load(folder)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3, "one for each phase, not for each layer"
    assert lines[0] == f"note: FullSinkWindowAttention in train: torch instead of {provider}; {reason}"
    assert all(
        mix.providers["train"] is not None and mix.providers["train"].__name__ == "torch_attention" for mix in model.launches()
    )
    model(TEXTS)


def test_a_split_with_a_missing_part_is_passed_over_as_a_whole(built, capsys):
    parts = (HeadPart(first=0, last=1, provider="fa4"), HeadPart(first=2, last=3, provider="torch"))
    attnc.load(built("split", parts))
    assert "torch instead of fa4 on kv heads 0..1 and torch on 2..3; flash-attn-4 is not" in capsys.readouterr().err


def test_a_library_asked_for_by_name_must_be_there(built):
    model = attnc.load(built("torch"))
    for name in ("flex", "fa4", "gluon"):
        with pytest.raises(ValueError, match=f"{name} cannot run here"):
            model.use(name)
    with pytest.raises(ValueError, match="a model runs by one of plan"):
        model.use("cudnn")


def test_where_the_package_is_there_it_runs(built, monkeypatch, capsys):
    model = attnc.load(built("fa4"))
    capsys.readouterr()
    base = sys.modules[type(model).__mro__[1].__module__]
    monkeypatch.setattr(base, "lacking", lambda *_: None)
    for way in ("plan", "fa4"):  # what it cannot see keeps its plan
        model.use(way)
        assert {mix.providers["train"].__name__ for mix in model.launches()} == {"fa4_attention"}
    assert capsys.readouterr().err == ""


def test_plan_json_names_the_runners_up_and_what_was_left_out(tmp_path):
    build(check_text(MIXED), tmp_path / "out", Options(device="h100", length=32768, without=("torch",)))
    plan = json.loads((tmp_path / "out" / "plan.json").read_text())["plans"]["cuda"]
    assert {refusal["provider"]: refusal["reason"] for refusal in plan["absent"]} == {
        "torch": "left out by --without",
        "flex": "not installed",
        "fa4": "not installed",
        **UNTRIED,
    }
    assert all(choice["provider"] != "torch" for choice in plan["choices"])


CASES = ["full", "window(5)", "sink(2) | window(5)", "block_local(8)", "window(25%)", "stride(3) | window(3)"]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("causal", ["true", "false"])
def test_what_the_plan_lets_flash_attn_4_do_it_can_see(case, causal, tmp_path):
    """The plan reads the layer graph, the runtime its own groups."""
    head = MIXED.partition("layers {")[0].replace("layers = 2", "layers = 1")
    spec = check_text(f"{head} layers {{ all: {case} {{ causal = {causal} }} }}")
    plan = choose(passes.run(graph.build(spec)), device("h100"), Workload(length=64), absent(("fa4",)))
    (choice,) = (choice for choice in plan.choices if choice.phase == "train")
    allowed = "fa4" not in {refusal.provider for refusal in choice.refused}
    build(spec, tmp_path / "out", Options(seed=0))
    (mix,) = attnc.load(tmp_path / "out").launches()
    runtime = type(mix).__module__.rpartition(".")[0]
    refusal, has_shares = (
        getattr(sys.modules[f"{runtime}.{file}"], name)
        for file, name in (("windows", "no_window"), ("intervals", "has_shares"))
    )
    seen = [refusal(group, mix.form.causal) for variant in mix.variants for group in variant.groups]
    shares = [has_shares(variant.groups) for variant in mix.variants]
    assert allowed == (not any(seen) and not any(shares))
    assert allowed == (case in ("full", "window(5)"))
