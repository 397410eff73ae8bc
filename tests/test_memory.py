"""Nets that learn while they read: the formula against gradients written out, chunks against it, whole models, bad input."""

from __future__ import annotations

from types import SimpleNamespace

import memory_formulas
import pytest
import torch
from models import FLOAT32, WAYS, Case
from test_models import SPECS
from test_table import NETS
from training import examples, trainer

import attnc
from attnc.codegen.build import Options, build
from attnc.compiler import check_path, check_text, graph, passes
from attnc.compiler.mixers.fast_weights import fast_weights
from attnc.compiler.mixers.memory import Learned, Memory, Mlp, Swiglu, net_shapes
from attnc.compiler.mixers.recurrence import recurrence
from attnc.compiler.parameters import parameters
from attnc.compiler.reduce import reduce
from attnc.dsl import SpecError
from attnc.runtime import fast_sweep, fast_torch
from attnc.runtime.batch import Batch, lay_out
from attnc.runtime.call import Call
from attnc.runtime.fast import Lessons, Rule, Stream, start_of
from attnc.runtime.fast_torch import torch_teach
from attnc.runtime.learning import reference_teach

HEADS, D, E = 2, 4, 3
WIDE = {"dtype": torch.float64}
RATE = Learned()
RULES = {
    "linear": Memory(net="linear", chunk=5),
    "linear, read after": Memory(net="linear", chunk=5, momentum=RATE, decay=RATE, read="after_write"),
    "two maps": Memory(net=Mlp(expand=2), chunk=4, momentum=RATE, decay=RATE),
    "two maps, all": Memory(
        net=Mlp(expand=2), chunk=5, momentum=0.9, decay=RATE, read="after_write", error="after_decay", weight_norm="row"
    ),
    "normed": Memory(net=Mlp(expand=1), chunk=6, lr=0.3, residual=True, norm="layer", read="after_write"),
    "gated": Memory(net=Swiglu(expand=2), chunk=5, momentum=RATE, weight_norm="row", error="after_decay", decay=0.1),
    "gated, read after": Memory(net=Swiglu(expand=1), chunk=3, lr=None, decay=Learned(per="head"), read="after_write"),
    "one map, token by token": Memory(net=Mlp(depth=1), chunk=1, decay=RATE, error="after_decay"),
    "three maps": Memory(net=Mlp(depth=3, expand=1), chunk=70, momentum=RATE, decay=RATE, norm="layer"),
}


def rule_of(kind, **changed):
    """What the formula is told of a kind."""
    found = {
        "chunk": kind.chunk,
        "gated": isinstance(kind.net, Swiglu),
        "after_write": kind.read == "after_write",
        "after_decay": kind.error == "after_decay",
        "weight_norm": kind.weight_norm == "row",
        "residual": kind.residual,
    }
    return SimpleNamespace(**found | changed)


def draw(kind, sizes, seed=0):
    """q, k, v, the three rates, the first weights, and the norm's; an absent rate counts once, or not at all."""
    make = torch.Generator().manual_seed(seed)
    tokens, values = sizes, D if kind.residual else E
    q, k = (torch.randn(tokens, HEADS, D, generator=make, **WIDE) / 2 for _ in "qk")
    v = torch.randn(tokens, HEADS, values, generator=make, **WIDE)
    rates = []
    for rate, none, most in ((kind.lr, 1.0, 0.3), (kind.momentum, 0.0, 0.9), (kind.decay, 0.0, 0.3)):
        gates = most * torch.rand(tokens, HEADS, generator=make, **WIDE)
        if isinstance(rate, Learned):
            rates.append(gates[:1].expand(tokens, HEADS) if rate.per == "head" else gates)
        else:
            rates.append(torch.full((tokens, HEADS), none if rate is None else float(rate), **WIDE))
    shapes = net_shapes(kind, SimpleNamespace(heads=HEADS, head_dim=D, value_dim=values))
    start = {name: torch.randn(shape, generator=make, **WIDE) / shape[-1] ** 0.5 for name, shape in shapes.items()}
    norm = tuple(torch.randn(HEADS, values, generator=make, **WIDE) for _ in range(2)) if kind.norm else None
    return q, k, v, rates, start, norm


@pytest.mark.parametrize("name", RULES)
def test_the_formula_is_that_of_gradients_written_out(name):
    kind = RULES[name]
    q, k, v, rates, start, norm = draw(kind, 13)
    o, _, _ = fast_weights(q, k, v, rates, start, rule_of(kind), norm)
    for h in range(HEADS):
        w, own = [one[h] for one in start.values()], None if norm is None else [one[h] for one in norm]
        want = memory_formulas.head(kind, w, own, q[:, h], k[:, h], v[:, h], [rate[:, h] for rate in rates])[0]
        torch.testing.assert_close(o[:, h], want, rtol=1e-11, atol=1e-11)


def test_one_map_after_decay_is_the_gated_delta_rule():
    """lr = strength / 2, as the squared distance has no 1 / 2 (arXiv 2412.06464)."""
    kind = RULES["one map, token by token"]
    q, k, v, rates, start, _ = draw(kind, 9)
    lr, _, decay = rates
    o, after, _ = fast_weights(q, k, v, rates, start, rule_of(kind, after_write=True))
    state = start["map_0"].transpose(1, 2)
    want, state, _ = recurrence(q, k, v, torch.log1p(-decay), erase=2 * lr, write=2 * lr, state=state)
    torch.testing.assert_close(o, want, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(after["map_0"], state.transpose(1, 2), rtol=1e-11, atol=1e-11)


def stream_of(sizes, pasts, chunk):
    device, past = torch.device("cpu"), torch.tensor(pasts)
    totals = tuple(a + b for a, b in zip(sizes, pasts, strict=True))
    return Stream.of(lay_out(tuple(sizes), tuple(pasts), totals, "prefill", (1, sum(sizes)), device, past), chunk)


def given_of(kind, sizes, pasts, seed=0):
    """(rule, lessons, before, stream) of a call."""
    rule = Rule(momentum=kind.momentum is not None, **vars(rule_of(kind)))
    stream = stream_of(sizes, pasts, kind.chunk)
    q, k, v, rates, start, norm = draw(kind, stream.batch.tokens, seed)
    absent = [rate is None for rate in (kind.lr, kind.momentum, kind.decay)]
    rates = tuple(None if none else rate for none, rate in zip(absent, rates, strict=True))
    lessons = Lessons(q[stream.spots], k, v, rates, start, norm)
    begun = start_of(lessons, rule, len(sizes))
    make = torch.Generator().manual_seed(seed + 1)
    before = begun.mapped(lambda w: w + 0.3 * torch.randn(w.shape, generator=make, **WIDE))
    return rule, lessons, before, stream


def tensors(result):
    o, after = result
    return [o, *after.weights.values(), *(after.moment or {}).values()]


@pytest.mark.parametrize("name", RULES)
def test_chunks_are_the_formula(name, monkeypatch):
    """Outputs, what is learned, and derivatives by all that comes in; sequences begin within a chunk and end within one."""
    for module in (fast_sweep, fast_torch):
        monkeypatch.setattr(module, "BLOCK", 3)
    monkeypatch.setattr(fast_torch, "GROUP", 0)
    kind = RULES[name]
    rule, lessons, before, stream = given_of(kind, (7, 1, 12, 4), (3, kind.chunk - 1, 0, kind.chunk))
    leaves = [lessons.q, lessons.k, lessons.v, *lessons.start.values(), *(rate for rate in lessons.rates if rate is not None)]
    leaves = [
        x.requires_grad_()
        for x in leaves + list(before.weights.values()) + list(before.moment.values() if before.moment else [])
    ]
    found = []
    for teach in (reference_teach(fast_weights), torch_teach):
        results = tensors(teach(rule, lessons, before, stream))
        generator = torch.Generator().manual_seed(5)
        total = sum((x * torch.randn(x.shape, generator=generator, **WIDE)).sum() for x in results)
        found.append((results, torch.autograd.grad(total, leaves, allow_unused=True)))
    for own, want in zip(*found, strict=True):
        for one, other in zip(own, want, strict=True):
            if one is not None or other is not None:
                known = one if other is None else other
                pair = [torch.zeros_like(known) if x is None else x for x in (one, other)]
                torch.testing.assert_close(*pair, rtol=1e-9, atol=1e-9)


BODY = "vocab = 32, dim = 16, layers = {}, heads = 4, kv_heads = 2, head_dim = 4, ffn = none, norm = rms(1e-6)"
GATES = "lr = learned, momentum = learned, decay = learned"
MODELS = {
    "titans and ttt": (
        f"layers {{ 0: memory(mlp(expand = 2), chunk = 4, {GATES})"
        " { short_conv = 3, qk_norm = l2, output_norm = rms, output_gate = silu },"
        " 1: memory(linear, chunk = 16, residual = true, norm = layer, read = after_write) { rope = 100, kv_heads = 4 } }"
    ),
    "beside and before windows": (
        "mix ltm = memory(swiglu(expand = 2), chunk = 64, lr = 0.1, momentum = 0.9, weight_norm = row)\n"
        "mix near = memory(mlp(depth = 1), chunk = 1, decay = learned(per = head), error = after_decay)\n"
        "layers { 0: gate(persistent(2) | window(5), ltm, by = product), 1: near >> window(3) }"
    ),
}


def spec_of(layers):
    return check_text(f"model m {{ {BODY.format(2 if '1:' in layers else 1)} }}\n{layers}")


@pytest.mark.parametrize("name", MODELS)
def test_whole_models_are_the_oracle_in_every_way_to_run_them(name, tmp_path):
    """One chunk is longer than the texts; lengths are no multiples of the others."""
    case = Case.of(spec_of(MODELS[name]), tmp_path / "out", tokens=22)
    case.check_sizes()
    for way in WAYS:
        case.check(case.model.use(way), () if way == "torch" else ("padded decode",))
    case.check(case.narrow(), ("decode",), FLOAT32)


@pytest.mark.parametrize("name", NETS)
def test_a_built_spec_is_the_oracle_and_trains(name, tmp_path):
    reduced, _ = reduce(check_path(SPECS / f"{name}.attn"), 32)
    case = Case.of(reduced, tmp_path / "out", tokens=19)
    case.check_sizes()
    case.check(case.model.use("torch"), ("training", "padded decode"))
    case.model(case.texts).logits.square().mean().backward()
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in case.model.parameters())


def small(layers, folder):
    """A model of one layer in float32, as it starts."""
    build(spec_of(f"layers {{ all: {layers} }}"), folder, Options(seed=0))
    return attnc.load(folder)


@pytest.mark.parametrize("chunk", [8, 64, 512])
def test_a_memory_that_begins_moves_by_most_of_an_error_in_a_chunk_of_any_size(chunk):
    """Far less teaches nothing at first, and twice the distance from the values would diverge."""
    spec = check_text(f"""model m {{ vocab = 32, dim = 32, layers = 1, heads = 2, ffn = none, norm = rms(1e-6) }}
    layers {{ all: memory(mlp(depth = 2, expand = 3), chunk = {chunk}) }}""")
    found = {weight.name.rsplit("memory.")[-1]: weight for weight in parameters(spec, passes.run(graph.build(spec)))}
    assert 2 * chunk * torch.tensor(found["lr_proj.bias"].start).sigmoid() == pytest.approx(0.86)
    for net in ("net.map_0", "net.map_1"):
        assert found[net].start == pytest.approx((0.0, (2 / (16 + 48)) ** 0.5)), "what is written behind it is found again"


def test_rates_that_diverge_are_reported_with_layer_and_token(tmp_path):
    """Each chunk overshoots: nothing is returned, and the cache is as it was before the call."""
    model = small("memory(linear, chunk = 2, lr = 1)", tmp_path / "out")
    with torch.no_grad():
        model.model.layers[0].mixer.memory.k_proj.weight.mul_(1e4)
    texts = torch.randint(0, 32, (2, 30), generator=torch.Generator().manual_seed(0))
    message = r"A551: the fast weights of model\.layers\.0\.mixer\.memory are no numbers any more by (token|the last whole) .*"
    with pytest.raises(RuntimeError, match=message + r"of sequence 1") as caught:
        model(texts, lengths=[2, 30])
    assert caught.value.code == "A551"
    cache = model.new_cache(2, 40)
    model(texts[:, :3], cache=cache)
    kept = cache.snapshot()
    with pytest.raises(RuntimeError, match=message):
        model(texts[:, 3:], cache=cache)
    assert all(torch.equal(one, other) for one, other in zip(cache.snapshot().tensors, kept.tensors, strict=True))


def test_training_that_diverges_says_its_step(tmp_path):
    one = trainer(tmp_path, "all: memory(linear, chunk = 2, lr = 1)")
    one.step(examples())
    with torch.no_grad():
        one.model.model.layers[1].mixer.memory.k_proj.weight.mul_(1e6)
    with pytest.raises(SpecError, match=r"step 2: the fast weights of model.layers.1.mixer.memory") as caught:
        one.step(examples())
    assert caught.value.diagnostics[0].code == "A571"


def test_chunks_are_drawn_while_training(tmp_path):
    """As AllMem's recipe has it: another chunk every step, and nothing but the memory trains."""
    layers = "all: window(budget(2..4, default = 2)) + memory(swiglu, chunk = budget(2..9, default = 3), weight_norm = row)"
    one = trainer(tmp_path, layers, "freeze = [attention, ffn, embedding, norm], train = [memory], randomize = budgets")
    chunks = set()
    for _ in range(3):
        one.step(examples())
        chunks |= {layer.mixer.memory.scan.rule.chunk for layer in one.model.model.layers}
    assert len(chunks) > 1
    assert chunks <= set(range(2, 10))
    assert {name.split(".")[4] for name in one.moves.train} == {"memory"}


def test_bad_input_is_refused_by_name(tmp_path):
    model, other = (
        small(f"memory({net}, chunk = {chunk}, momentum = 0.5)", tmp_path / net) for net, chunk in (("linear", 4), ("mlp", 4))
    )
    longer = small("memory(linear, chunk = 8, momentum = 0.5)", tmp_path / "longer")
    tokens = torch.zeros(1, 6, dtype=torch.int64)
    caches = [one.new_cache(1, 20) for one in (other, longer)]
    for cache, message in zip(caches, ("weight.map_0 is \\[4, 4, 4\\], it keeps \\[4, 16, 4\\]", "the 3 tokens"), strict=True):
        with pytest.raises(ValueError, match=f"the cache is of another model.*{message}"):
            model(tokens, cache=cache)
    with pytest.raises(ValueError, match="another shape"):
        model.new_cache(1, 20).restore(caches[0].snapshot())
    scan, call = model.model.layers[0].mixer.memory.scan, Call(Batch.of(tokens)[1])
    q = torch.zeros(6, 4, 4)
    start = {"map_0": torch.zeros(4, 4, 4)}
    for changed, message in (
        ({"lr": 2.0}, "lr is a rate of 0..1, got 2..2"),
        ({"decay": torch.full((4,), torch.nan)}, "decay is a rate of 0..1, got nan"),
        ({"momentum": torch.zeros(5, 4)}, r"momentum is \[4\] or \[6, 4\], got \[5, 4\]"),
    ):
        with pytest.raises(ValueError, match=message):
            scan(q, q, q, start, call, 0, **changed)
    with pytest.raises(ValueError, match=r"k is .6, a divisor of 4, 4., got .6, 3, 4."):
        scan(q, q[:, :3], q, start, call, 0)


def test_a_cache_of_nets_goes_back_by_snapshots_and_to_nothing(tmp_path):
    model = small("memory(mlp, chunk = 4, momentum = learned) { short_conv = 2 }", tmp_path / "out").bfloat16()
    texts = torch.randint(0, 32, (2, 12), generator=torch.Generator().manual_seed(0))
    cache = model.new_cache(2, 20)
    first = model(texts[:, :7], cache=cache).logits
    kept = cache.snapshot()
    then = model(texts[:, 7:], cache=cache).logits
    cache.restore(kept)
    assert torch.equal(model(texts[:, 7:], cache=cache).logits, then)
    with pytest.raises(RuntimeError, match="A507"):
        cache.crop(5)
    cache.crop((12, 0))
    again = model(texts[:, :7], cache=cache, lengths=[0, 7]).logits
    assert torch.equal(again[1], first[1])
    with torch.inference_mode():
        assert torch.isfinite(model.use("reference")(texts).logits).all()


def test_compiled_and_autocast_runs_are_plain_ones(tmp_path):
    """Compiled in one graph, with a plain run's bits; under autocast decoding gives what training gives."""
    model = small("memory(mlp, chunk = 4, momentum = learned, decay = learned) { qk_norm = l2 }", tmp_path / "out")
    texts = torch.randint(0, 32, (2, 11), generator=torch.Generator().manual_seed(0))
    assert torch.equal(torch.compile(model, fullgraph=True, backend="eager")(texts).logits, model(texts).logits)
    with torch.autocast("cpu", torch.bfloat16):
        want, cache = model(texts).logits, model.new_cache(2, 11)
        found = torch.cat([model(part, cache=cache).logits for part in texts.split((6, 1, 4), dim=1)], dim=1)
    torch.testing.assert_close(found, want)
