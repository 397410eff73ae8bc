"""Plans: who runs each part of a model, at what price, and why nobody else; never what the numbers are."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import FLOAT64, Case, poisoned, rms
from strategies import Sizes, spec_texts
from test_table import STATIC

from attnc.cli import verified
from attnc.codegen.build import Options, build
from attnc.compiler import check_path, check_text, graph, passes
from attnc.compiler import device as devices
from attnc.compiler.cost import Workload
from attnc.compiler.graph import Apply, Mix, RouteTokens
from attnc.compiler.list_providers import UNCOMPARED
from attnc.compiler.plan import choose
from attnc.compiler.planned import HeadPart
from attnc.compiler.providers import ASKABLE, OPTIONAL, UNTRIED, absent
from attnc.compiler.reduce import reduce
from attnc.compiler.show import plan_text
from attnc.compiler.spec import PHASES
from attnc.dsl import SpecError

SPECS = Path(__file__).parent.parent / "specs"
PROVIDERS = {"triton", "gluon", "torch", "flex", "fa4", "reference"}
HEAD = "model m {{ vocab = 64, dim = 64, layers = 1, heads = 4, head_dim = {width}, ffn = none, norm = rms(1e-6) }} "
UNSAID = HEAD.format(width=16) + "layers { all: sink(2) | window(8) { positions = consecutive } }"
WIDE = HEAD.format(width=512) + "layers { all: full }"


PORTABLE = ("gluon",)
"""Left out where a plan's other kernels are asked about, whether or not plans take Gluon by themselves."""


def planned(spec, name="h100", length=8192, batch=1, installed=(), without=PORTABLE):
    load = Workload(length=length, batch=batch)
    return choose(passes.run(graph.build(spec)), devices.device(name), load, absent(installed, without))


@pytest.mark.parametrize("name", ["window-global", "streaming-llm", "softplus", "longlora"])
@pytest.mark.parametrize("device", ["h100", "cpu"])
def test_the_plan_of_a_spec_is_as_accepted(name, device, golden):
    golden(f"{name}.{device}.txt", plan_text(planned(check_path(SPECS / f"{name}.attn"), device)))


@settings(max_examples=max(1, settings.default.max_examples // 2))
@given(
    spec_texts(Sizes(rich=True, route=True, causal=None)),
    st.sampled_from(devices.device_names()),
    st.integers(1, 100000),
    st.sets(st.sampled_from(sorted(ASKABLE))),
    st.sets(st.sampled_from(["triton", "torch", "flex"])),
)
def test_every_part_is_chosen_priced_or_refused_in_every_phase(text, device, length, installed, without):
    found = passes.run(graph.build(check_text(text)))
    plan = choose(found, devices.device(device), Workload(length=length), absent(installed, without))
    away = {refusal.provider for refusal in plan.absent}
    assert away == (set(OPTIONAL | UNTRIED) - installed - {"fla"}) | without  # no spec drawn has matrix states
    nodes = [name for name, node in found.nodes() if isinstance(node, Mix | Apply | RouteTokens)]
    assert [(choice.node, choice.phase) for choice in plan.choices] == [(name, phase) for name in nodes for phase in PHASES]
    for choice in plan.choices:
        assert all(len(refusal.reason.split()) > 3 for refusal in choice.refused), "a reason is a sentence"
        ways = [choice.provider, *(price.provider for price in choice.others), *(one.provider for one in choice.refused)]
        assert len(ways) == len(set(ways)), "each provider runs, waits or is refused, once"
        node = found.network.nodes[choice.node]["node"]
        if isinstance(node, Mix):
            assert set(ways) - {"split"} == PROVIDERS - away
            for price in (choice, *choice.others):
                assert bool(price.parts) == (price.provider == "split")
                covered = [head for part in price.parts for head in range(part.first, part.last + 1)]
                assert covered in ([], list(range(node.last - node.first + 1))), "the parts cover the heads in order"
        fast = [price for price in choice.others if price.provider != "reference"]
        prices = [price.seconds for price in fast]
        if choice.provider != "reference":
            assert [choice.seconds, *prices] == sorted([choice.seconds, *prices]), "the cheapest wins, runners-up in order"
        else:
            assert not fast, "a reference runs only where nothing faster can"


@pytest.mark.parametrize("name", STATIC)
def test_prices_grow_with_length_and_batch(name):
    spec = check_path(SPECS / f"{name}.attn")
    for device in ("h100", "cpu"):
        plans = [planned(spec, device, length) for length in (512, 4096, 32768)]
        plans += [planned(spec, device, 32768, batch=8)]
        for before, after in itertools.pairwise(plans):
            for few, many in zip(before.choices, after.choices, strict=True):
                prices = [dict(all_prices(choice)) for choice in (few, many)]
                assert all(prices[0][way] <= prices[1][way] for way in prices[0]), (few, many)
        for few, many in zip(plans[0].choices, plans[-1].choices, strict=True):
            if few.seconds is not None:
                assert few.seconds < many.seconds


def all_prices(choice):
    yield choice.provider, choice.seconds or 0.0
    for price in choice.others:
        yield price.provider, price.seconds or 0.0


def test_a_window_is_cheaper_than_everything_and_no_dearer_than_a_longer_one():
    def price(rule):
        spec = check_text(f"{HEAD.format(width=64)} layers {{ all: {rule} }}")
        return {choice.phase: choice.seconds for choice in planned(spec, length=65536).choices}

    narrow, wide, everything = price("window(256)"), price("window(8192)"), price("full")
    for phase in PHASES:
        assert narrow[phase] <= wide[phase] < everything[phase]


def test_what_no_kernel_can_say_is_refused_with_its_reason():
    for text, reason in (
        (UNSAID, "rotates its keys anew"),
        (WIDE, "head widths above 256"),
    ):
        for choice in planned(check_text(text)).choices:
            reasons = {refusal.provider: refusal.reason for refusal in choice.refused}
            assert reason in reasons["triton"] or (choice.phase == "train" and "backward" in reasons["triton"])
    assert all(
        refusal.reason == "generated kernels need a GPU"
        for choice in planned(check_text(WIDE), "cpu").choices
        for refusal in choice.refused
    )


def test_softplus_runs_on_generated_kernels_or_its_reference():
    text = UNSAID.replace("positions = consecutive", "score = softplus(exponent = 2)")
    for device, provider in (("h100", "triton"), ("cpu", "reference")):
        for choice in planned(check_text(text), device).choices:
            assert choice.provider == provider
            assert "a softmax" in next(refusal.reason for refusal in choice.refused if refusal.provider == "torch")
    softmax, softplus = (
        {choice.phase: choice.seconds for choice in planned(check_text(one), "h100").choices}
        for one in (text.replace("{ score = softplus(exponent = 2) }", ""), text)
    )
    assert all(softplus[phase] > softmax[phase] for phase in PHASES), "keys are read once more"


def test_decoding_from_a_latent_costs_its_expansion():
    rules = ("full", "full { kv_latent = 64, rope = none }", "window(64) { kv_latent = 64, rope = none }")
    plans = [planned(check_text(HEAD.format(width=64) + f"layers {{ all: {rule} }}")) for rule in rules]
    full, latent, near = ({choice.phase: choice.seconds for choice in plan.choices} for plan in plans)
    assert near["decode"] < full["decode"] < latent["decode"]
    assert (full["train"], full["prefill"]) == (latent["train"], latent["prefill"])


def test_strict_refuses_references_and_says_where_and_why(tmp_path):
    build(check_text(WIDE), tmp_path / "wide", Options(strict=True))
    report = build(check_text(UNSAID), tmp_path / "unsaid", Options())
    assert report.decisions, "what runs its reference is told"
    with pytest.raises(SpecError) as caught:
        build(check_text(UNSAID), tmp_path / "strict", Options(strict=True))
    assert {diagnostic.code for diagnostic in caught.value.diagnostics} == {"A401"}
    assert [diagnostic.message for diagnostic in caught.value.diagnostics] == list(report.decisions)
    assert not (tmp_path / "strict").exists()


@pytest.mark.parametrize("name", ["window-global", "gpt-oss", "longlora", "streaming-llm", "random-features"])
def test_no_plan_changes_results(name, tmp_path):
    """Every way to run, and plans for every device and for short and long workloads, give the same logits."""
    small, _ = reduce(check_path(SPECS / f"{name}.attn"), 32)
    case = Case.of(small, tmp_path / "built")
    for way in ("plan", "torch", "reference"):
        case.model.use(way)
        case.check(case.model, ("training", "prefill", "decode by 16"))
    before = case.model(case.texts).logits
    for number, options in enumerate((Options(length=16), Options(length=2**20, batch=64), Options(device="a100"))):
        other = Case.of(small, tmp_path / str(number))
        other.model.load_state_dict(case.model.state_dict())
        with poisoned():
            assert rms(other.model(case.texts).logits - before) <= FLOAT64 * case.rounding, options


def rule(text, width=64, heads=32, kv_heads=8):
    model = f"vocab = 64, dim = 64, layers = 1, heads = {heads}, kv_heads = {kv_heads}, head_dim = {width}, ffn = none"
    return check_text(f"model m {{ {model}, norm = rms(1e-6) }} layers {{ all: {text} }}")


def ways(spec, phase, device="h100", **options):
    """provider -> seconds, or why not."""
    (choice,) = (choice for choice in planned(spec, device, installed=ASKABLE, **options).choices if choice.phase == phase)
    priced = {price.provider: price.seconds for price in (choice, *choice.others)}
    return priced | {refusal.provider: refusal.reason for refusal in choice.refused}


@pytest.mark.parametrize(
    ("text", "phase", "device", "provider", "reason"),
    [
        ("full", "prefill", "cpu", "flex", "need a GPU"),
        ("full", "decode", "h100", "flex", "made anew for every token"),
        ("sink(4) | window(64)", "prefill", "h100", "fa4", "one window around the query"),
        ("window(25%)", "train", "h100", "fa4", "not a share of each one's length"),
        ("window(64)", "decode", "h100", "fa4", "keys of a ring"),
        ("full", "train", "a100", "fa4", "sm_90 and sm_100"),
        ("persistent(4) | window(64)", "train", "h100", "fa4", "every query sees beside a window"),
    ],
)
def test_what_a_library_cannot_do_is_refused_with_its_reason(text, phase, device, provider, reason):
    assert reason in ways(rule(text), phase, device)[provider]


def test_a_library_is_priced_where_it_can():
    for text in ("full", "window(64)", "heads { 0..1: full, else: window(64) }"):
        assert isinstance(ways(rule(text), "train")["fa4"], float)
        assert isinstance(ways(rule(text), "train")["flex"], float)
    assert "takes heads of 16 to 256" in ways(rule("full", width=8), "train")["flex"]
    assert "no kernel for heads of 20" in ways(rule("full", width=20), "train")["fa4"]


def test_dense_launches_follow_the_table_of_peers():
    """B1 S16384 H32/8 D128 and its decoding at S131072, measured: ratios to cuDNN."""
    spec = rule("full", width=128)
    for phase, length, flex, fa4 in (("prefill", 16384, 5.1 / 3.72, 3.33 / 3.72), ("train", 16384, 19.1 / 14.1, 12.84 / 14.1)):
        found = ways(spec, phase, length=length)
        assert found["flex"] / found["torch"] == pytest.approx(flex, rel=0.06)
        assert found["fa4"] / found["torch"] == pytest.approx(fa4, rel=0.06)
    found = ways(spec, "decode", length=131072)
    assert found["fa4"] / found["torch"] == pytest.approx(1.31 / 0.19, rel=0.1)


def test_gluon_is_priced_where_it_was_asked_for_and_can():
    def phases(name, width=128, without=(), **options):
        plan = planned(rule("window(1024)", width=width), name, 8192, without=without, **options)
        return {choice.phase: choice for choice in plan.choices}

    absent_ones = {refusal.provider for refusal in planned(rule("full"), without=()).absent}
    assert ("gluon" in absent_ones) == ("gluon" in UNTRIED)
    assert (phases("h100")["prefill"].provider == "gluon") == ("gluon" not in UNTRIED)
    asked = phases("h100", installed=("gluon",))
    assert [asked[phase].provider for phase in ("train", "prefill")] == ["gluon", "gluon"]
    for away in (
        asked["decode"],
        phases("a100", installed=("gluon",))["prefill"],
        phases("h100", 60, installed=("gluon",))["train"],
    ):
        assert away.provider != "gluon"
        assert "gluon" in {refusal.provider for refusal in away.refused}
    assert phases("h100", installed=("gluon",), without=("gluon",))["prefill"].provider == "triton"


def test_which_kernel_of_pytorch_runs_is_told():
    def how(text, **options):
        return {
            choice.how
            for choice in planned(rule(text), without=("triton", *PORTABLE), **options).choices
            if choice.phase != "decode"
        }

    assert how("full") == {"cuDNN"}
    assert how("full", name="a100") == {"flash"}
    assert how("full { sink_logit = learned }") == {"masks"}
    assert how("window(64)") == {"flash"}
    assert how("window(25%)") == how("sink(4) | window(64)") == how("window(64) { sink_logit = learned }") == {"masks"}


MIXED = "heads { 0..1: full, else: sink(64) | window(1024) }"


def test_a_launch_is_split_where_that_is_cheaper_than_one():
    """8 full heads by cuDNN and 24 of sinks and windows by the generated kernel."""
    spec = rule(MIXED, width=128)
    (choice,) = (choice for choice in planned(spec, length=32768).choices if choice.phase == "prefill")
    assert choice.provider == "split"
    assert choice.parts == (
        HeadPart(first=0, last=1, provider="torch", how="cuDNN"),
        HeadPart(first=2, last=7, provider="triton"),
    )
    alone = {price.provider: price.seconds for price in choice.others}
    assert choice.seconds < alone["triton"] < alone["torch"]
    short = next(choice for choice in planned(spec, length=64).choices if choice.phase == "prefill")
    assert short.provider == "triton", "for a short text the copies and launches cost more"
    assert "split" in {price.provider for price in short.others} | {refusal.provider for refusal in short.refused}
    decode = next(choice for choice in planned(spec, length=32768).choices if choice.phase == "decode")
    assert decode.provider == "triton"


def test_a_plan_asks_nobody_that_is_left_out():
    spec = rule(MIXED, width=128)
    for without in (("torch",), ("triton",), ("triton", "torch")):
        for choice in planned(spec, length=32768, installed=("flex",), without=without).choices:
            named = {choice.provider, *(price.provider for price in choice.others), *(part.provider for part in choice.parts)}
            assert not named & set(without)
    assert "refuse" not in plan_text(planned(spec, without=("triton",)))
    assert "triton no: left out by --without" in plan_text(planned(spec, without=("triton",)))


def test_kernels_of_states_that_no_gpu_has_compared_are_said(monkeypatch):
    spec = check_text(
        "model m { vocab = 100, dim = 1024, layers = 2, heads = 16, norm = rms(1e-6), ffn = none, rope = none }\n"
        "layers { 0: linear(decay = scalar), 1: ssm(mamba) }"
    )
    layers = passes.run(graph.build(spec))
    plan = choose(layers, devices.shipped("h100"), Workload(batch=1, length=8192, width=2))
    assert {choice.provider for choice in plan.choices} == {"triton"}
    monkeypatch.setattr(verified, "record", lambda _: frozenset())
    found = verified.unverified(plan, layers, spec.model)
    names = {phase: {(row.kernel, *row.layers) for row in found if row.phase == phase} for phase in PHASES}
    assert names["decode"] == {("scan_step", 0), ("channel_scan", 1)}
    assert names["prefill"] == {("scan_chunks", 0), ("scan_forward", 0), ("scan_outputs", 0), ("channel_scan", 1)}
    assert names["train"] == names["prefill"] | {(f"scan_{name}", 0) for name in ("backward", "values", "gradients")}
    monkeypatch.setattr(verified, "record", lambda _: frozenset(row.sha256 for row in found))
    assert verified.unverified(plan, layers, spec.model) == []


def test_kernels_over_lists_are_taken_by_their_price_but_for_what_no_gpu_has_compared():
    """That waits behind every other provider, whatever it would cost; a launch whose lists they cannot read says why."""
    lists = "block_local(64) | routed(blocks(64), top_k = 8{})"
    queries = lists.format(", queries = block(64)")
    for text, length in ((lists.format(""), 32768), (queries, 131072)):
        found = [one for one in planned(rule(text), length=length).choices if one.phase != "train"]
        assert [(choice.provider, choice.how) for choice in found] == [("triton", "")] * 4
    for text, phases, what in (
        (lists.format(""), {"train"}, "gradients over lists"),
        (lists.format("") + " | routed(tokens, top_k = 8)", {"prefill", "decode"}, "several choices in a union"),
        (lists.format(", dense_queries = last(40)"), {"prefill", "decode"}, "queries that see everything"),
        (lists.format("") + " | stride(9)", {"prefill", "decode"}, "far patterns beside lists"),
    ):
        for choice in (one for one in planned(rule(text), length=32768).choices if one.phase in phases):
            (triton,) = (price for price in choice.others if price.provider == "triton")
            assert (choice.provider, triton.how) == ("torch", f"{UNCOMPARED}: {what}")
            assert triton.seconds < choice.seconds
    for choice in planned(rule(lists.format(""), width=512), length=32768).choices:
        assert choice.provider == "torch", "who cannot read lists makes none"
    without = planned(rule(lists.format("")), length=32768, without=("torch",))
    assert {choice.provider for choice in without.choices} == {"triton"}
    little, much = (
        planned(rule(f"block_local(64) | routed(blocks(64), top_k = {share}, queries = block(64))"), length=32768).choices
        for share in ("5%", "80%")
    )
    assert all(few.seconds <= many.seconds for few, many in zip(little, much, strict=True))
    assert sum(few.seconds for few in little) < sum(many.seconds for many in much)
    for many, reason in ((64, "its kernel reads lists that 128 queries or more share"), (128, None)):
        text = f"block_local(64) | routed(blocks(64), top_k = 8, queries = block({many}))"
        found = {(one.node[:5], one.phase): one for one in planned(rule(text), installed=("gluon",), without=()).choices}
        reads = found["0/mix", "prefill"]
        assert reads.provider == ("triton" if reason else "gluon")
        assert [one.reason for one in reads.refused if one.provider == "gluon"] == ([reason] if reason else [])
    far = planned(rule("window(8) | routed(diagonals, top_k = 8, queries = last(8), score = softmax)"), length=32768)
    refused = {refusal.reason for choice in far.choices for refusal in choice.refused if refusal.provider == "triton"}
    assert refused == {
        "its kernels score for one query, or for a block's mean",
        "its kernels go back over one choice of units, not over distances nor several choices",
    }


def test_kernels_over_lists_that_no_gpu_has_compared_are_said(monkeypatch):
    """Those that read lists where the mix is, those that make them where the choice is; variants without a choice need none."""
    spec = rule("when { phase == decode: full, else: block_local(64) | routed(blocks(64), top_k = 8) }")
    layers = passes.run(graph.build(spec))
    plan = choose(layers, devices.shipped("h100"), Workload(length=8192), absent(without=("torch", "flex")))
    monkeypatch.setattr(verified, "record", lambda _: frozenset())
    found = verified.unverified(plan, layers, spec.model)
    names = {phase: {row.kernel for row in found if row.phase == phase} for phase in PHASES}
    assert names == {
        "train": {"lists_attend", "lists_backward", "lists_choose"},
        "prefill": {"lists_attend", "lists_choose"},
        "decode": {"softmax_decode"},
    }
